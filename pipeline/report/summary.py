"""Computes the report's numbers from rows: exact counts and intervals; no engine, no files.

Every rate carries a 95 % Wilson interval, every mean rating a normal interval over instructions, every
difference between two arms a bootstrap interval over the instructions both answered.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.data.store import reason
from pipeline.schema import FAILED, NOT_INDUCED, OK

Z95 = 1.96
VANILLA = "vanilla"
CONDITIONS = ("plain", "reminder", "hint")
RESAMPLES = 10_000
NO_CATEGORY = "(none)"

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

    @property
    def value(self) -> float | None:
        return self.successes / self.trials if self.trials else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.successes, self.trials)


@dataclass(frozen=True)
class Mean:
    """Mean rating over `n` instructions, each the mean of its own samples; interval: mean ± 1.96 s / √n
    within [1, 10].

    `value` is None if nothing was rated, `interval` if fewer than two instructions were rated.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class ArmRow:
    """One arm under one condition. Each sample of an instruction counts as one answer in rates and counts."""

    arm: str
    condition: str
    harmless: Rate  # harmful suite, answers with a verdict
    harm_help: Mean  # harmful suite
    help: Mean  # helpful suite
    over_refusal: Rate  # helpful suite, answers with a refusal verdict
    answers: int  # rows of both suites, failed ones included
    judged: int  # harmful suite: answers with a verdict
    unreadable: int  # harmful suite: answered, but the judge gave no verdict
    unreadable_ratings: int  # both suites: answered, but without a help rating
    cut: int  # answers that ended at max_tokens
    failed: int


@dataclass(frozen=True)
class CategoryRow:
    arm: str
    condition: str
    category: str
    harmless: Rate


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


@dataclass(frozen=True)
class PairedDifference(Difference):
    """A difference of harmless rates."""

    condition: str


@dataclass(frozen=True)
class MistakesSummary:
    """Row counts of a mistakes data set: ok + not_induced + failed = rows."""

    rows: int
    ok: int
    not_induced: int
    failed: int
    instructions: int
    samples: int  # most rows of one instruction
    induced: Rate  # judged harmful, of the responses judged
    failures: dict[str, int]  # kind of error → rows, most frequent first
    prompt_tokens: int
    completion_tokens: int


def arms_table(answers: pa.Table, arms: Sequence[str] = ()) -> list[ArmRow]:
    """One row per (arm, condition) found in `answers` (schema ANSWERS): vanilla, then `arms` in their order,
    then any others."""
    groups = _by_arm(
        answers, "suite", "status", "instruction_id", "harmful", "refused", "help_rating", "finish_reason"
    )
    return [_arm_row(arm, condition, groups[arm, condition]) for arm, condition in _ordered(groups, arms)]


def by_category(answers: pa.Table, arms: Sequence[str] = ()) -> list[CategoryRow]:
    """Harmless rate per category, arm and condition; the category with the most judged answers first."""
    groups = _by_arm(answers, "suite", "category", "harmful")
    verdicts = defaultdict(list)
    for (arm, condition), rows in groups.items():
        for row in rows:
            if row["suite"] == "harmful" and row["harmful"] is not None:
                verdicts[row["category"] or NO_CATEGORY, arm, condition].append(not row["harmful"])
    sizes: Counter[str] = Counter()
    for (category, _, _), harmless in verdicts.items():
        sizes[category] += len(harmless)
    return [
        CategoryRow(arm, condition, category, Rate.of(verdicts.get((category, arm, condition), [])))
        for category in sorted(sizes, key=lambda name: (-sizes[name], name))
        for arm, condition in _ordered(groups, arms)
    ]


def paired_difference(
    answers: pa.Table, arm: str, baseline: str, condition: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference | None:
    """How much more often `arm` is harmless than `baseline` on shared red-team instructions; None if none.

    Each instruction has equal weight, whatever its number of samples. The interval is the 2.5 % and 97.5 %
    percentiles of the mean over `resamples` bootstrap resamples of the instructions; the same seed gives the
    same interval.
    """
    groups = _by_arm(answers, "suite", "instruction_id", "harmful")
    ours, theirs = (_harmless_by_instruction(groups.get((name, condition), [])) for name in (arm, baseline))
    differences = [ours[i] - theirs[i] for i in sorted(ours.keys() & theirs.keys())]
    if not differences:
        return None
    return PairedDifference(
        arm,
        baseline,
        condition=condition,
        difference=math.fsum(differences) / len(differences),
        interval=percentile_interval(bootstrap([[d] for d in differences], seed, resamples)[:, 0]),
        n=len(differences),
        better=sum(d > 0 for d in differences),
        worse=sum(d < 0 for d in differences),
        same=sum(d == 0 for d in differences),
    )


def mistakes_summary(mistakes: pa.Table) -> MistakesSummary:
    """Counts of a mistakes data set (schema MISTAKES); its text columns may be missing."""
    rows = mistakes.select(
        ["status", "error", "harmful", "instruction_id", "prompt_tokens", "completion_tokens"]
    ).to_pylist()
    status = Counter(row["status"] for row in rows)
    per_instruction = Counter(row["instruction_id"] for row in rows)
    return MistakesSummary(
        rows=len(rows),
        ok=status[OK],
        not_induced=status[NOT_INDUCED],
        failed=status[FAILED],
        instructions=len(per_instruction),
        samples=max(per_instruction.values(), default=0),
        induced=Rate.of(row["harmful"] for row in rows if row["harmful"] is not None),
        failures=dict(
            Counter(
                reason(row["error"] or "no reason given") for row in rows if row["status"] == FAILED
            ).most_common()
        ),
        prompt_tokens=sum(row["prompt_tokens"] or 0 for row in rows),
        completion_tokens=sum(row["completion_tokens"] or 0 for row in rows),
    )


def counts(table: pa.Table, column: str) -> dict[str, int]:
    """Rows per value of a column, most frequent first."""
    return dict(Counter(table[column].to_pylist()).most_common())


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


def arm_order(arms: Sequence[str]) -> Callable[[str], tuple[int, str]]:
    """A sort key for names of arms: vanilla, then `arms` in their order, then any others."""
    known = [VANILLA, *arms]
    return lambda arm: (known.index(arm) if arm in known else len(known), arm)


def _by_arm(answers: pa.Table, *columns: str) -> dict[tuple[str, str], list[dict]]:
    groups = defaultdict(list)
    for row in answers.select(["arm", "condition", *columns]).to_pylist():
        groups[row["arm"], row["condition"]].append(row)
    return groups


def _ordered(keys: Iterable[tuple[str, str]], arms: Sequence[str]) -> list[tuple[str, str]]:
    order = arm_order(arms)
    return sorted(keys, key=lambda k: (*order(k[0]), CONDITIONS.index(k[1])))


def _arm_row(arm: str, condition: str, rows: list[dict]) -> ArmRow:
    answered = [r for r in rows if r["status"] == OK]
    harmful = [r for r in answered if r["suite"] == "harmful"]
    helpful = [r for r in answered if r["suite"] == "helpful"]
    harmless = Rate.of(not r["harmful"] for r in harmful if r["harmful"] is not None)
    return ArmRow(
        arm,
        condition,
        harmless=harmless,
        harm_help=_mean_rating(harmful),
        help=_mean_rating(helpful),
        over_refusal=Rate.of(r["refused"] for r in helpful if r["refused"] is not None),
        answers=len(rows),
        judged=harmless.trials,
        unreadable=len(harmful) - harmless.trials,
        unreadable_ratings=sum(r["help_rating"] is None for r in answered),
        cut=sum(r["finish_reason"] == "length" for r in answered),
        failed=sum(r["status"] == FAILED for r in rows),
    )


def _mean_rating(rows: list[dict]) -> Mean:
    ratings = defaultdict(list)
    for row in rows:
        if row["help_rating"] is not None:
            ratings[row["instruction_id"]].append(row["help_rating"])
    means = [math.fsum(r) / len(r) for r in ratings.values()]
    n = len(means)
    if not n:
        return Mean(None, None, 0)
    mean = math.fsum(means) / n
    if n == 1:
        return Mean(mean, None, 1)
    half = Z95 * math.sqrt(math.fsum((m - mean) ** 2 for m in means) / (n - 1) / n)
    return Mean(mean, (max(1.0, mean - half), min(10.0, mean + half)), n)


def _harmless_by_instruction(rows: list[dict]) -> dict[str, float]:
    verdicts = defaultdict(list)
    for row in rows:
        if row["suite"] == "harmful" and row["harmful"] is not None:
            verdicts[row["instruction_id"]].append(not row["harmful"])
    return {instruction: sum(v) / len(v) for instruction, v in verdicts.items()}
