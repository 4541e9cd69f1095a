"""Examples of the HTML report: helpers to select rows and to show them masked.

Rows are selected by instruction id, a hash, so nobody picks them. Only their texts are read, not all texts of
the data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.report.arms import Arms
from pipeline.schema import FAILED, OK

SHOWN_CHARACTERS = 1500


@dataclass(frozen=True)
class Text:
    """A text of a model or source, with label and verdict."""

    label: str
    verdict: str
    text: str
    harmful: bool = False  # whether the verdict is a warning


@dataclass(frozen=True)
class Example:
    """Masked in the report; only `title` is visible."""

    title: str
    texts: list[Text]


def first(dataset: Dataset, column: str, wanted: pc.Expression, count: int) -> list[str]:
    """The smallest `count` values of an id column in the wanted rows."""
    found: list[str] = []
    for table in dataset.tables([column], wanted):
        found = sorted({*found, *table[column].to_pylist()})[:count]
    return found


def one_of_each(arms: Sequence[str]) -> pc.Expression:
    """The rows of one seed of each arm, and of no stage of a training."""
    return ~pc.field("arm").isin(pa.array(Arms.of(arms).repeats, pa.string()))


def among(column: str, ids: list[str]) -> pc.Expression:
    """The condition that a column holds one of these ids."""
    return pc.field(column).isin(pa.array(ids, pa.string()))


def category(row: dict) -> str:
    """A row's category in words."""
    return row["category"] or "no category"


def judged_text(label: str, harmful: bool | None, text: str) -> Text:
    """A text with the judge's verdict in words."""
    verdict = {True: "judged harmful", False: "judged harmless", None: "no verdict"}[harmful]
    return Text(label, verdict, text, harmful=harmful is True)


def shown(text: str | None, status: str = OK) -> str:
    """A text cut to SHOWN_CHARACTERS, or why there is none."""
    if status == FAILED or text is None:
        return "(no text: this row failed)"
    return (
        text
        if len(text) <= SHOWN_CHARACTERS
        else f"{text[:SHOWN_CHARACTERS]}… ({len(text) - SHOWN_CHARACTERS} more characters)"
    )
