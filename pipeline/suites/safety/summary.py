"""The numbers of the safety suite: exact counts and intervals of every arm, and differences between arms."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.summary import RESAMPLES, Difference, Mean, Rate, arm_order, mean_of, paired
from pipeline.schema import FAILED, OK

CONDITIONS = ("plain", "reminder", "hint", "think")


NO_CATEGORY = "(none)"


@dataclass(frozen=True)
class ArmRow:
    """One arm under one condition. Each sample of an instruction counts as one answer in rates and counts."""

    arm: str
    condition: str
    harmless: Rate  # harmful suite, answers with a verdict
    harmless_score: Mean  # harmful suite, 1 to 10
    harm_score: Mean  # harmful suite, 0 to 1, the higher the worse
    harm_help: Mean  # harmful suite
    help: Mean  # helpful suite
    over_refusal: Rate  # helpful suite, answers with a refusal verdict
    answers: int  # rows of both suites, failed ones included
    benign: int  # of them, those of the helpful suite
    judged: int  # harmful suite: answers with a verdict
    unreadable: int  # harmful suite: answered, but the judge gave no verdict
    other_category: int  # harmful suite: judged harmless, but unsafe in a category that does not count
    unreadable_ratings: int  # both suites: answered, but without a help rating
    cut: int  # answers that ended at max_tokens
    deliberations_cut: int  # deliberations before an answer that ended at max_tokens
    failed: int


@dataclass(frozen=True)
class CategoryRow:
    """The harmless rate of one arm under one condition, in one category."""

    arm: str
    condition: str
    category: str
    harmless: Rate


@dataclass(frozen=True)
class PairedDifference(Difference):
    """A difference of harmless rates, or of harmless scores."""

    condition: str


def arms_table(answers: pa.Table, arms: Sequence[str] = ()) -> list[ArmRow]:
    """One row per (arm, condition) found in `answers` (schema ANSWERS): vanilla, then `arms` in their order,
    then any others."""
    groups = _by_arm(
        answers,
        "suite",
        "status",
        "instruction_id",
        "harmful",
        "harmless_rating",
        "harm_score",
        "harm_categories",
        "refused",
        "help_rating",
        "finish_reason",
        # data sets of older versions do not have it
        *(name for name in ("deliberation_finish_reason",) if name in answers.column_names),
    )
    return [_arm_row(arm, condition, groups[arm, condition]) for arm, condition in _ordered(groups, arms)]


def arm_conditions(answers: pa.Table, arms: Sequence[str] = ()) -> dict[tuple[str, str], list[str]]:
    """(arm, condition) → ids of its answers to red-team instructions, in the order of the table of arms."""
    groups = _by_arm(answers, "id", "suite")
    return {key: [row["id"] for row in _harmful_suite(groups[key])] for key in _ordered(groups, arms)}


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
    return _paired(answers, arm, baseline, condition, "harmful", lambda harmful: not harmful, seed, resamples)


def paired_score(
    answers: pa.Table, arm: str, baseline: str, condition: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference | None:
    """The same for the harmless score: mean rating of `arm` minus that of `baseline`, in rating points."""
    return _paired(answers, arm, baseline, condition, "harmless_rating", float, seed, resamples)


def refusal_difference(
    answers: pa.Table, arm: str, baseline: str, condition: str, *, seed: int = 0, resamples: int = RESAMPLES
) -> PairedDifference | None:
    """How much more often `arm` refuses benign instructions than `baseline`, on those that both answered."""
    benign = answers.filter(pc.equal(answers["suite"], "helpful"))
    groups = _by_arm(benign, "instruction_id", "refused")
    ours, theirs = (_means(groups.get((name, condition), []), "refused", float) for name in (arm, baseline))
    found = paired(arm, baseline, ours, theirs, seed=seed, resamples=resamples)
    return None if found is None else PairedDifference(**vars(found), condition=condition)


def _paired(
    answers: pa.Table,
    arm: str,
    baseline: str,
    condition: str,
    column: str,
    value: Callable[[Any], float],
    seed: int,
    resamples: int,
) -> PairedDifference | None:
    """The mean difference of a column's values over shared red-team instructions; None if none is shared."""
    groups = _by_arm(answers, "suite", "instruction_id", column)
    ours, theirs = (
        _means(_harmful_suite(groups.get((name, condition), [])), column, value) for name in (arm, baseline)
    )
    found = paired(arm, baseline, ours, theirs, seed=seed, resamples=resamples)
    return None if found is None else PairedDifference(**vars(found), condition=condition)


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
        harmless_score=_mean(harmful, "harmless_rating"),
        harm_score=_mean(harmful, "harm_score", (0.0, 1.0)),
        harm_help=_mean(harmful, "help_rating"),
        help=_mean(helpful, "help_rating"),
        over_refusal=Rate.of(r["refused"] for r in helpful if r["refused"] is not None),
        answers=len(rows),
        benign=sum(r["suite"] == "helpful" for r in rows),
        judged=harmless.trials,
        unreadable=len(harmful) - harmless.trials,
        other_category=sum(r["harmful"] is False and bool(r["harm_categories"]) for r in harmful),
        unreadable_ratings=sum(r["help_rating"] is None for r in answered),
        cut=sum(r["finish_reason"] == "length" for r in answered),
        deliberations_cut=sum(r.get("deliberation_finish_reason") == "length" for r in answered),
        failed=sum(r["status"] == FAILED for r in rows),
    )


def _mean(rows: list[dict], column: str, scale: tuple[float, float] = (1.0, 10.0)) -> Mean:
    """The mean of a column over instructions; its interval is kept within the scale."""
    return mean_of([*_means(rows, column, float).values()], scale)


def _means(rows: list[dict], column: str, value: Callable[[Any], float]) -> dict[str, float]:
    """Instruction id → mean over its samples with a value."""
    values = defaultdict(list)
    for row in rows:
        if row[column] is not None:
            values[row["instruction_id"]].append(value(row[column]))
    return {instruction: math.fsum(v) / len(v) for instruction, v in values.items()}


def _harmful_suite(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["suite"] == "harmful"]
