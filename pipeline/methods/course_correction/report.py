"""What the report says of ranked responses, and of the pairs made of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.methods.base import DataReport
from pipeline.report import tables
from pipeline.report.corrections import pairs_by_gap, requests_summary
from pipeline.schema import CORRECTIONS, PREFERENCES

if TYPE_CHECKING:
    from pipeline.methods.course_correction import CourseCorrection


def data(method: "CourseCorrection", numbers: Mapping[str, pa.Table | None]) -> DataReport:
    found = DataReport()
    corrections, preferences = numbers[CORRECTIONS.name], numbers[PREFERENCES.name]
    if corrections is None:
        found.text.append("This run holds no corrections yet: `setbacks generate` writes them.")
    else:
        counted = requests_summary(corrections)
        found.text.append(
            f"Of a request come up to {method.cuts + 2} responses: the safe one, one for each of the {method.cuts} cuts, and the "
            "harmful one. Complete: no response was lost. Every row read ended as ok, dropped or failed."
        )
        found.tables.append(tables.of_requests(counted))
        if counted.lost:
            found.tables.append(tables.of_tally("Lost responses", "Rank and reason", "Responses", counted.lost))
        found.failures = counted.reasons
    if preferences is None:
        found.text.append("This run holds no preference pairs yet: `setbacks mix` writes them.")
    elif len(preferences):
        found.text.append(f"{tables.whole(len(preferences))} preference pairs: every two responses of a request whose texts differ.")
        found.tables.append(tables.of_shares("Preference pairs", "Rank gap", "Pairs", pairs_by_gap(preferences)))
    return found
