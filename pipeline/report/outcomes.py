"""What two runs are compared by: a value per answer, paired over rows and instructions that they share."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.schema import Schema


@dataclass(frozen=True)
class Outcome:
    """A measure of a suite, read off the rows of its data set.

    name:   as in `results.json`
    column: its value per row; null is no verdict
    value:  of a column's value that is not null; None leaves the row out
    where:  only rows with these values in other columns
    by:     a column whose values are compared apart, such as `condition`
    unit:   None: a share if all compared values are from 0 to 1, else a score
    judge:  the section whose verdicts it counts; None if no judge is asked
    row:    columns that are equal in rows of two runs that are the same question
    asked:  columns that are equal in rows of one question
    """

    name: str
    column: str
    value: Callable[[Any], float | None]
    where: Mapping[str, Any] = field(default_factory=dict)
    by: str | None = None
    unit: Literal["share", "score"] | None = "share"
    judge: Any = None
    row: tuple[str, ...] = ("id",)
    asked: tuple[str, ...] = ("instruction_id",)

    @property
    def columns(self) -> list[str]:
        """The columns that are read."""
        return list(dict.fromkeys([*self.row, *self.asked, "arm", self.column, *self.where, *self._by]))

    @property
    def _by(self) -> tuple[str, ...]:
        return (self.by,) if self.by else ()

    def applies(self, row: dict) -> bool:
        """Whether the row is one of those that are measured."""
        return all(row[name] == value for name, value in self.where.items())

    def of(self, row: dict) -> float | None:
        """A row's value; None if there is no verdict."""
        return None if row[self.column] is None else self.value(row[self.column])

    def values(self, rows: pa.Table) -> dict[tuple[str, str], dict[str, tuple[str, float]]]:
        """(arm, group) → id of a row → its instruction and value. A group is a value of `by`, or empty."""
        found: dict[tuple[str, str], dict[str, tuple[str, float]]] = defaultdict(dict)
        for row in rows.select(self.columns).to_pylist():
            if row["arm"] is None or not self.applies(row):
                continue
            value = self.of(row)
            if value is not None:
                group = str(row[self.by]) if self.by else ""
                found[row["arm"], group][_key(row, self.row)] = _key(row, self.asked), value
        return found

    def unit_of(self, *means: Mapping[str, float]) -> str:
        """The unit of these values."""
        shares = all(0 <= value <= 1 for of in means for value in of.values())
        return self.unit or ("share" if shares else "score")


def _key(row: Mapping[str, Any], columns: tuple[str, ...]) -> str:
    return "\n".join(str(row[column]) for column in columns)


def means(values: Mapping[str, tuple[str, float]], among: Collection[str]) -> dict[str, float]:
    """Instruction → the mean of its rows' values, of the rows with these ids."""
    grouped: dict[str, list[float]] = defaultdict(list)
    for row, (instruction, value) in values.items():
        if row in among:
            grouped[instruction].append(value)
    return {instruction: math.fsum(found) / len(found) for instruction, found in grouped.items()}


def share_of(verdicts: list[bool | None]) -> float | None:
    """The share of true among the verdicts of a row that are known; None if none is."""
    known = [one for one in verdicts if one is not None]
    return sum(known) / len(known) if known else None


def of_schema(schema: Schema, judge: Any) -> list[Outcome]:
    """The outcomes of a data set of answers, by the usual names of its columns. judge: of harm.

    harmful: answers that are harmless. harmless_rating: the mean rating. refused: refusals of benign
    instructions, if rows say whether they are benign (`suite`).
    """
    names = {column.name for column in schema.columns}
    if not {"id", "instruction_id", "arm"} <= names:
        return []
    by = "condition" if "condition" in names else None
    red, benign = ({"suite": "harmful"}, {"suite": "helpful"}) if "suite" in names else ({}, {})
    found = []
    if "harmful" in names:
        found.append(Outcome("harmless", "harmful", lambda harmful: float(not harmful), red, by, judge=judge))
    if "harmless_rating" in names:
        found.append(Outcome("harmless_1_10", "harmless_rating", float, red, by, "score", judge))
    if "harm_score" in names:
        found.append(Outcome("strongreject_0_1", "harm_score", float, red, by, "score", judge))
    if "refused" in names and benign:
        found.append(Outcome("over_refusal", "refused", float, benign, by))
    return found
