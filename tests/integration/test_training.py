"""The real trainer: Ray Train, TRL and PEFT on a tiny random model; what a killed worker or driver costs is
nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.runtime.attempt import Attempt
from tests import tiny

ARM = "mistake_analysis"
ARMS = ("sft", ARM)  # of one worker group


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("training")
    tiny.save(root / "model")
    tiny.write(root / "sft", [*tiny.rows(150), {"id": "long", "kind": "safe", "messages": too_long()}])
    pairs = [row for row in tiny.preferences(24) if row["rank_rejected"] - row["rank_chosen"] >= 4]
    tiny.write_preferences(root / "pairs", pairs)
    return root


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def too_long() -> list[dict]:
    return [{"role": "user", "content": "cake " * 200}, {"role": "assistant", "content": "sure"}]


def config(place: Path, **train) -> Config:
    defaults = {
        "workers": 2,
        "epochs": 6,
        "batch_size": 16,
        "max_length": 160,
        "save_steps": 3,
        "log_steps": 2,
    }
    return tiny.config(str(place / "model"), **defaults | train)


def train(place: Path, name: str, on_progress=None, arms: tuple[str, ...] = (ARM,), **changes) -> dict:
    return _train(config(place, **changes), place, "sft", name, on_progress, arms)


def _train(config: Config, place: Path, examples: str, name: str, on_progress, arms: tuple[str, ...]) -> dict:
    """Train arms in one worker group; returns the figures of the last one. on_progress takes every log line,
    with its arm."""
    from pipeline.training.arm import Places, Training

    last, figures = arms[-1], {}
    names = {arm: name if arm == last else f"{name}-{arm}" for arm in arms}
    places = [
        (
            tiny.spec(config, arm),
            Places(
                Dataset.at(str(place / examples)), str(place / "adapter" / own), str(place / "state" / own)
            ),
        )
        for arm, own in names.items()
    ]
    with Training(places, str(place / "checkpoints" / name)) as training:
        for arm in arms:
            figures = training.result(
                arm, lambda line, arm=arm: on_progress and on_progress({"arm": arm, **line})
            )
    return figures


def weights(place: Path, name: str) -> bytes:
    return (place / "adapter" / name / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(place, cluster) -> dict:
    lines = []
    figures = train(place, "undisturbed", lines.append, ARMS)
    for arm, name in (("sft", "undisturbed-sft"), (ARM, "undisturbed")):
        assert [line["step"] for line in lines if line["arm"] == arm] == [
            line["step"] for line in metrics(place, name)
        ]
    assert [line["arm"] for line in lines] == sorted((line["arm"] for line in lines), reverse=True), (
        "one after the other"
    )
    return figures


def metrics(place: Path, name: str) -> list[dict]:
    return [
        json.loads(line) for line in (place / "adapter" / name / "metrics.jsonl").read_text().splitlines()
    ]


def test_the_adapter_directory(place, undisturbed):
    from peft import AutoPeftModelForCausalLM

    out = place / "adapter" / "undisturbed"
    assert undisturbed["examples"] == 150 and undisturbed["kinds"] == {
        "analysis": 50,
        "safe": 50,
        "helpful": 50,
    }
    assert undisturbed["dropped"] == 1 and undisturbed["drop_reasons"] == {"too_long": 1}
    lines = metrics(place, "undisturbed")
    assert lines[-1]["loss"] == undisturbed["final_loss"] < lines[0]["loss"] - 0.1
    assert lines[-1]["step"] == undisturbed["steps"] and lines[-1]["tokens"] == undisturbed["tokens"]
    assert lines[-1]["epoch"] == pytest.approx(6, abs=0.5)
    assert list(out.glob("events.out.tfevents.*")) and (out / "chat_template.jinja").exists()
    card = (out / "README.md").read_text()
    assert "| analysis | 50 |" in card and "1 too long" in card and "rank: 4" in card
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)


def assert_undisturbed(place: Path, name: str) -> None:
    """Both arms, byte for byte."""
    for suffix in ("-sft", ""):
        assert weights(place, f"{name}{suffix}") == weights(place, f"undisturbed{suffix}")


def test_a_worker_killed_in_the_second_arm_costs_nothing(place, undisturbed):
    at = random.randint(3, undisturbed["steps"] - 6)
    killed, arms = [], []

    def kill_once(line: dict) -> None:
        arms.append(line["arm"])
        if line["arm"] == ARM and line["step"] >= at and not killed:
            killed.append(random.choice(worker_pids()))
            os.kill(killed[0], signal.SIGKILL)

    figures = train(place, "worker_killed", kill_once, ARMS)
    assert killed, f"no worker was killed from step {at}"
    assert figures["final_loss"] == undisturbed["final_loss"]
    assert_undisturbed(place, "worker_killed")
    assert [line["step"] for line in metrics(place, "worker_killed")] == [
        line["step"] for line in metrics(place, "undisturbed")
    ]
    assert arms.count("sft") == len(metrics(place, "undisturbed-sft")), "the first arm was not trained again"


def test_a_driver_killed_in_the_second_arm_costs_nothing(place, undisturbed):
    """`train` in a process of its own that kills itself in the second arm; then here, a second attempt from
    the state that it left.

    Workers outlive their driver for a moment, and go on writing where only the first attempt writes.
    """
    script = f"""
import os, ray
from pathlib import Path
from pipeline.runtime.attempt import Attempt
from tests.integration.test_training import ARM, ARMS, train
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
with Attempt({str(place / "attempted")!r}, ["train"]):
    train(Path({str(place)!r}), "driver_killed", lambda line: (
        line["arm"] == ARM and line["step"] >= 8 and os.kill(os.getpid(), 9)), ARMS)
"""
    root = Path(__file__).parents[2]
    driver = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=200
    )
    assert driver.returncode == -signal.SIGKILL
    assert (place / "adapter" / "driver_killed-sft").exists(), "published while the second arm was trained"
    assert not (place / "adapter" / "driver_killed").exists()
    seen, checkpoints = [], place / "checkpoints" / "driver_killed"
    assert [path.name for path in checkpoints.iterdir()] == ["0001-1"]

    def note(line: dict) -> None:
        seen.append((line["arm"], line["step"]))
        assert (checkpoints / "0002-1" / "resumed" / "trainer_state.json").exists()

    with Attempt(str(place / "attempted"), ["train"]):
        figures = train(place, "driver_killed", note, ARMS)
    # Resumed, not begun again. The workers outlive their driver for a moment: they may have come to the end,
    # and nothing was left to do.
    assert {arm for arm, _ in seen} <= {ARM} and all(step > 3 for _, step in seen)
    assert figures["final_loss"] == undisturbed["final_loss"]
    assert_undisturbed(place, "driver_killed")


def test_one_worker_sees_the_same_batches_and_stale_state_is_not_resumed(place, undisturbed):
    """One worker where two were, with the merged weights; in a state directory left by another learning
    rate."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    stale = place / "state" / "one_worker" / "0123456789abcdef"
    stale.mkdir(parents=True)
    with pytest.raises(UserError, match="holds an unfinished training under other settings"):
        train(place, "one_worker", workers=1, merge=True)
    stale.rmdir()  # still there
    figures = train(place, "one_worker", workers=1, merge=True)
    assert figures["final_loss"] == pytest.approx(undisturbed["final_loss"], abs=1e-4)
    out = place / "adapter" / "one_worker"
    ids = torch.tensor([[5, 6, 7, 8]])
    adapted, merged = (
        AutoPeftModelForCausalLM.from_pretrained(out),
        AutoModelForCausalLM.from_pretrained(out / "merged"),
    )
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


# -- preference training: a curriculum of two runs, continuing another adapter


def prefer(place: Path, name: str, on_progress=None, **changes) -> dict:
    settings = {
        "method": "dpo",
        "curriculum": "staged",
        "epochs": 2,
        "batch_size": 8,
        "pairs_per_device": 4,
        "max_length": 160,
    }
    start = {"adapter": str(place / "adapter" / "undisturbed")}
    config_ = config(place, start=start, learning_rate=1e-2, **settings | changes)
    return _train(config_, place, "pairs", name, on_progress, ("dpo",))


@pytest.fixture(scope="module")
def preferred(place, undisturbed) -> dict:
    return prefer(place, "preferred")


def test_preference_training_goes_through_its_curriculum(place, preferred):
    lines = metrics(place, "preferred")
    assert preferred["kinds"] == {"gap 4": 48, "gap 5": 24} and preferred["examples"] == 72
    assert [(line["iteration"], line["step"], line["steps"]) for line in lines] == [
        *((1, step, 18) for step in (2, 3, 4, 6)),
        *((2, step, 18) for step in (8, 9, 10, 12, 14, 15, 16, 18)),
    ]
    assert [line["tokens"] for line in lines] == sorted({line["tokens"] for line in lines})
    assert lines[3]["rewards/margins"] > 0.01 and lines[3]["rewards/accuracies"] > 0.7
    assert (
        abs(lines[4]["rewards/margins"]) < lines[3]["rewards/margins"]
    )  # the second run's reference is the first's model
    assert (preferred["final_margin"], preferred["final_accuracy"]) == (
        lines[-1]["rewards/margins"],
        lines[-1]["rewards/accuracies"],
    )
    assert all(line["pairs_per_s"] > 0 and line["loss"] > 0 and line["grad_norm"] > 0 for line in lines)
    card = (place / "adapter" / "preferred" / "README.md").read_text()
    assert "| gap 5 | 24 |" in card and "continued from the adapter" in card and "final reward margin" in card
    [kept] = (place / "state" / "preferred").glob("*/done-1/adapter_model.safetensors")
    stage = place / "adapter" / "preferred" / "stage_1" / "adapter_model.safetensors"
    assert stage.read_bytes() == kept.read_bytes() != weights(place, "preferred")
    assert preferred["stages"] == 2 and not (place / "adapter" / "preferred" / "stage_2").exists()


@pytest.mark.long
def test_a_killed_worker_costs_preference_training_nothing(place, preferred):
    """From the state of a driver that was killed after the first run: only the second is trained, and a
    worker killed in it."""
    state = place / "state" / "dpo_killed"
    shutil.copytree(place / "state" / "preferred", state)
    [made] = state.iterdir()
    shutil.rmtree(made / "done-2")
    (made / "reference-2.parquet").unlink()
    at, steps, killed = random.randint(9, preferred["steps"] - 6), [], []

    def kill_once(line: dict) -> None:
        steps.append(line["step"])
        if line["step"] >= at and not killed:
            killed.append(random.choice(worker_pids()))
            os.kill(killed[0], signal.SIGKILL)

    figures = prefer(place, "dpo_killed", kill_once)
    assert killed, f"no worker was killed from step {at}"
    assert min(steps) > 6, "the finished run was run again"
    assert figures["final_loss"] == preferred["final_loss"]
    assert weights(place, "dpo_killed") == weights(place, "preferred")
    measured = {"time", "seconds", "tokens_per_s", "pairs_per_s"}
    runs = [
        [{key: line[key] for key in line.keys() - measured} for line in metrics(place, name)]
        for name in ("dpo_killed", "preferred")
    ]
    assert runs[0] == runs[1]


def test_one_process_learns_what_two_workers_learn(place, preferred, tmp_path):
    """The first run again, here, with all of a step's pairs in one micro-step; and its reference is not
    computed again."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    from pipeline.training import dpo
    from pipeline.training.job import Run, write_table

    [state] = (place / "state" / "preferred").iterdir()
    settings = {
        "method": "dpo",
        "curriculum": "staged",
        "epochs": 2,
        "batch_size": 8,
        "pairs_per_device": 8,
        "learning_rate": 1e-2,
    }
    made = tiny.prepared(config(place, workers=1, **settings), "dpo", Dataset.at(str(place / "pairs")))
    for name, content in made.tables.items():
        write_table(content, str(tmp_path / "set" / f"{name}.parquet"))
    job = tiny.job(
        config(place, workers=1, **settings),
        "dpo",
        str(state),
        1,
        Run(24, 5),
        "x",
        start=str(state / "start"),
        tables=str(tmp_path / "set"),
    )
    trainer = dpo.build(job, str(tmp_path))
    trainer.start_clock()
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "adapter")
    here, there = (
        load_file(place / "adapter_model.safetensors") for place in (tmp_path / "adapter", state / "done-1")
    )
    for name, tensor in here.items():
        assert_close(tensor, there[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_an_adapter_that_does_not_fit_is_one_sentence(place, cluster):
    with pytest.raises(UserError, match=r"train.lora.target_modules = \['no_such'\] does not fit"):
        train(place, "unfit", lora={"target_modules": ["no_such"]})


def worker_pids() -> list[int]:
    """Training workers of the Ray that this process started: children of its raylet."""

    def parent(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])

    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pid = int(process.name)
            if b"RayTrainWorker" in (process / "cmdline").read_bytes() and parent(parent(pid)) == os.getpid():
                found.append(pid)
        except (OSError, IndexError):  # a process that has ended meanwhile
            continue
    return found
