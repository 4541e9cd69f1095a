"""A model of a hub is the same in every process of a run, and when the run goes on after a push."""

import pickle

import pytest

from pipeline import models
from pipeline.settings.base import Model

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache whose `main` is moved by `hub(commit)`."""
    repository = tmp_path / "models--org--model"

    def move(commit: str) -> None:
        (repository / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    move(FIRST)
    return move


def test_a_push_in_mid_run_changes_nothing(hub, tmp_path):
    model, run = Model(path="org/model"), str(tmp_path / "run")
    assert models.pinned(model, run).revision == FIRST
    hub(SECOND)
    assert models.pinned(model, run).revision == FIRST
    assert models.pinned(model, str(tmp_path / "another")).revision == SECOND
    assert models.pinned(model, run, anew=True).revision == SECOND
    assert models.pinned(model, run).revision == SECOND


def test_finished_outputs_stay_valid(hub, tmp_path):
    model = Model(path="org/model")
    pinned = models.pinned(model, str(tmp_path / "run"))
    assert pinned.identity() == model.identity() and pinned.identity()["revision"] is None
    assert pickle.loads(pickle.dumps(pinned)).identity() == model.identity(), "workers see the same"
    assert pickle.loads(pickle.dumps(pinned)).revision == FIRST


def test_what_is_on_this_disk_or_not_in_the_cache_stays_as_it_is(hub, tmp_path):
    run = tmp_path / "run"
    for model in (Model(path="toy"), Model(path=str(tmp_path)), Model(path="org/other")):
        assert models.pinned(model, str(run)) == model
    assert not run.exists()
