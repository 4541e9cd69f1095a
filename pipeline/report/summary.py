"""Computes the report's numbers from rows: exact counts and intervals; no engine, no files.

Every rate carries a 95 % Wilson interval, every mean rating a normal interval over instructions, every
difference between two arms a bootstrap interval over the instructions both answered.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.data.store import reason
from pipeline.report.numbers import Means, Rows, counted

if TYPE_CHECKING:
    import numpy as np

Z95 = 1.96
VANILLA = "vanilla"
RESAMPLES = 10_000

# A two-sided sign test over m differing instructions has p >= 2 / 2^m: 0.06 for five, 0.03 for six.
FEWEST_DIFFERING = 6

_DRAWN_AT_ONCE = 2**22  # counts held in memory at once by the bootstrap


def wilson(successes: int, trials: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, JASA 1927). Without trials: (0, 1)."""
    if not trials:
        return 0.0, 1.0
    p, square = successes / trials, z * z
    centre = (p + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * math.sqrt(p * (1 - p) / trials + square / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Rate:
    """A share of counted rows. `value` is None if nothing was counted."""

    successes: int
    trials: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> "Rate":
        outcomes = list(outcomes)
        return cls(sum(outcomes), len(outcomes))

    @classmethod
    def counted(cls, outcomes: Iterable[tuple[bool, int]]) -> "Rate":
        """outcomes: each with how often it occurred."""
        outcomes = list(outcomes)
        return cls(sum(n for outcome, n in outcomes if outcome), sum(n for _, n in outcomes))

    @property
    def value(self) -> float | None:
        return self.successes / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.trials)

    @property
    def n(self) -> int:
        return self.trials


@dataclass(frozen=True)
class Mean:
    """Mean rating over `n` instructions, each the mean of its own samples; interval: mean ± 1.96 s / √n
    within the scale.

    `value` is None if nothing was rated, `interval` if fewer than two instructions were rated.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Difference:
    """A mean of `arm` minus that of `baseline`, over the `n` instructions (or entries) judged for both.

    better, worse, same: number of instructions on which the arm did the wanted thing more, less, or as often.
    """

    arm: str
    baseline: str
    difference: float
    interval: tuple[float, float]
    n: int
    better: int
    worse: int
    same: int

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes zero and enough instructions differ for any test to tell."""
        low, high = self.interval
        return (low > 0 or high < 0) and self.better + self.worse >= FEWEST_DIFFERING


def mean_of(values: "Sequence[float] | np.ndarray", scale: tuple[float, float]) -> Mean:
    """The mean over instructions, or whatever weighs the same, with its normal interval within the scale."""
    n = len(values)
    if not n:
        return Mean(None, None, 0)
    mean = math.fsum(values) / n
    if n == 1:
        return Mean(mean, None, 1)
    half = Z95 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Mean(mean, (max(scale[0], mean - half), min(scale[1], mean + half)), n)


def counts(rows: Rows, column: str) -> dict[str, int]:
    """Rows per value of a column, most frequent first."""
    return tally((row[column], n) for row, n in counted(rows, [column]))


def tally(of: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """The sums of counts by name, the largest first."""
    found: Counter = Counter()
    for name, n in of:
        found[name] += n
    return dict(found.most_common())


def bootstrap(values, seed: int, resamples: int = RESAMPLES):
    """Column means of bootstrap resamples of the rows; a NaN is a missing value, left out of its column's
    mean.

    values: [rows, columns]; returns [resamples, columns], NaN if a resample has no value of a column. Rows
            are drawn with all their columns, so statistics of several columns keep their correlation. Drawing
            n rows with replacement equals drawing how often each distinct row occurs.
    """
    import numpy as np

    values = np.asarray(values, dtype=float)
    known = ~np.isnan(values)
    rows, times = np.unique(
        np.concatenate([np.where(known, values, 0.0), known], axis=1), axis=0, return_counts=True
    )
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, rows.shape[1]))
    step = max(1, _DRAWN_AT_ONCE // len(rows))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        sums[start : start + size] = (
            random.multinomial(len(values), times / len(values), size=size).astype(float) @ rows
        )
    totals, counted = np.hsplit(sums, 2)
    return np.divide(totals, counted, out=np.full_like(totals, np.nan), where=counted > 0)


def percentile_interval(estimates) -> tuple[float, float]:
    """The middle 95 % of bootstrap estimates [resamples]; NaN estimates are ignored."""
    import numpy as np

    low, high = np.nanpercentile(estimates, [2.5, 97.5])
    return float(low), float(high)


def paired(
    arm: str,
    baseline: str,
    ours: Mapping[str, float] | Means,
    theirs: Mapping[str, float] | Means,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Difference | None:
    """The mean of `ours` minus that of `theirs` over the instructions that both have; None if none is shared.

    ours, theirs: instruction id → the mean of the arm's answers, so that every instruction weighs the same.
    The interval is that of the bootstrap over instructions; the same seed gives the same interval.
    """
    import numpy as np

    if isinstance(ours, Means) and isinstance(theirs, Means):
        differences = np.subtract(*ours.both(theirs))
    elif isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        differences = np.array([ours[i] - theirs[i] for i in ours.keys() & theirs.keys()], float)
    if not len(differences):
        return None
    return Difference(
        arm,
        baseline,
        difference=math.fsum(differences) / len(differences),
        interval=percentile_interval(bootstrap(differences[:, None], seed, resamples)[:, 0]),
        n=len(differences),
        better=int((differences > 0).sum()),
        worse=int((differences < 0).sum()),
        same=int((differences == 0).sum()),
    )


def arm_order(arms: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """A sort key for names of arms: vanilla, then `arms` in their order, then any others."""
    known = [VANILLA, *arms]
    return lambda arm: (known.index(arm) if arm in known else len(known), arm)


def reasons(rows: Rows, *status: str) -> dict[str, int]:
    """Kind of error → rows of a status, most frequent first."""
    found = counted(rows, ["status", "error"], error=kind_of_error)
    return tally((row["error"], n) for row, n in found if row["status"] in status)


def kind_of_error(error: str | None) -> str:
    """As `data.store.reason`, also of a row that says none."""
    return reason(error or "no reason given")
