"""The report on ranked responses and their pairs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.methods.base import DataReport
from pipeline.methods.course_correction.schema import CORRECTIONS, PAIR
from pipeline.methods.course_correction.summary import (
    of_requests,
    pairs_by_gap,
    recovery_counts,
    requests_summary,
)
from pipeline.report import tables
from pipeline.report.examples import Example, Text, among, category, first, shown
from pipeline.report.numbers import Rows
from pipeline.schema import OK, PREFERENCES, SFT

if TYPE_CHECKING:
    from pipeline.methods.course_correction import CourseCorrection


def data(method: "CourseCorrection", numbers: Mapping[str, Rows | None]) -> DataReport:
    found = DataReport()
    corrections, preferences = numbers[CORRECTIONS.name], numbers[PREFERENCES.name]
    if corrections is None:
        found.text.append("This run holds no corrections yet: `setbacks generate` writes them.")
    else:
        counted = requests_summary(corrections)
        found.text.append(
            f"Each request yields up to {method.cuts + 2} responses: one safe, one per cut ({method.cuts}),"
            " and the harmful one. Complete: no response was lost. Every row read ended as ok, dropped or"
            " failed."
        )
        found.tables.append(of_requests(counted))
        if counted.lost:
            found.tables.append(
                tables.of_tally("Lost responses", "Rank and reason", "Responses", counted.lost)
            )
        found.failures = counted.reasons
    if preferences is None:
        found.text.append("This run holds no preference pairs yet: `setbacks mix` writes them.")
    elif gaps := pairs_by_gap(preferences, PAIR):
        found.text.append(
            f"{tables.whole(sum(gaps.values()))} preference pairs: every two responses of a request whose"
            " texts differ."
        )
        found.tables.append(tables.of_shares("Preference pairs", "Rank gap", "Pairs", gaps))
    recoveries, begun = recovery_counts(numbers.get(SFT.name))
    if recoveries:
        found.text.append(
            f"{tables.whole(recoveries)} recovery examples: the request and its refusal, of which"
            f" {tables.whole(begun)} begin with tokens of the harmful response, which carry no loss."
        )
    return found


def examples(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` requests with their responses, best first."""
    ids = first(dataset, "id", pc.field("status") == OK, count)
    rows = dataset.table(where=among("id", ids)).sort_by("id").to_pylist()
    return [
        Example(
            f"{category(row)}: {len(row['responses'])} responses"
            + (f"; lost: {', '.join(row['lost'])}" if row["lost"] else ""),
            [Text("Instruction", "", shown(row["instruction"])), *map(_ranked, row["responses"])],
        )
        for row in rows
    ]


def _ranked(response: dict) -> Text:
    kinds = {
        "safe": "safe response",
        "syn": f"turns at “{response['trigger']}”",
        "harmful": "full harmful response",
    }
    return Text(
        f"Rank {response['rank']}",
        kinds[response["kind"]],
        shown(response["text"]),
        harmful=response["kind"] == "harmful",
    )
