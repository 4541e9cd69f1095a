"""`results.json`: every number of a report as data, read off the report's own sections and tables.

A method or suite adds nothing for it: what its tables show is here, unrounded if the builders of
`report.tables` made the cells. `schema` is the JSON schema of the file.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline.report.replicas import without_seeds
from pipeline.report.sections import Section
from pipeline.report.tables import Cell, Column, Table, Unit

FORMAT = 1
MINUS = " − "  # between the two arms of a difference


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Figure(_Part):
    """One number of the report, and where it stands there."""

    name: str = Field(description="what is measured, such as `harmless` or `over_refusal`")
    suite: str | None = Field(description="the suite that measured it; null if none did")
    group: str = Field(description="heading above its rows, such as a condition; may be empty")
    arm: str | None = Field(
        description=(
            "the adapter that it is about, or the first of a difference; the arm, of a mean over its seeds"
        )
    )
    value: int | float | None = Field(description="not rounded; null if nothing was counted")
    low: float | None = Field(description="lower end of the 95 % interval; null if it has none")
    high: float | None = Field(description="upper end of the 95 % interval; null if it has none")
    n: int | None = Field(
        description=(
            "what was counted: answers, instructions, entries; in every seed, of a mean over seeds; null if"
            " unknown, or if the seeds differ"
        )
    )
    unit: Unit = Field(description="share: 0 to 1; score: on the judge's scale; a difference keeps its unit")
    judges: list[str] = Field(description="the judges of its suite, as keys of `judges`")
    section: str = Field(description="title of the section")
    table: str = Field(description="title of the table; may be empty")
    row: dict[str, str] = Field(description="the texts of its row, by column")
    column: str = Field(description="title of its column")
    text: str = Field(description="as the report shows it")

    @property
    def labels(self) -> set[str]:
        """Words that tell it from others of its name: suite, group, texts of the row."""
        texts = map(without_seeds, self.row.values())
        return {slug(word) for word in (self.suite or "", self.group.partition(":")[0], *texts)}


class Told(_Part):
    """The sentences of one section of the report. They hold no text of a row."""

    title: str = Field(description="title of the section")
    suite: str | None = Field(description="the suite that it is of; null if of none")
    text: list[str] = Field(description="before its tables")
    notes: list[str] = Field(description="after its tables: what its numbers mean")


class JudgeUsed(_Part):
    """A judge of a suite or method."""

    suite: str | None = Field(description="the suite whose answers it judges; null if it judges for a method")
    kind: str = Field(description="kind of judge")
    judges: str = Field(description="what it judges")
    model: str | None = Field(description="what it asks, in words; null if it asks no model")
    determines: dict[str, Any] = Field(description="its settings, prompts and model: equal only if the same")


class Results(_Part):
    """The numbers of a run's report."""

    format: Literal[1] = Field(description="version of this format")
    run: str = Field(description="name of the run directory")
    model: str = Field(description="the base model")
    note: str | None = Field(description="a warning about what the numbers mean, such as of the toy model")
    opening: list[str] = Field([], description="the sentences that open the report")
    seed: int = Field(description="seed of the run")
    arms: list[str] = Field(description="all evaluated adapters, the base model first")
    versions: dict[str, str] = Field(description="setbacks, Python and libraries that wrote the report")
    judges: dict[str, JudgeUsed] = Field(description="the judges, by name")
    numbers: list[Figure] = Field(description="every number of the report's tables, in their order")
    sections: list[Told] = Field(description="what the report says in sentences")
    configuration: dict[str, Any] = Field(description="the whole configuration, with all defaults")


def schema() -> dict:
    """The JSON schema of results.json."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Results.model_json_schema()}


def slug(text: str) -> str:
    """A title as a name: `Over-refusal, %` → `over_refusal`."""
    return re.sub(r"\W+", "_", text.removesuffix(", %").lower()).strip("_")


def told(suite: str | None, sections: Iterable[Section]) -> list[Told]:
    """The sentences of sections."""
    return [Told(title=one.title, suite=suite, text=one.text, notes=one.notes) for one in sections]


def figures(
    suite: str | None, sections: Iterable[Section], arms: Collection[str], judges: Iterable[str] = ()
) -> list[Figure]:
    """Every number of the sections' tables. suite, judges: of all of them.

    arms: all names that the tables can have: of adapters, of arms with several seeds, of stages.
    """
    known = list(judges)
    return [
        Figure(
            name=_name(section, table, column, labels, number.unit, arms),
            suite=suite,
            group=heading,
            arm=_arm(column, labels, arms),
            value=number.value,
            low=number.low,
            high=number.high,
            n=number.n,
            unit=number.unit,
            judges=known,
            section=section.title,
            table=table.title,
            row=labels,
            column=column.name,
            text=cell.text,
        )
        for section in sections
        for table in section.tables
        for heading, labels, column, cell in _cells(table)
        if (number := cell.figure) is not None
    ]


def _cells(table: Table) -> Iterator[tuple[str, dict[str, str], Column, Cell]]:
    """Heading, texts of the row, column and cell, of every cell that is no text."""
    for heading, rows in table.groups:
        for row in rows:
            pairs = list(zip(table.columns, row, strict=True))
            labels = {column.name: cell.text for column, cell in pairs if column.kind == "text"}
            for column, cell in pairs:
                if column.kind != "text":
                    yield heading, labels, column, cell


def _name(
    section: Section, table: Table, column: Column, labels: dict[str, str], unit: Unit, arms: Collection[str]
) -> str:
    if unit.endswith("_difference"):
        return "difference"
    if _plain(column.name) not in arms:
        return slug(column.name)
    # The columns are arms: the measure is the table's, or the row's if that has no other heading.
    return slug(table.measure or labels.get("") or table.title or section.title)


def _arm(column: Column, labels: dict[str, str], arms: Collection[str]) -> str | None:
    texts = [_plain(column.name), *map(_plain, labels.values())]
    words = [*texts, *(text.partition(MINUS)[0] for text in texts)]
    return next((word for word in words if word in arms), None)


def _plain(text: str) -> str:
    """What a column or row is named by: `dpo (3 seeds), %` is dpo's."""
    return without_seeds(text).removesuffix(", %")
