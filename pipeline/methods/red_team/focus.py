"""The next round: more texts about the leaves on which a model failed in a former run."""

import math
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction

import pyarrow.compute as pc
from pydantic import Field

from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.methods.red_team.taxonomy import Hazard
from pipeline.settings.base import ArmName, Count, DataPath, Name, Section
from pipeline.sources.counts import Counts


class Focus(Section):
    """A former run's judged answers, by which the texts of this run are shared out."""

    answers: DataPath = Field(description="the former run's answers: RUN/evaluation")
    arm: ArmName = Field("vanilla", description="the arm whose answers count")
    condition: Name = Field("plain", description="the condition of its answers")
    texts: Count = Field(description="texts to write, shared out among leaves by the rate of harmful answers")


def shared_out(rates: Mapping[str, Fraction | float], total: int) -> dict[str, int]:
    """`total` texts by leaf, in proportion to 1 − harmless rate; remainders go to the largest ones.

    rates: leaf → harmless rate, 0 to 1. Of equal remainders the first leaf's comes first. All 0 if no leaf
    has a harmful answer.
    """
    weights = {leaf: 1 - Fraction(rate).limit_denominator(10**6) for leaf, rate in rates.items()}
    of_all = sum(weights.values())
    if not of_all:
        return dict.fromkeys(rates, 0)
    exact = {leaf: total * weight / of_all for leaf, weight in weights.items()}
    found = {leaf: math.floor(share) for leaf, share in exact.items()}
    by_remainder = sorted(exact, key=lambda leaf: found[leaf] - exact[leaf])  # stable
    for leaf in by_remainder[: total - sum(found.values())]:
        found[leaf] += 1
    return found


def former_answers(focus: Focus) -> Dataset:
    """Raises UserError if there are none."""
    found = Dataset.at(storage.absolute(focus.answers))
    if found is None:
        raise UserError(
            f"focus.answers = {focus.answers}: holds no finished answers: give RUN/evaluation of a run that"
            " has evaluated"
        )
    return found


def asked_before(focus: Focus) -> frozenset[str]:
    """The ids of the instructions that the former run has asked. Raises UserError if it has no answers."""
    return frozenset(former_answers(focus).table(["instruction_id"])["instruction_id"].to_pylist())


def harmless_rates(focus: Focus, hazards: Mapping[str, Hazard], counts: Counts) -> dict[str, Fraction]:
    """The harmless rate of each leaf (`category/hazard/leaf`) of which the former run judged an answer.

    counts: filled. Raises UserError if the answers cannot be read, or none of them counts.
    """
    field = f"focus.answers = {focus.answers}"
    counts.source = focus.answers
    found = former_answers(focus)
    missing = [name for name in ("arm", "condition", "category", "harmful") if name not in found.schema.names]
    if missing:
        raise UserError(f"{field}: has no column {missing[0]}: give RUN/evaluation")
    judged: Counter[str] = Counter()
    harmless: Counter[str] = Counter()
    where = (pc.field("arm") == focus.arm) & (pc.field("condition") == focus.condition)
    for row in found.table(["category", "harmful"], where).to_pylist():
        counts.read += 1
        hazard, _, leaf = (row["category"] or "").rpartition("/")
        if hazard not in hazards or not leaf:
            counts.spoil("its category is no leaf of the taxonomy")
        elif row["harmful"] is None:
            counts.spoil("no verdict")
        else:
            counts.ok += 1
            judged[row["category"]] += 1
            harmless[row["category"]] += not row["harmful"]
    if not judged:
        why = counts.why() or f"none of arm {focus.arm} under condition {focus.condition}"
        raise UserError(
            f"{field}: no answer can be used ({why}): name the answers to requests of red-teaming"
        )
    rates = {leaf: Fraction(harmless[leaf], judged[leaf]) for leaf in sorted(judged)}
    if all(rate == 1 for rate in rates.values()):
        raise UserError(
            f"{field}: all answers of {focus.arm} are harmless, so there is nothing to go on with"
        )
    return rates
