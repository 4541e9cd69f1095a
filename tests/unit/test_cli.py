"""The commands: exit codes, and for everything a user can get wrong one sentence before anything starts."""

import json
import os
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipeline.experiment  # noqa: F401 - before tests replace Machinery, which its annotations name
from pipeline import __version__, cli
from pipeline.errors import RunFailed
from pipeline.run import Machinery
from tests import scripted


@pytest.fixture
def setbacks(monkeypatch, capsys):
    """Run the command as the console script does: returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as e:
            code = e.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def nothing_starts(monkeypatch):
    """Building a model or starting Ray fails the test; so would an engine, which needs both."""

    def refuse(*_arguments):
        pytest.fail("something was started before the mistake was found")

    monkeypatch.setattr("pipeline.run.Machinery", lambda: Machinery(session=refuse))
    monkeypatch.setattr("pipeline.models.model_dir", refuse)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: bytes | str | dict) -> str:
        path = tmp_path / name
        text = yaml.safe_dump(content) if isinstance(content, dict) else content
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


# -- what goes right


def test_help_names_every_command(setbacks):
    code, out, _ = setbacks("--help")
    assert code == 0
    for command in (
        "run",
        "generate",
        "mix",
        "train",
        "evaluate",
        "report",
        "plan",
        "status",
        "manifest",
        "show",
    ):
        assert f" {command} " in out


@pytest.mark.parametrize(
    "command", ["run", "generate", "mix", "train", "evaluate", "report", "plan", "status", "manifest", "show"]
)
def test_every_command_has_help(setbacks, command):
    assert setbacks(command, "--help")[0] == 0


def test_version(setbacks):
    assert setbacks("--version") == (0, f"setbacks {__version__}\n", "")


def test_a_command_does_what_it_is_told(setbacks, write, monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(
        "pipeline.experiment.run", lambda config, stages, **options: ran.append((config, stages, options))
    )
    config = write("run.yaml", scripted.tree(tmp_path / "run"))
    assert setbacks("run", config, "seed=3", "train.epochs=1")[0] == 0
    assert setbacks("generate", config, "--retry-failed")[0] == 0
    assert setbacks("train", config, "--overwrite")[0] == 0
    assert [stages for _, stages, _ in ran] == [None, ["generate"], ["train"]]
    assert [(options["overwrite"], options["retry_failed"]) for _, _, options in ran] == [
        (False, False),
        (False, True),
        (True, False),
    ]
    assert (ran[0][0].seed, ran[0][0].train.epochs) == (3, 1)


def test_a_failed_run_ends_with_1_and_one_line(setbacks, write, monkeypatch, tmp_path):
    def fails(config, stages, **options):
        raise RunFailed("the engine\ndid not start")

    monkeypatch.setattr("pipeline.experiment.run", fails)
    assert setbacks("run", write("run.yaml", scripted.tree(tmp_path))) == (
        1,
        "",
        "setbacks: the engine did not start\n",
    )


@pytest.mark.parametrize("flags", [[], ["--overwrite"]])
def test_an_interrupted_run_says_how_to_go_on(setbacks, write, monkeypatch, tmp_path, flags):
    def interrupted(config, stages, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.experiment.run", interrupted)
    monkeypatch.setattr("os._exit", sys.exit)
    code, _, err = setbacks("run", write("run.yaml", scripted.tree(tmp_path)), *flags)
    assert code == 130
    assert "interrupted; rerun the same command" in err
    assert ("without --overwrite" in err) == bool(flags)


@pytest.mark.parametrize(
    "arguments",
    [
        ["frob"],
        ["run"],
        ["run", "a.yaml", "--frob"],
        ["show", "d", "-n", "0"],
        ["plan", "a", "--tokens-per-s", "-1"],
    ],
)
def test_wrong_usage_ends_with_2(setbacks, arguments):
    code, _, err = setbacks(*arguments)
    assert code == 2
    assert "Traceback" not in err


# -- what goes wrong: overrides of a sound configuration, and words that the one line must hold

OVERRIDES = {
    "trian.epochs=1": ["trian", "did you mean train"],
    "train.lora.rnak=1": ["train.lora.rnak", "did you mean rank"],
    "train.epochs=many": ["train.epochs", "'many'"],
    "seed=-1": ["seed", "-1", "greater than or equal to 0"],
    "model.path=null": ["model.path", "null"],
    "engine.actors=[3,1]": ["engine", "min <= max", "[3, 1]"],
    "arms.vanilla.kinds=[safe]": ["arms.vanilla", "another name"],
    "arms.mine.kinds=[jokes]": [
        "arms.mine.kinds: jokes is not a kind",
        "known are analysis, safe_analysis, safe, helpful",
    ],
    "seed": ["override 'seed'", "key.sub=value"],
    "run_dir.name=x": ["run_dir is a str", "no keys"],
    "train.epochs=[1": ["train.epochs", "not valid YAML"],
    "methods.mistakes.instructions.path=toy:nonsense": ["instructions", "toy:nonsense", "harmful-train"],
    "methods.mistakes.instructions.path=none.jsonl": ["instructions", "none.jsonl", "no such file"],
    "methods.mistakes.instructions.path=notes.txt": ["instructions", "notes.txt", "known are .parquet"],
    "methods.mistakes.instructions.path=none*.csv": ["instructions", "none*.csv", "matches no"],
    "methods.mistakes.instructions.path=empty.jsonl": ["instructions", "empty.jsonl", "is empty"],
    "methods.mistakes.instructions.path=junk.jsonl": [
        "instructions",
        "junk.jsonl",
        "none of its first 3 rows can be read",
    ],
    "methods.mistakes.instructions.path=cut.parquet": [
        "instructions",
        "cut.parquet",
        "cannot be read as Parquet",
    ],
    "methods.mistakes.instructions.path=strange.jsonl": [
        "instructions",
        "strange.jsonl",
        "headline",
        "columns: {instruction: NAME}",
    ],
    "methods.mistakes.instructions={path: strange.jsonl, columns: {instruction: ask}}": [
        "instructions",
        "columns.instruction = ask",
        "headline",
    ],
    "methods.mistakes.instructions={path: strange.jsonl, columns: {input: headline}}": [
        "instructions.columns.instruction",
        "missing",
    ],
    "methods.mistakes.mix.helpful={path: none.jsonl}": ["mix.helpful", "none.jsonl"],
    "suites.safety.helpful={path: mixed}": ["suites.safety.helpful", "JSONL and Parquet"],
    "model.path=./no-model": ["model.path", "./no-model", "no such model directory"],
    "model.path=bare": ["model.path", "bare", "no chat template"],
    "model.path=mixed": ["model.path", "mixed", "no config.json"],
    "methods.mistakes.prompts=none.yaml": ["none.yaml", "no such prompt file"],
    "methods.mistakes.prompts=surprise.yaml": ["surprise.yaml", "surprise is not a prompt"],
    "methods.mistakes.prompts=variable.yaml": ["variable.yaml", "prompt suffix", "'hint' is undefined"],
    "methods.mistakes.prompts=syntax.yaml": ["syntax.yaml", "prompt suffix", "not a valid template"],
    "suites.safety.help.prompts=judge.yaml": ["judge.yaml", "prompt harmless", "'answer' is undefined"],
    "run_dir=notes.txt": ["run_dir", "notes.txt", "not a directory"],
    "run_dir=notes.txt/below": ["run_dir", "notes.txt", "not a directory"],
    "run_dir=nowhere://bucket/run": ["nowhere://bucket/run", "cannot be opened"],
    "methods.mistakes.engine={kind: openai, url: 'http://localhost:1/v1', model: m, api_key_env: NOT_SET_HERE}": [
        "methods.mistakes.engine.",
        "api_key_env = NOT_SET_HERE",
        "export it",
    ],
    "engine={kind: openai, url: 'http://localhost:1/v1', model: m, key: abc}": [
        "engine.key",
        "not a known key",
    ],
    "engine={kind: openai, url: 'http:///v1', model: m}": ["engine.url", "host"],
    "engine={kind: openai, url: 'http://localhost:1/v1', model: m, api_key_env: null}": [
        "engine.kind = openai: takes no adapters",
        "methods.NAME.engine",
    ],
    "inference.actors=2": ["inference is no longer a key", "engine: {kind: vllm"],
    "inference={endpoint: {url: 'http://localhost:1/v1', model: m}}": [
        "inference.endpoint is no longer a key",
        "methods.NAME.engine: {kind: openai",
    ],
    "model.dummy={failures: 1}": ["model.dummy is no longer a key", "engine: {kind: dummy"],
    "model.path=dummy": ["model.path = 'dummy'", "engine: {kind: dummy}"],
}


@pytest.fixture
def beside(tmp_path, monkeypatch, write):
    """Broken files in the current directory, beside a sound configuration; returns its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET_HERE", raising=False)
    write("notes.txt", "hello")
    write("empty.jsonl", "")
    write("junk.jsonl", b"not json\n\xff\xfe\n[1, 2]\n")
    write("strange.jsonl", json.dumps({"headline": "How?"}) + "\n")
    pq.write_table(pa.table({"prompt": ["a"] * 100}), "whole.parquet")
    write("cut.parquet", (tmp_path / "whole.parquet").read_bytes()[:-20])
    for directory in ("mixed", "bare"):
        os.makedirs(directory)
    write("mixed/a.jsonl", '{"prompt": "a"}\n')
    pq.write_table(pa.table({"prompt": ["a"]}), "mixed/b.parquet")
    write("bare/config.json", "{}")
    write("bare/tokenizer_config.json", "{}")
    write("surprise.yaml", "surprise: text")
    write("variable.yaml", "suffix: '{{ instruction }} {{ hint }}'")
    write("syntax.yaml", "suffix: '{{ instruction'")
    write("judge.yaml", "harmless: 'Rate {{ answer }}'")
    return write("run.yaml", scripted.tree("runs/it"))


def one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2, err
    assert out == ""
    assert err.startswith("setbacks: ") and err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(("override", "words"), OVERRIDES.items())
def test_a_wrong_value_is_one_line_before_anything_starts(
    setbacks, nothing_starts, beside, override, words, command
):
    line = one_line(setbacks(command, beside, override))
    for word in words:
        assert word in line
    assert not os.path.exists("runs")


FILES = {
    "": ["is empty"],
    "- run_dir: a\n": ["mapping of keys to values", "list"],
    "run_dir: [": ["not valid YAML"],
    "run_dir: a\n\tseed: 1\n": ["not valid YAML"],
    b"\x00\x01\xff\xfe": ["cannot be read"],
    "run_dir: a\nmodel: {path: toy}\n": ["nothing would be done: give methods"],
    "run_dir: a\nmodel: {path: toy}\ninstructions: {path: 'toy:harmful-train'}\n": [
        "instructions is no longer a key"
    ],
    "run_dir: a\nmodel:\nsuites: {safety: {harmful: {path: x}}}\n": [
        "model = null",
        "mapping of keys to values",
    ],
}


@pytest.mark.parametrize(("content", "words"), FILES.items())
def test_a_wrong_file_is_one_line(setbacks, nothing_starts, write, content, words):
    path = write("wrong.yaml", content)
    line = one_line(setbacks("generate", path))
    for word in [path, *words]:
        assert word in line


def test_a_run_directory_in_place_of_its_configuration(setbacks, nothing_starts, tmp_path):
    (tmp_path / "config.yaml").write_text("run_dir: x\n")
    assert f"is a run directory; give {tmp_path}/config.yaml" in one_line(setbacks("report", str(tmp_path)))


def test_a_directory_or_nothing_in_place_of_a_configuration(setbacks, nothing_starts, tmp_path):
    assert "is a directory; give a YAML file" in one_line(setbacks("run", str(tmp_path)))
    assert "no such configuration file" in one_line(setbacks("run", str(tmp_path / "none.yaml")))


@pytest.mark.parametrize("command", ["mix", "train", "evaluate"])
def test_a_stage_before_its_turn_names_the_one_before(setbacks, monkeypatch, write, tmp_path, command):
    from contextlib import nullcontext

    machinery = Machinery(session=lambda _run_dir: nullcontext(), check=lambda *_arguments: None)
    monkeypatch.setattr("pipeline.run.Machinery", lambda: machinery)
    monkeypatch.setattr("pipeline.preflight.check_lora", lambda *_arguments: None)
    before = {"mix": "generate", "train": "mix", "evaluate": "train"}[command]
    assert f"run `setbacks {before}` first" in one_line(
        setbacks(command, write("run.yaml", scripted.tree(tmp_path / "run")))
    )


@pytest.mark.parametrize("command", ["report", "show"])
def test_nothing_is_shown_if_nothing_ran(setbacks, nothing_starts, write, tmp_path, command):
    target = (
        write("run.yaml", scripted.tree(tmp_path / "run"))
        if command == "report"
        else tmp_path / "run" / "mistakes"
    )
    one_line(setbacks(command, target))
    assert not (tmp_path / "run").exists()


def test_gpus_are_asked_for_but_there_are_none(setbacks, monkeypatch, write, tmp_path):
    from contextlib import nullcontext

    import ray

    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [{"NodeID": "n", "NodeManagerAddress": "10.0.0.1", "Alive": True, "Resources": {"CPU": 2.0}}],
    )
    monkeypatch.setattr("pipeline.placement.autoscaler", lambda: None)
    monkeypatch.setattr("pipeline.run.Machinery", lambda: Machinery(session=lambda _run_dir: nullcontext()))
    monkeypatch.setattr("pipeline.preflight.check_build", lambda *_arguments: None)
    monkeypatch.setattr("pipeline.preflight.check_lora", lambda *_arguments: None)
    config = write("run.yaml", scripted.tree(tmp_path / "run"))
    assert "engine.actors: generate takes 1 engines with 1 CPU and 1 GPU each" in one_line(
        setbacks("generate", config, "engine.num_gpus=1")
    )
    assert "workers with 1 GPU each, and the Ray cluster (10.0.0.1 (2 CPU)) has room for 0" in one_line(
        setbacks("run", config, "train.use_gpu=true")
    )
    assert not (tmp_path / "run" / "config.yaml").exists()
