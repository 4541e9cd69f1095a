"""Settings of several methods that say the same thing otherwise, and of a second fine-tuning."""

import json

from pipeline.commands.report import write_report
from pipeline.commands.report_settings import settings
from pipeline.config import Config
from tests import scripted
from tests.unit.commands.reports import no_figures, write_answers

TRAIN, DETAILED = {"path": "toy:harmful-train"}, {"path": "toy:detailed-train"}


def told(config: Config) -> dict[str, str]:
    [(_, rows)] = settings(config).tables[0].groups
    return {key.text: value.text for key, value in rows}


def tree(second: dict, **changes) -> dict:
    methods = {
        "mistakes": {"name": "mistake_analysis", "instructions": TRAIN},
        "revisions": {"name": "critique_revise", "instructions": second},
    }
    return scripted.tree("unused", methods=methods, arms={"sft": {"kinds": ["safe"]}}, **changes)


def test_sources_of_methods_are_all_told_if_they_differ():
    found = told(Config.model_validate(tree(DETAILED)))
    assert found["Instructions"] == "toy:harmful-train"
    assert found["Instructions, revisions"] == "toy:detailed-train"
    assert "Instructions, revisions" not in told(Config.model_validate(tree(TRAIN)))


def test_the_second_fine_tuning_is_among_the_settings():
    again = {"data": {"path": "toy:helpful-train"}, "steps": [0, 5], "learning_rate": 1e-3, "batch_size": 4}
    found = told(Config.model_validate(tree(TRAIN, durability=again)))
    assert found["Second fine-tuning"] == (
        "toy:helpful-train; after 0, 5 steps, learning rate 0.001, constant, batch 4"
    )
    assert "Second fine-tuning" not in told(Config.model_validate(tree(TRAIN)))


def test_a_second_fine_tuning_is_not_called_longer_for_equal_steps(tmp_path, monkeypatch):
    """Older versions wrote the steps of one epoch beside those that were taken."""
    no_figures(monkeypatch)
    write_answers(tmp_path)
    again = {"data": {"path": "toy:helpful-train"}, "steps": [5], "arms": ["sft"]}
    suites = {"safety": {"harmful": {"path": "toy:harmful"}, "harmless": {"kind": "refusal"}}}
    given = tree(TRAIN, durability=again) | {"run_dir": str(tmp_path), "suites": suites}
    lines = [
        {"stage": "train", "arm": arm, "steps": 5, "own_steps": 2, "own_epochs": 1.0, "seconds": 1.0}
        for arm in ("sft", "sft_after_5")
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report(Config.model_validate(given), str(tmp_path))
    page = (tmp_path / "report.md").read_text()
    assert "sft (2 steps in its 1 epochs)" in page and "sft_after_5 (2 steps" not in page
