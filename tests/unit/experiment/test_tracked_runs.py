"""What a run reports to its trackers: every arm's training, and results with the masked report."""

from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.data import storage
from pipeline.schema import STAGES
from tests.unit.commands.reports import no_figures


@pytest.fixture
def reported(monkeypatch):
    """Every run that a tracker was told to open, with what it got."""
    runs: list[dict] = []

    class Recorder(tracking.Tracker):
        package = "json"

        def __init__(self, run_dir, name, id, settings):
            self.id = id or str(len(runs))
            got = {"name": name, "id": self.id, "settings": settings, "lines": [], "numbers": {}, "files": {}}
            runs.append(got)
            self.got = got

        def log(self, numbers, step, at):
            self.got["lines"].append((step, numbers))

        def conclude(self, numbers):
            self.got["numbers"] |= numbers

        def attach(self, path):
            self.got["files"][storage.name(path)] = Path(path).read_text()

    monkeypatch.setitem(tracking.TRACKERS, "wandb", Recorder)
    no_figures(monkeypatch)
    return runs


def test_every_arm_is_a_run_and_the_results_are_another(run, reported):
    run(*STAGES, track=["wandb"])
    assert [one["name"] for one in reported] == ["sft", "mistake_analysis", "results"]
    sft, _, results = reported
    assert sft["settings"]["train"]["method"] == "sft" and sft["settings"]["seed"] == 0
    assert sft["numbers"]["training/final_loss"] == 0.5 and sft["numbers"]["training/steps"] == 2
    assert results["numbers"]["safety/plain/harmless/sft"] == 0.0
    assert set(results["files"]) == {"report.html", "results.json"}


def test_no_text_of_a_row_is_reported(run, reported, tmp_path):
    run(*STAGES, track=["wandb"])
    sent = str(reported)
    for text in ("Sure, do it.", "It is harmful."):  # what the scripted model writes as mistake and analysis
        assert text not in sent
    assert "Sure, do it." in (tmp_path / "run" / "report.html").read_text(), "one's own page has it, folded"


def test_an_evaluation_alone_reports_its_numbers(run, reported):
    run("generate", "mix", "train", "evaluate", track=["wandb"])
    assert reported[-1]["name"] == "results" and "report.html" in reported[-1]["files"]
    run("report", track=["wandb"])
    assert reported[-1]["id"] == reported[-2]["id"]


def test_nothing_is_opened_unless_the_configuration_asks(run, reported, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    run(*STAGES)
    assert reported == []


def test_another_tracker_changes_no_fingerprint(run, calls, reported):
    run("generate", "mix", "train", "evaluate")
    before = list(calls)
    run("generate", "mix", "train", "evaluate", track=["wandb"])
    assert list(calls) == before


def test_a_training_that_is_overwritten_is_another_run(run, reported):
    run("generate", "mix", "train", track=["wandb"])
    run("train", overwrite=True, track=["wandb"])
    assert len({one["id"] for one in reported}) == len(reported) == 4
