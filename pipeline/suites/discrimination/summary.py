"""The numbers of the discrimination suite: means of the three ratings, their paired differences, verdicts.

A rating that is missing leaves the instruction out of the mean and the differences that need it, and of no
other.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.numbers import NO_MEANS, Means, Rows, counted, means
from pipeline.report.summary import RESAMPLES, Difference, Mean, Rate, arm_order, mean_of, paired
from pipeline.schema import FAILED, OK

GENERATION, UNGUIDED, GUIDED = "generation", "unguided", "guided"
RATINGS = {GENERATION: "harmless_rating", UNGUIDED: "rating_unguided", GUIDED: "rating_guided"}
VERDICTS = {UNGUIDED: "verdict_unguided", GUIDED: "verdict_guided"}
# What is compared with what, on the same instructions.
COMPARED = ((GUIDED, GENERATION), (UNGUIDED, GENERATION), (GUIDED, UNGUIDED))
SCALE = (1.0, 10.0)
_Counted = list[tuple[dict, int]]  # different rows, and how many there are of each


@dataclass(frozen=True)
class RatingsRow:
    """One arm's mean ratings. Every instruction weighs the same, whatever its number of samples."""

    arm: str
    means: dict[str, Mean]  # by the names of RATINGS
    missing: dict[str, int]  # answers with a text whose rating is missing, by the same names
    answers: int  # failed ones included
    empty: int
    cut: int  # with a text that ended at max_tokens: the answer or an analysis
    failed: int


@dataclass(frozen=True)
class VerdictsRow:
    """The verdicts of one arm's analyses of one mode, against the judge's verdict on the answer."""

    arm: str
    mode: str
    right: Rate  # among answers with both verdicts
    on_harmful: Rate  # of the answers that the judge calls harmful
    on_harmless: Rate  # of those that it calls harmless
    unread: int  # analyses without a verdict of their own, of answers that have the judge's


def ratings(answers: Rows, arms: Sequence[str] = ()) -> list[RatingsRow]:
    """One row per arm: vanilla, then `arms` in their order, then any others."""
    groups = _by_arm(answers, arms, "status", "empty", "cut", *RATINGS.values())
    rated = _means(answers)
    return [
        _ratings_row(arm, rows, {name: of.get((arm,), NO_MEANS) for name, of in rated.items()})
        for arm, rows in groups.items()
    ]


def _ratings_row(arm: str, rows: _Counted, rated: Mapping[str, Means]) -> RatingsRow:
    answered = [(row, n) for row, n in rows if row["status"] == OK]
    with_text = [(row, n) for row, n in answered if not row["empty"]]
    return RatingsRow(
        arm,
        means={name: mean_of(of.values, SCALE) for name, of in rated.items()},
        missing={
            name: sum(n for row, n in with_text if row[column] is None) for name, column in RATINGS.items()
        },
        answers=sum(n for _, n in rows),
        empty=sum(n for _, n in answered) - sum(n for _, n in with_text),
        cut=sum(n for row, n in answered if row["cut"]),
        failed=sum(n for row, n in rows if row["status"] == FAILED),
    )


def differences(
    answers: Rows, arms: Sequence[str] = (), *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[Difference]]:
    """Arm → its differences (COMPARED) over the instructions that have both ratings; wins are `better`."""
    found, rated = {}, _means(answers)
    for arm in _by_arm(answers, arms):
        of = {name: one.get((arm,), NO_MEANS) for name, one in rated.items()}
        options = {"seed": seed, "resamples": resamples}
        of_arm = [paired(one, other, of[one], of[other], **options) for one, other in COMPARED]
        found[arm] = [difference for difference in of_arm if difference is not None]
    return found


def verdicts(answers: Rows, arms: Sequence[str] = ()) -> list[VerdictsRow]:
    """One row per arm and mode of analysis."""
    return [
        _verdicts_row(
            arm, mode, [(row["harmful"], row[column], n) for row, n in rows if row["harmful"] is not None]
        )
        for arm, rows in _by_arm(answers, arms, "harmful", *VERDICTS.values()).items()
        for mode, column in VERDICTS.items()
    ]


def _verdicts_row(arm: str, mode: str, pairs: list[tuple[bool, bool | None, int]]) -> VerdictsRow:
    read = [(judge, own, n) for judge, own, n in pairs if own is not None]
    return VerdictsRow(
        arm,
        mode,
        right=Rate.counted((judge == own, n) for judge, own, n in read),
        on_harmful=Rate.counted((own, n) for judge, own, n in read if judge),
        on_harmless=Rate.counted((not own, n) for judge, own, n in read if not judge),
        unread=sum(n for _, own, n in pairs if own is None),
    )


def _by_arm(answers: Rows, arms: Sequence[str], *columns: str) -> dict[str, _Counted]:
    groups = defaultdict(list)
    for row, n in counted(answers, ["arm", *columns]):
        groups[row["arm"]].append((row, n))
    return {arm: groups[arm] for arm in sorted(groups, key=arm_order(arms))}


def _means(answers: Rows) -> dict[str, dict[tuple, Means]]:
    """Rating → arm → the means over the samples of every instruction that have it."""
    return {name: means(answers, ["arm"], column, float, only={}) for name, column in RATINGS.items()}
