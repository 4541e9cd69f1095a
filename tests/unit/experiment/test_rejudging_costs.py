"""Re-judging asks a judge once per answer and the model of the answers not at all."""

import pytest

from pipeline.run import Run
from tests.unit.inference.test_passes import BASE, GUARD, LOCAL, cluster, run, settings

__all__ = ["cluster"]  # a fixture


@pytest.mark.parametrize("n", [40])
def test_rejudging_asks_the_judge_once_per_answer_and_generates_none(cluster, tmp_path, n):
    harmful = {"harmful": {"path": "toy:harmful-train", "limit": n}, "harmless": {"kind": "refusal"}}
    run(cluster, settings(tmp_path / "run", safety=harmful), "evaluate")
    assert (len(cluster.base.asked), len(cluster.guard.asked)) == (n, 0)
    for one in (cluster.base.asked, cluster.starts):
        one.clear()
    judged = settings(
        tmp_path / "run",
        LOCAL,
        safety={**harmful, "more_judges": {"g": {"kind": "llama_guard", "model": "guard"}}},
    )
    run(cluster, judged, "rejudge")
    assert (len(cluster.base.asked), len(cluster.guard.asked)) == (0, n)
    assert cluster.starts == [GUARD] and BASE not in cluster.starts
    [store] = Run(judged).verdicts.values()
    assert len(list(store.dataset.rows())) == n
