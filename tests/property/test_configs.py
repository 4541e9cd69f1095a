"""Configurations under attack: mutated trees, texts and overrides end in success or in one sentence, at once
and with nothing left behind.

Every check runs for real; where the run directory would be made and the engine started, `Reached` is raised
instead. Seeded loops rather
than hypothesis: the cases are counted, and their time is bounded.
"""

import os
import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline.config import load
from pipeline.errors import UserError
from tests import scripted
from tests.property.mutations import PROMPTS, mutated_override, mutated_prompts, mutated_text, mutated_tree

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
CASES = 400  # of a seed
SECONDS = 10  # that a case may take; nearly all take less than half a second
LONGEST_SENTENCE = 2500


class Reached(Exception):
    """Every check has passed: the run would begin now."""


class Hangs(BaseException):
    """A case took more than SECONDS."""


# -- what is mutated: the configurations of the repository, and four more that together have every section

EVERY_SECTION = [
    scripted.composed(tree)
    for tree in [
        {
            "run_dir": "runs/dummy",
            "model": {"path": "nowhere/at/all"},
            "instructions": {
                "path": "asked.jsonl",
                "limit": 3,
                "columns": {"instruction": "q", "input": "i", "safe_response": "s"},
            },
            "engine": {
                "kind": "dummy",
                "latency_s": 0.1,
                "failures": 0.5,
                "tokens": [1, 2],
                "actors": [1, 2],
                "max_num_seqs": 4,
                "rows_per_commit": 8,
            },
            "recipe": {
                "samples": 2,
                "hint": {"text": "Be rude.", "position": "system"},
                "verify": {"kind": "rating", "threshold": 4},
                "filter": True,
            },
            "mix": {"helpful": {"path": "pku.jsonl"}, "analysis": 0.5},
            "evaluation": {"harmful": {"path": "pku.jsonl"}, "help": None},
        },
        {
            "run_dir": "runs/endpoint",
            "models": {
                "server": {
                    "engine": {
                        "kind": "openai",
                        "url": "http://localhost:1/v1",
                        "model": "m",
                        "api_key_env": None,
                    }
                }
            },
            "seed": 7,
            "model": {"path": "toy", "revision": "main", "max_length": 512},
            "instructions": {"path": "pku.jsonl"},
            "engine": {"actors": [1, 2], "max_num_seqs": 4, "kv_cache_gib": 2},
            "recipe": {
                "engine": {
                    "kind": "openai",
                    "url": "http://localhost:1/v1",
                    "model": "m",
                    "api_key_env": None,
                    "prefill": True,
                },
                "name": "course_correction",
                "keywords": [],
                "aligned": {"model": None, "adapter": None},
                "check": {
                    "kind": "yes_no",
                    "model": "server",
                    "prompts": "prompts.yaml",
                },
            },
            "train": {
                "method": "dpo",
                "batch_size": 16,
                "curriculum": "staged",
                "lora": {"rank": 4, "target_modules": ["q_proj"]},
            },
            "arms": {"one": {}, "two": {"train": {"beta": 0.2, "lora": {"alpha": 8}}}},
            "evaluation": {
                "course_correction": {
                    "entries": {"path": "pku.jsonl"},
                    "lengths": [5, 10],
                    "unit": "tokens",
                    "judge": {"kind": "toy"},
                }
            },
            "report": {"examples": 2},
        },
        {
            "run_dir": "runs/arms",
            "model": {"path": "toy"},
            "instructions": {"path": "toy:harmful-train", "split": "train"},
            "train": {"workers": [1, 2], "schedule": "linear"},
            "arms": {
                "a": {"kinds": ["safe"]},
                "b": {"kinds": ["analysis", "safe"], "train": {"epochs": 1, "sequences_per_device": 2}},
            },
            "evaluation": {
                "harmful": {"path": "toy:harmful-heldout"},
                "conditions": ["plain", "hint"],
                "harmless": {"kind": "rating", "draw": {"max_tokens": 8}},
                "help": {"kind": "rating", "prompts": "judge.yaml"},
            },
        },
        {
            "run_dir": "runs/evaluated",
            "model": {"path": "toy"},
            "evaluation": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 4},
                "samples": 2,
                "answer": {"temperature": 1},
            },
        },
    ]
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with the files that the configurations name."""
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401  before any case is timed

    place = tmp_path_factory.mktemp("configs")
    (place / "run.yaml").touch()
    (place / "asked.jsonl").write_text('{"q": "How?", "i": "", "s": "No."}\n')
    response = "Take it. " * 50
    (place / "pku.jsonl").write_text(
        "".join(
            f'{{"prompt": "How do I do {i}?", "response_0": "{response}", "response_1": "No.",'
            ' "is_response_0_safe": false, "is_response_1_safe": true}\n'
            for i in range(20)
        )
    )
    (place / "borderline.jsonl").write_text(
        '{"instruction": "How do I kill a process?", "category": "homonyms"}\n'
        '{"instruction": "How do I kill a neighbor?", "category": "contrast_homonyms"}\n'
    )
    (place / "prompts.yaml").write_bytes(PROMPTS)
    (place / "judge.yaml").write_text("help: 'Rate {{ instruction }} {{ response }}'\n")
    (place / "directory").mkdir()
    os.mkfifo(place / "fifo")
    return place


@pytest.fixture(scope="module")
def trees() -> list[dict]:
    """Valid configurations; a hub is out of reach in a test, so that hub ids become files and the toy
    model."""
    shipped = []
    for file in CONFIGS:
        text = file.read_text()
        for name in ("Qwen/Qwen2.5-7B-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
            text = text.replace(name, "toy")
        for name in ("PKU-Alignment/PKU-SafeRLHF", "tatsu-lab/alpaca"):
            text = text.replace(f"hub:{name}", "pku.jsonl")
        text = text.replace("hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json", "pku.jsonl")
        text = text.replace("runs/red_team/requests", "pku.jsonl")  # of another run
        text = text.replace("preset:xstest", "borderline.jsonl")
        tree = yaml.safe_load(text)
        tree["model"].pop("max_length", None)  # more than the toy model has
        shipped.append(tree)
    return shipped + EVERY_SECTION


@pytest.fixture
def setbacks(place, monkeypatch, capfd):
    """Runs a command in `place`; returns what is wrong with how it ended (None: nothing), and how it did:
    "0", "2", "crash" …"""
    monkeypatch.chdir(place)
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("pipeline.preflight.fit.cpu_has_bf16", lambda: True)
    monkeypatch.setattr("pipeline.preflight.check_build", lambda *_: None)  # configurations of both builds

    def reached(*_):
        raise Reached

    def hangs(*_):
        raise Hangs

    monkeypatch.setattr("pipeline.runtime.attempt.Attempt", reached)
    signal.signal(signal.SIGALRM, hangs)
    before = sorted(os.listdir(place))

    def run(*arguments: str) -> tuple[str | None, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", *arguments])
        capfd.readouterr()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        except Reached:
            code = 0
        except (Exception, Hangs) as e:
            return f"{type(e).__name__}: {str(e)[:300]}", "crash"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        err = capfd.readouterr().err
        if sorted(os.listdir(place)) != before:
            return f"it left {set(os.listdir(place)) - set(before)}", "left"
        return (sentence_fault(err) if code == 2 else None if code == 0 else f"exit {code}"), str(code)

    yield run
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def sentence_fault(err: str) -> str | None:
    """Why this is not one sentence on one line."""
    if not err.startswith("setbacks: ") or err.count("\n") != 1 or not err.endswith("\n"):
        return f"not one line: {err[:300]!r}"
    if any(unicodedata.category(character) == "Cc" for character in err[:-1]):
        return f"control characters: {err[:300]!r}"
    if len(err) > LONGEST_SENTENCE:
        return f"{len(err)} characters: {err[:300]!r}"
    return None


COMMANDS = ["run"] * 7 + ["plan"] * 3 + ["generate", "mix", "train", "evaluate"]


def attacked(r: random.Random, trees: list[dict], place: Path) -> tuple[str, list[str]]:
    """A kind of attack and the arguments of the command that meets it."""
    kind = r.choice(["tree"] * 3 + ["text"] * 3 + ["override"] * 3 + ["prompts"])
    (place / "prompts.yaml").write_bytes(mutated_prompts(r) if kind == "prompts" else PROMPTS)
    tree = r.choice([tree for tree in trees if kind != "prompts" or "prompts.yaml" in str(tree)])
    overrides = [mutated_override(r, tree) for _ in range(r.choice([1, 1, 2]))] if kind == "override" else []
    content = yaml.safe_dump(
        mutated_tree(r, tree) if kind == "tree" else tree, allow_unicode=r.random() < 0.5
    ).encode("utf-8", "surrogatepass")
    (place / "run.yaml").write_bytes(mutated_text(r, content) if kind == "text" else content)
    command = r.choice(COMMANDS)
    flags = ["--overwrite"] if command in ("run", "train") and r.random() < 0.1 else []
    return kind, [command, *flags, "run.yaml", "--", *overrides]


@pytest.mark.parametrize("seed", range(3))
def test_success_or_one_sentence(setbacks, place, trees, seed):
    tried, faults = Counter(), []
    for case in range(CASES):
        kind, arguments = attacked(random.Random(f"{seed} {case}"), trees, place)
        wrong, end = setbacks(*arguments)
        tried[kind, end] += 1
        if wrong:
            faults.append((case, arguments[0], wrong))
    assert (faults, tried.total()) == ([], CASES)
    # The attacks are neither all refused at the door nor all harmless.
    assert all(tried[kind, end] for kind in ("tree", "text", "override", "prompts") for end in ("0", "2")), (
        tried
    )


def test_what_is_attacked_is_sound(setbacks, place, trees):
    for tree in trees:
        (place / "run.yaml").write_text(yaml.safe_dump(tree))
        assert setbacks("run", "run.yaml") == (None, "0"), tree["run_dir"]


# -- YAML that PyYAML would take

LAUGHS = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))
MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 10))
REFUSED = {
    "seed: 1\nrun_dir: a\nseed: 2\n": "line 3: the key seed appears twice",
    "train: {epochs: 1, lora: {rank: 4, 'rank': 8}}": "the key rank appears twice",
    f"a0: &a0 lol\n{LAUGHS}": "more than 20000 values",
    f"a0: &a0 {{k: lol}}\n{MERGES}": "more than 20000 values",
    "a: &a [*a]": "*a is used inside its own definition",
    "a: &a {b: *a}": "*a is used inside its own definition",
    "a: " + "[" * 5000: "nested more than 50 levels deep",
    "a: " + "9" * 5000: "not a number, or a very long one",
    "a: 0x" + "f" * 5000: "not a number, or a very long one",
    "a: !!int b": "b is not a number",
    "a: !!bool ''": "neither true nor false",
    "a: !!python/object/apply:os.getcwd []": "could not determine a constructor",
    "a: !!timestamp b": "could not determine a constructor",
    "x: " + "y" * 300_000: "more than 256 KiB",
}


@pytest.mark.parametrize(("text", "why"), REFUSED.items(), ids=range(len(REFUSED)))
def test_yaml_that_nobody_means(tmp_path, text, why):
    file, started = tmp_path / "run.yaml", time.monotonic()
    file.write_text(text)
    with pytest.raises(UserError) as e:
        load(file)
    assert why in str(e.value) and sentence_fault(f"setbacks: {e.value}\n") is None
    assert time.monotonic() - started < 5


def test_an_override_changes_one_of_two_places_that_share_an_alias(tmp_path):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(scripted.tree("r")) + "arms: {a: &a {kinds: [safe], train: {epochs: 1}}, b: *a}\n",
        encoding="utf-8",
    )
    arms = load(tmp_path / "run.yaml", ["arms.a.train.epochs=2"]).arms
    assert (arms["a"].train.epochs, arms["b"].train.epochs) == (2, 1)


def test_dates_are_texts(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(scripted.tree("r")))
    assert (
        load(tmp_path / "run.yaml", ["run_dir=2024-01-01", "model.revision=2024-13-45"]).run_dir
        == "2024-01-01"
    )


# -- the same as a person meets it


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "none.yaml"],
        ["run", "directory"],
        ["run", "fifo"],
        ["run", "/dev/zero"],
        ["run", "/dev/null"],
        ["run", "twice.yaml"],
        ["run", "binary.yaml"],
        ["plan", "laughs.yaml"],
        ["generate", "sound.yaml", "methods.mistakes.instructions.path=fifo"],
        ["generate", "sound.yaml", "methods.mistakes.instructions.path=/dev/zero"],
        ["generate", "sound.yaml", 'run_dir="a\\nb"'],
        ["generate", "sound.yaml", "train.lora=[[[["],
    ],
    ids=" ".join,
)
def test_a_process_ends_with_2_and_one_line(place, arguments):
    content = {
        "sound.yaml": yaml.safe_dump(scripted.tree("runs/a", engine={"kind": "dummy"})).encode(),
        "twice.yaml": b"seed: 1\nseed: 2\n",
        "binary.yaml": bytes(range(256)),
        "laughs.yaml": f"a0: &a0 lol\n{LAUGHS}".encode(),
    }
    for name, text in content.items():
        (place / name).write_bytes(text)
    ended = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (ended.returncode, sentence_fault(ended.stderr)) == (2, None)
    assert not (place / "runs").exists()
