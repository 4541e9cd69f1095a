"""The trainings of a plan: how many, steps and tokens as measured or counted, and no hours without a speed."""

import io
import json

import pytest
from rich.console import Console

from pipeline.commands import trainings
from pipeline.commands.plan import show_plan
from pipeline.commands.trainings import MOST_ROWS, Training
from pipeline.config import Config
from pipeline.schema import SFT
from tests import scripted
from tests.unit.commands.reports import write

ARMS = {"sft": {"kinds": ["safe"]}, "analysis": {"kinds": ["analysis", "safe"]}}
TRAIN = {"epochs": 2, "batch_size": 2, "max_length": 64, "packing": False, "bf16": False}


def config(tmp_path, **changes) -> Config:
    settings = {"instructions": {"path": "toy:harmful-train", "limit": 4}, "arms": ARMS, "train": TRAIN}
    return scripted.config(tmp_path / "run", **(settings | changes))


def planned(config: Config) -> str:
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(config, console=console)
    return console.export_text()


def example(number: int, kind: str) -> dict:
    messages = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "I cannot."}]
    return {"id": f"{kind}-{number}", "instruction_id": f"i{number}", "kind": kind, "messages": messages}


def mixed(tmp_path, safe: int, analysis: int) -> None:
    rows = [example(n, "safe") for n in range(safe)] + [example(n, "analysis") for n in range(analysis)]
    write(tmp_path / "run", SFT, rows)


def measured(tmp_path, **arms: dict) -> None:
    (tmp_path / "run").mkdir(exist_ok=True)
    lines = [{"stage": "train", "arm": arm, **figures} for arm, figures in arms.items()]
    (tmp_path / "run/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_fresh_run_says_how_many_trainings_and_no_hours(tmp_path):
    told = planned(config(tmp_path, train={**TRAIN, "seeds": [0, 1, 2]}))
    assert "6 trainings, one after the other: 2 arms × 3 seeds" in told
    assert "tokens unknown until `mix` has written sft" in told
    assert "h of training" not in told


def test_steps_and_tokens_are_counted_in_the_training_set(tmp_path, monkeypatch):
    """4 safe and 6 analyses, batches of 2, 2 epochs: 10 steps for 10 examples, and as many for 4 (equal steps)."""
    mixed(tmp_path, 4, 6)
    found = {}
    monkeypatch.setattr(trainings, "known", lambda *given: found.update(known(*given)) or found)
    told = planned(config(tmp_path))
    one = found["analysis"].tokens // 20  # of every example the same: 10 examples in 2 epochs
    assert (found["analysis"].steps, found["analysis"].tokens, found["analysis"].origin) == (
        10,
        20 * one,
        "counted",
    )
    assert (found["sft"].steps, found["sft"].tokens) == (10, 20 * one), "2 epochs take 4 steps, 5 epochs 10"
    assert f"sft, analysis: 10 steps and {20 * one:,} tokens (counted); hours unknown until" in told


known = trainings.known


def test_a_measured_training_gives_hours_and_its_speed_to_arms_alike(tmp_path):
    mixed(tmp_path, 4, 6)
    measured(tmp_path, sft={"steps": 10, "tokens": 3_600_000, "tokens_per_s": 500.0})
    told = planned(config(tmp_path))
    assert "sft: 10 steps and 3,600,000 tokens (measured), 2.00 h at 500 measured tokens/s" in told
    assert "analysis: 10 steps and" in told and "(counted), 0.00 h at 500 measured tokens/s" in told
    assert "together 2.00 h of training, starts not counted" in told


def test_every_seed_takes_its_own_time_and_another_methods_speed_is_not_used(tmp_path):
    arms = {
        **ARMS,
        "dpo": {"kinds": ["source"], "train": {"method": "dpo", "pairs_per_device": 2, "batch_size": 2}},
    }
    tree = scripted.tree(tmp_path / "run", arms=arms, train={**TRAIN, "seeds": [3, 4]})
    tree["methods"]["pairs"] = {"name": "source_preferences", "instructions": {"path": "toy:harmful-train"}}
    measured(tmp_path, sft_seed4={"steps": 7, "tokens": 3600, "tokens_per_s": 10.0})
    found = known(Config.model_validate(tree), None)
    assert found["sft"] == Training(2, 7, 3600, "measured", 10.0)
    assert found["sft"].hours == pytest.approx(0.2)
    assert (found["dpo"].trainings, found["dpo"].tokens_per_s, found["dpo"].hours) == (2, None, None)


def test_a_large_training_set_is_not_counted(tmp_path, monkeypatch):
    mixed(tmp_path, 4, 6)
    monkeypatch.setattr(trainings, "MOST_ROWS", 9)
    assert f"not counted, since sft has more than {MOST_ROWS:,} rows".replace("10,000", "9") in planned(
        config(tmp_path)
    )


def test_further_trainings_are_told_and_a_run_without_arms_says_nothing(tmp_path):
    told = planned(config(tmp_path, durability={"data": {"path": "toy:helpful-train"}, "steps": [0, 5, 10]}))
    assert "durability: 6 trainings more, 45 steps in all" in told
    only = {"run_dir": str(tmp_path / "r"), "model": {"path": "toy"}, "arms": {}}
    suites = {
        "safety": {"harmful": {"path": "toy:harmful-heldout", "limit": 1}, "harmless": {"kind": "refusal"}}
    }
    assert "[bold]Training" not in planned(Config.model_validate({**only, "suites": suites}))


def test_the_facts_hold_the_same(tmp_path, capsys):
    measured(tmp_path, sft={"steps": 10, "tokens": 3600, "tokens_per_s": 1.0})
    show_plan(config(tmp_path), as_json=True)
    facts = json.loads(capsys.readouterr().out)["trainings"]
    assert facts["sft"]["hours"] == 1.0 and facts["analysis"]["hours"] is None
