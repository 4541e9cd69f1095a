"""The optimizer steps that a plan foresees before `mix`, and its warning of trainings that teach nothing."""

import io

import pytest
from rich.console import Console

from pipeline.commands import foreseen, trainings
from pipeline.commands.init import PROPOSED, init
from pipeline.commands.plan import show_plan
from pipeline.config import Config, load
from pipeline.schema import SFT
from tests import scripted
from tests.unit.commands.reports import write

TRAIN = {"epochs": 2, "batch_size": 2, "max_length": 512, "packing": False, "bf16": False}
ARMS = {"sft": {"kinds": ["safe"]}, "analysis": {"kinds": ["analysis", "safe"]}}


def config(tmp_path, rows=4, **changes) -> Config:
    """The texts that are sampled are short, unless a test says otherwise."""
    settings = {"instructions": {"path": "toy:harmful-train", "limit": rows}, "arms": ARMS, "train": TRAIN}
    settings["recipe"] = {"induce": {"max_tokens": 20}, "analyse": {"max_tokens": 20}}
    return scripted.config(tmp_path / "run", **(settings | changes))


def planned(config: Config) -> str:
    console = Console(width=300, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(config, console=console)
    return console.export_text()


def test_steps_are_foreseen_before_mix(tmp_path):
    """30 instructions with a safe response and an analysis each: 60 examples, 2 epochs, batches of 2."""
    told = planned(config(tmp_path, 30))
    assert "sft, analysis: about 60 steps, tokens unknown until `mix` has written sft" in told
    assert "WARNING: the training" not in told


def test_packed_sequences_depend_on_lengths_that_are_not_known_yet(tmp_path):
    told = planned(
        config(tmp_path, 30, train={**TRAIN, "packing": True}, recipe={"analyse": {"max_tokens": 200}})
    )
    [line] = [line for line in told.splitlines() if "sft, analysis: about " in line]
    low, high = (int(word) for word in line.partition("about ")[2].split(" steps")[0].split(" to "))
    assert low < high <= 60


def test_the_quickstarts_steps_are_within_what_was_foreseen(tmp_path):
    """A run takes 72 steps an arm (docs/quickstart.md)."""
    told = planned(load("configs/quickstart.yaml", [f"run_dir={tmp_path}/run"]))
    [line] = [line for line in told.splitlines() if ": about " in line]
    low, high = (int(word) for word in line.partition("about ")[2].split(" steps")[0].split(" to "))
    assert low <= 72 <= high < 120


def test_few_steps_are_warned_of_with_the_remedy(tmp_path):
    told = planned(config(tmp_path, 4))
    assert (
        "WARNING: the training of sft, analysis may take only 8 steps, and fewer than 20 teach hardly anything:"
        " raise epochs = 2 or learning_rate = 2e-05, or lower batch_size = 2, in train" in told
    )


def test_counted_steps_are_warned_of_too(tmp_path):
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "I cannot."}]
    rows = [
        {"id": f"{kind}{n}", "instruction_id": f"{n}", "kind": kind, "messages": messages}
        for kind in ("safe", "analysis")
        for n in range(3)
    ]
    write(tmp_path / "run", SFT, rows)
    told = planned(config(tmp_path))
    assert "WARNING: the training of sft, analysis takes only 6 steps" in told and "(counted)" in told


def test_rows_that_are_not_tried_count(tmp_path, monkeypatch):
    monkeypatch.setattr(foreseen, "ROWS", 10)
    assert "about 60 steps" in planned(config(tmp_path, 30))


def test_what_cannot_be_foreseen_is_not_told(tmp_path):
    told = planned(config(tmp_path, model={"path": "org/on-the-hub"}))
    assert "sft, analysis: steps and tokens unknown until `mix` has written sft" in told
    assert "WARNING: the training" not in told


@pytest.mark.parametrize("name", PROPOSED)
def test_what_init_writes_for_the_toy_trains_enough(tmp_path, monkeypatch, name):
    monkeypatch.setattr(foreseen, "ROWS", 40)
    monkeypatch.chdir(tmp_path)
    init("mine.yaml", "toy", None, name, None, 0, None, lambda line: None)
    told = planned(load("mine.yaml"))
    assert "WARNING: the training" not in told
    assert (" steps, tokens unknown" in told) is (name != "course_correction"), (
        "placeholders turn nothing around"
    )


def test_a_training_that_is_finished_is_not_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr(foreseen, "steps", lambda *given: pytest.fail("nothing is to be foreseen"))
    known = {"sft": trainings.Training(1, 72, 100, "measured", 10.0)}
    monkeypatch.setattr(trainings, "known", lambda *given: known)
    assert "sft: 72 steps and 100 tokens (measured)" in planned(config(tmp_path))
