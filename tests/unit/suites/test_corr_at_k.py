"""C²-Eval's numbers against tables worked out by hand."""

import time

import numpy as np
import pytest

from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.course_correction.summary import pairs_by_gap, requests_summary
from pipeline.report.summary import bootstrap
from pipeline.schema import PREFERENCES
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.c2_eval.summary import corr_summary

YES, NO, UNREADABLE = True, False, None


def row(entry, k, verdicts, arm="vanilla", **values):
    names = {
        "id": f"{entry}-{arm}-{k}",
        "instruction_id": entry,
        "arm": arm,
        "k": k,
        "instruction": "How?",
        "status": "ok",
    }
    reasons = ["length"] * len(verdicts or ())
    return {
        **names,
        "paths": ["Text."] * len(verdicts or ()),
        "corrected": verdicts,
        "finish_reasons": reasons,
        **values,
    }


def failed(entry, k, arm="vanilla"):
    return row(entry, k, None, arm, finish_reasons=[], status="failed", error="prompt too long: 9 tokens")


def summary(rows, arms=(), **settings):
    return corr_summary(CONTINUATIONS.table(rows), arms, **{"resamples": 400, **settings})


BY_HAND = [
    row("a", 10, [YES, YES, NO, NO]),  # 2/4
    row("a", 20, [YES, NO, NO, NO]),  # 1/4
    row("b", 10, [YES, UNREADABLE, UNREADABLE, UNREADABLE]),  # 1/1
    row("b", 20, [UNREADABLE] * 4),  # left out
    failed("c", 10),  # left out
    row("c", 20, [NO, NO, NO, NO]),  # 0/4
]


def test_corr_at_k_by_hand():
    [arm] = summary(BY_HAND).arms
    assert arm.at[10].value == (2 / 4 + 1 / 1) / 2 == 0.75
    assert arm.at[20].value == (1 / 4 + 0 / 4) / 2 == 0.125
    assert arm.mean.value == (0.75 + 0.125) / 2 == 0.4375
    assert (arm.at[10].entries, arm.at[10].left_out) == (2, 1) == (arm.at[20].entries, arm.at[20].left_out)
    assert (arm.mean.entries, arm.mean.left_out) == (1, 2), "only a has a verdict at every k"


def test_everything_is_counted():
    dropped = {
        "instruction_id": "d",
        "id": "d",
        "status": "dropped",
        "error": "unsafe response has 41 words: too short",
        "instruction": "?",
    }
    rows = [
        *BY_HAND,
        dropped,
        {**dropped, "id": "e", "instruction_id": "e", "error": "unsafe response has 7 words: too short"},
    ]
    found = summary(rows)
    assert (found.entries, found.dropped, found.lengths) == (5, {"unsafe response has n words": 2}, [10, 20])
    assert found.failures == {"prompt too long": 1}
    [arm] = found.arms
    assert (arm.failed, arm.paths, arm.unreadable) == (1, 5 * 4, 3 + 4)


def test_only_the_paths_ends_count_as_cut():
    judged = row(
        "a", 10, [YES, NO], finish_reasons=["stop", "length", "length", "length"]
    )  # two paths, then the judge's two calls
    assert summary([row("b", 10, None, finish_reasons=["length"]), judged]).arms[0].cut == 1


def test_the_interval_matches_every_resample_of_two_entries():
    """Of two entries there are four resamples: both twice 1/4 each, mixed 1/2.

    The outer values lie beyond 2.5 %, so they are the interval.
    """
    rows = [row("a", 10, [YES] * 4), row("a", 20, [NO] * 4), row("b", 10, [NO] * 4), row("b", 20, [YES] * 4)]
    [arm] = summary(rows).arms
    assert arm.at[10].interval == arm.at[20].interval == (0, 1)
    assert arm.mean.interval == (0.5, 0.5), "an entry is drawn with all its k: what one loses the other gains"


def test_the_interval_has_the_width_of_the_mean_of_many_entries():
    rows = [row(str(i), 10, [YES] * (i % 5) + [NO] * (4 - i % 5)) for i in range(200)]
    corr = summary(rows, resamples=10_000).arms[0].at[10]
    deviation = np.std([i % 5 / 4 for i in range(200)]) / 200**0.5
    assert corr.value == 0.5
    assert corr.interval == pytest.approx((0.5 - 1.96 * deviation, 0.5 + 1.96 * deviation), abs=0.003)


def test_a_mean_over_lengths_of_which_one_was_never_judged_is_none():
    [arm] = summary([row("a", 10, [YES]), failed("a", 20)]).arms
    assert (arm.at[10].value, arm.at[20].value, arm.mean.value, arm.mean.interval) == (1, None, None, None)


def test_differences_are_over_the_entries_both_have():
    rows = [row("a", 10, [NO, NO]), row("a", 10, [YES, YES], "dpo")]  # +1
    rows += [row("b", 10, [YES, NO]), row("b", 10, [YES, YES], "dpo")]  # +1/2
    rows += [row("c", 10, [YES, YES]), failed("c", 10, "dpo"), row("d", 10, [NO, NO], "dpo"), failed("d", 10)]
    mean, at_10 = summary(rows).differences
    assert (mean.arm, mean.baseline, mean.k, at_10.k) == ("dpo", "vanilla", None, 10)
    assert mean.difference == at_10.difference == (1 + 1 / 2) / 2
    assert (
        (mean.n, mean.better, mean.worse, mean.same)
        == (2, 2, 0, 0)
        == (at_10.n, at_10.better, at_10.worse, at_10.same)
    )
    assert mean.interval == (0.5, 1) and not mean.distinguishable, "two entries tell nothing apart"


def test_an_entry_whose_gains_and_losses_cancel_is_the_same():
    vanilla, dpo = (0.1, 0.1, 0.3), (0.1, 0.2, 0.2)  # 0 +0.1 −0.1: 3e-17 in floating point
    shares = {"vanilla": vanilla, "dpo": dpo}
    rows = [
        row("a", k, [YES] * round(10 * p) + [NO] * round(10 - 10 * p), arm)
        for arm in shares
        for k, p in enumerate(shares[arm], 1)
    ]
    mean, first, *_ = summary(rows).differences
    assert (mean.better, mean.worse, mean.same) == (0, 0, 1) and mean.difference == pytest.approx(
        0, abs=1e-12
    )
    assert (first.k, first.better, first.same) == (1, 0, 1)


def test_six_entries_that_all_gain_tell_arms_apart():
    def rows(n):
        return [
            row(str(i), 10, verdict, arm)
            for i in range(n)
            for arm, verdict in (("vanilla", [NO]), ("dpo", [YES]))
        ]

    assert (
        summary(rows(6)).differences[0].distinguishable
        and not summary(rows(5)).differences[0].distinguishable
    )


def test_arms_stand_in_order_and_without_vanilla_there_is_no_difference():
    rows = [row("a", 10, [YES], arm) for arm in ("given", "b", "vanilla", "a")]
    assert [arm.arm for arm in summary(rows, ["b", "given"]).arms] == ["vanilla", "b", "given", "a"]
    assert summary(rows[:2]).differences == []


def test_the_same_seed_gives_the_same_and_another_seed_another_interval():
    rows = [row(str(i), 10, [YES] * (i % 7) + [NO] * 7) for i in range(40)]
    assert summary(rows, seed=3) == summary(rows, seed=3)
    assert summary(rows, seed=3).arms[0].mean.interval != summary(rows, seed=4).arms[0].mean.interval


@pytest.mark.parametrize(
    "rows",
    [[], [failed("a", 10)], [{"id": "a", "instruction_id": "a", "status": "dropped", "error": "too short"}]],
)
def test_nothing_judged_is_none_and_not_zero(rows):
    found = summary(rows)
    assert all(arm.mean.value is None for arm in found.arms) and not found.differences


def test_a_missing_value_is_left_out_of_its_columns_mean():
    drawn = bootstrap([[1, 0.5], [1, np.nan]], seed=0, resamples=200)
    assert (drawn[:, 0] == 1).all()
    assert set(drawn[~np.isnan(drawn[:, 1]), 1]) == {0.5}
    assert 20 < np.isnan(drawn[:, 1]).sum() < 80, "a quarter of the resamples draws the second row twice"


def test_ten_thousand_resamples_of_four_hundred_entries_take_seconds():
    values = np.random.default_rng(0).integers(0, 21, size=(400, 16)) / 20
    started = time.monotonic()
    assert bootstrap(values, seed=0).shape == (10_000, 16)
    assert time.monotonic() - started < 10


def test_requests_and_pairs_by_hand():
    rows = [
        {"id": "1", "status": "ok", "lost": [], "completion_tokens": 90},
        {
            "id": "2",
            "status": "ok",
            "lost": ["rank 3: does not correct course", "rank 5: does not correct course"],
        },
        {"id": "3", "status": "ok", "lost": ["rank 3: does not correct course"], "completion_tokens": 10},
        {"id": "4", "status": "dropped", "error": "no keyword"},
        {"id": "5", "status": "failed", "error": "prompt too long: 7"},
    ]
    found = requests_summary(CORRECTIONS.table(rows))
    assert (found.rows, found.ok, found.dropped, found.failed, found.complete, found.completion_tokens) == (
        5,
        3,
        1,
        1,
        1,
        100,
    )
    assert found.lost == {"rank 3: does not correct course": 2, "rank 5: does not correct course": 1}
    assert found.reasons == {"no keyword": 1, "prompt too long": 1}
    pairs = [
        {"id": f"{a}{b}", "rank_chosen": a, "rank_rejected": b} for a in (1, 2, 6) for b in (2, 6) if a < b
    ]
    assert list(pairs_by_gap(PREFERENCES.table(pairs)).items()) == [(5, 1), (4, 1), (1, 1)]
