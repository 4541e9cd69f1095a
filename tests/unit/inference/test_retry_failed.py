"""`--retry-failed` asks again only what failed: a row whose judge failed keeps its answer."""

import pytest

from pipeline.errors import RowFailed
from tests.unit.inference.test_passes import BASE, GUARD, LOCAL, SERVER, Killed, cluster, rows, run, settings

__all__ = ["cluster"]  # a fixture


def odd(text: str) -> bool:
    return text.count("e") % 2 == 1


def fails(text: str) -> RowFailed | str:
    return RowFailed("no answer from the judge") if odd(text) else "safe"


@pytest.fixture(params=[LOCAL, SERVER], ids=["local", "server"])
def named(request):
    return request.param


@pytest.fixture
def broken(cluster, tmp_path, named):
    """An evaluation whose judge failed on some rows: its configuration, and how many failed."""
    made = settings(tmp_path / "run", named, safety={"harmful": {"path": "toy:harmful-heldout", "limit": 9}})
    good = cluster.guard.answer
    cluster.guard.answer = fails
    run(cluster, made, "evaluate")
    cluster.guard.answer = good
    failed = sum(row["status"] == "failed" for row in rows(made))
    assert 0 < failed < 9
    for one in (cluster.base.asked, cluster.guard.asked, cluster.starts):
        one.clear()
    return made, failed


def whole(cluster, tmp_path, named):
    made = settings(
        tmp_path / "whole", named, safety={"harmful": {"path": "toy:harmful-heldout", "limit": 9}}
    )
    run(cluster, made, "evaluate")
    return rows(made)


def test_the_judge_alone_is_asked_again(cluster, broken, named):
    made, failed = broken
    kept = {row["id"]: row for row in rows(made) if row["status"] == "ok"}
    told = run(cluster, made, "evaluate", retry_failed=True)
    assert f"evaluate: rerunning {failed} failed rows" in told
    assert len(cluster.guard.asked) == failed and not cluster.base.asked
    if named is LOCAL:
        assert cluster.starts == [GUARD], "the engine of the answers is not started"
    after = rows(made)
    assert {row["status"] for row in after} == {"ok"}
    assert {row["id"]: row for row in after if row["id"] in kept} == kept


def test_the_retried_rows_are_those_of_a_judge_that_never_failed(cluster, broken, named, tmp_path):
    """Tokens and endings of the answers are counted as if they had been asked for now."""
    cluster.guard.answer = lambda _text: "safe"
    made, _ = broken
    run(cluster, made, "evaluate", retry_failed=True)
    assert rows(made) == whole(cluster, tmp_path, named)


def test_what_fails_again_can_be_retried_again(cluster, broken):
    made, failed = broken
    cluster.guard.answer = fails
    run(cluster, made, "evaluate", retry_failed=True)
    assert sum(row["status"] == "failed" for row in rows(made)) == failed
    cluster.guard.answer = lambda _text: "safe"
    run(cluster, made, "evaluate", retry_failed=True)
    assert not cluster.base.asked and {row["status"] for row in rows(made)} == {"ok"}


def test_a_retry_that_is_killed_is_resumed_without_the_answers(cluster, broken):
    made, _ = broken
    cluster.guard.dies_after = 1
    with pytest.raises(Killed):
        run(cluster, made, "evaluate", retry_failed=True)
    cluster.guard.dies_after = None
    run(cluster, made, "evaluate")
    assert not cluster.base.asked and {row["status"] for row in rows(made)} == {"ok"}


def test_an_answer_that_failed_is_asked_for_again(cluster, tmp_path):
    made = settings(tmp_path / "run")
    good = cluster.base.answer
    cluster.base.answer = lambda text: (
        RowFailed("engine returned 0 of 1 samples") if odd(text) else good(text)
    )
    run(cluster, made, "evaluate")
    failed = sum(row["status"] == "failed" for row in rows(made))
    cluster.base.answer = good
    for one in (cluster.base.asked, cluster.guard.asked, cluster.starts):
        one.clear()
    run(cluster, made, "evaluate", retry_failed=True)
    assert 0 < failed == len(cluster.base.asked) == len(cluster.guard.asked)
    assert cluster.starts == [BASE, GUARD]


def test_overwrite_forgets_what_failed_rows_have_answered(cluster, broken, named):
    made, _ = broken
    run(cluster, made, "evaluate", overwrite=True)
    assert len(cluster.base.asked) == 9


def test_a_file_of_answered_calls_that_cannot_be_read_costs_work_and_no_row(cluster, broken, tmp_path):
    made, failed = broken
    files = sorted((tmp_path / "run/.state/evaluation").glob("failed-*/*.calls"))
    assert files
    for file in files:
        file.write_bytes(file.read_bytes()[:10])
    run(cluster, made, "evaluate", retry_failed=True)
    assert len(cluster.base.asked) == failed and {row["status"] for row in rows(made)} == {"ok"}
