"""Models that stand side by side: one pass, and the rows of models that take turns. No Ray and no engine."""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest

from pipeline.errors import RowFailed, RunFailed
from pipeline.inference.beside import NotOpen
from tests import scripted
from tests.unit.inference.test_passes import BASE, GUARD, LOCAL, cluster, rows, run, settings

__all__ = ["cluster"]  # a fixture


@dataclass(frozen=True)
class Standing:
    """Engines beside the pool. dies_at: the request at which one dies, for the rows that it is answering."""

    fake: object
    dies_at: int | None = None

    def open(self):
        return self

    async def complete(self, prompt, sampling, *, seed, adapter, prefill=True):
        if self.dies_at is not None and len(self.fake.asked) + 1 == self.dies_at:
            self.fake.asked.append(("died", seed, adapter))
            raise NotOpen
        return await self.fake.complete(prompt, sampling, seed=seed, adapter=adapter, prefill=prefill)


@pytest.fixture
def asked_for() -> list[list[str]]:
    """The models for which room was asked, the pool's first."""
    return []


def beside(cluster, asked_for=None, dies_at=None):
    """The cluster, with room for everything."""

    def room(specs):
        if asked_for is not None:
            asked_for.append([spec.model.path for spec in specs])
        return nullcontext({spec: Standing(cluster.guard, dies_at) for spec in specs[1:]})

    cluster.machinery = replace(cluster.machinery, beside=room)


def mistakes(place, named=LOCAL):
    return scripted.config(
        place,
        model={"path": BASE},
        engine={"rows_per_commit": 2},
        models=named,
        instructions={"path": "toy:harmful-train", "limit": 5},
        recipe={"verify": {"kind": "llama_guard", "model": "guard"}, "gates": None},
    )


@pytest.mark.parametrize(
    ("config", "stage", "data"),
    [(settings, "evaluate", "evaluation"), (mistakes, "generate", "mistakes")],
    ids=["evaluate", "generate"],
)
def test_the_rows_are_those_of_models_that_take_turns(cluster, asked_for, tmp_path, config, stage, data):
    run(cluster, config(tmp_path / "turns"), stage)
    turns, requests = list(cluster.starts), (list(cluster.base.asked), list(cluster.guard.asked))
    assert turns[:2] == [BASE, GUARD]
    for one in (cluster.starts, cluster.labels, cluster.base.asked, cluster.guard.asked):
        one.clear()
    beside(cluster, asked_for)
    told = run(cluster, config(tmp_path / "beside"), stage)
    assert asked_for == [[BASE, GUARD]]
    assert cluster.starts == [BASE] and cluster.labels == [stage], "one pass"
    assert rows(config(tmp_path / "beside"), data) == rows(config(tmp_path / "turns"), data)
    for found, before in zip((cluster.base.asked, cluster.guard.asked), requests, strict=True):
        assert sorted(map(str, found)) == sorted(map(str, before)), "the same requests"
    assert f"{stage}: guard beside the other engines, so that no row waits" in told


def test_failures_of_the_judge_are_those_of_a_judge_that_takes_turns(cluster, tmp_path):
    cluster.guard.answer = lambda text: RowFailed("no answer") if len(text) % 2 else "safe"
    run(cluster, settings(tmp_path / "turns"), "evaluate")
    beside(cluster)
    run(cluster, settings(tmp_path / "beside"), "evaluate")
    found = rows(settings(tmp_path / "beside"))
    assert found == rows(settings(tmp_path / "turns")) and {row["error"] for row in found} == {
        None,
        "no answer",
    }


def test_rows_of_an_engine_that_dies_wait_for_a_pass_of_their_own(cluster, tmp_path):
    run(cluster, settings(tmp_path / "turns"), "evaluate")
    answers = len(cluster.base.asked)
    for one in (cluster.starts, cluster.guard.asked):
        one.clear()
    beside(cluster, dies_at=3)
    run(cluster, settings(tmp_path / "beside"), "evaluate")
    assert cluster.starts == [BASE, GUARD], "the pass of the row that the dead engine was answering"
    assert len(cluster.base.asked) == 2 * answers, "no answer is asked for again"
    assert rows(settings(tmp_path / "beside")) == rows(settings(tmp_path / "turns"))


def test_what_was_killed_in_turns_is_resumed_beside_and_the_other_way_round(cluster, tmp_path):
    from tests.unit.inference.test_passes import Killed

    run(cluster, settings(tmp_path / "whole"), "evaluate")
    turns = cluster.machinery
    for first_beside in (False, True):
        config = settings(tmp_path / f"killed-{first_beside}")
        before = len(cluster.base.asked), len(cluster.guard.asked)
        cluster.base.dies_after = before[0] + 3
        if first_beside:
            beside(cluster)
        with pytest.raises(Killed):
            run(cluster, config, "evaluate")
        cluster.base.dies_after, cluster.machinery = None, turns
        if not first_beside:
            beside(cluster)
        run(cluster, config, "evaluate")
        cluster.machinery = turns
        assert rows(config) == rows(settings(tmp_path / "whole"))


def test_rows_that_wait_for_the_judge_alone_start_no_other_engine(cluster, asked_for, tmp_path):
    from tests.unit.inference.test_passes import Killed

    config = settings(tmp_path / "run")
    cluster.guard.dies_after = 0
    with pytest.raises(Killed):
        run(cluster, config, "evaluate")
    cluster.guard.dies_after, cluster.starts[:] = None, []
    beside(cluster, asked_for)
    run(cluster, config, "evaluate")
    assert cluster.starts == [GUARD] and not asked_for


def test_room_is_asked_for_only_if_rows_ask_several_models_of_this_run(cluster, asked_for, tmp_path):
    server = {
        "guard": {"engine": {"kind": "openai", "url": "http://h/v1", "model": "g", "api_key_env": None}}
    }
    beside(cluster, asked_for)
    run(cluster, settings(tmp_path / "server", server), "evaluate")
    run(cluster, settings(tmp_path / "own", safety={"harmless": {"kind": "yes_no_harmful"}}), "evaluate")
    more = {"rated": {"kind": "rating", "model": "guard"}, "own": {"kind": "yes_no_harmful"}}
    config = settings(tmp_path / "own", safety={"harmless": {"kind": "yes_no_harmful"}, "more_judges": more})
    run(cluster, config, "rejudge")
    assert asked_for == [], "rows of `rejudge` ask one judge each"


def test_an_engine_that_does_not_start_is_told_with_its_reason(monkeypatch):
    from ray.exceptions import RayError

    from pipeline.inference import beside as module

    def get(_refs):
        raise RayError(
            "The actor died\n  pipeline.errors.RunFailed: the vLLM engine for x did not start\nmore"
        )

    monkeypatch.setattr("ray.get", get)
    with pytest.raises(RunFailed, match=r"^the vLLM engine for x did not start$"):
        module.Standing([], []).open()
