"""The report on critiques and revisions."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.methods.base import DataReport
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.report import tables
from pipeline.report.examples import Example, Text, among, category, first, judged_text, shown
from pipeline.report.numbers import Rows, counted, entries
from pipeline.report.summary import counts, reasons, tally
from pipeline.schema import DROPPED, FAILED, OK

if TYPE_CHECKING:
    from pipeline.methods.critique_revise import CritiqueRevise


def data(method: "CritiqueRevise", numbers: Mapping[str, Rows | None]) -> DataReport:
    found, revisions = DataReport(), numbers[REVISIONS.name]
    if revisions is None:
        found.text.append("This run holds no revisions yet: `setbacks generate` writes them.")
        return found
    found.text.append(
        "A model criticizes its own answer under a principle and revises it. Dropped: the critique or the"
        " revision was empty, a text failed a quality gate, the revision changed nothing, or it ended at"
        " max_tokens without a usable sentence."
    )
    found.tables.append(tables.of_tally("Revisions", "Status", "Rows", counts(revisions, "status")))
    principles = entries(revisions, "principles", status=OK)
    found.tables.append(tables.of_tally("Principles", "Principle", "Rounds", dict(principles.most_common())))
    if method.verify is not None:
        verdicts = {False: "harmless", True: "harmful", None: "no verdict"}
        rows = counted(revisions, ["status", "revision_harmful"])
        judged = tally((verdicts[row["revision_harmful"]], n) for row, n in rows if row["status"] == OK)
        found.tables.append(tables.of_tally("Verdicts on the revisions kept", "Verdict", "Revisions", judged))
    found.failures = reasons(revisions, DROPPED, FAILED)
    return found


def examples(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` answers, each with its critiques and its revision."""
    ids = first(dataset, "id", pc.field("status") == OK, count)
    rows = dataset.table(where=among("id", ids)).sort_by("id").to_pylist()
    return [
        Example(
            f"{category(row)}: {row['response_source']} answer, revised under {', '.join(row['principles'])}",
            [
                Text("Instruction", "", shown(row["instruction"])),
                Text("First answer", row["response_source"], shown(row["response"])),
                *(
                    Text("Critique", principle, shown(text))
                    for principle, text in zip(row["principles"], row["critiques"], strict=True)
                ),
                judged_text("Revision", row["revision_harmful"], shown(row["revision"])),
            ],
        )
        for row in rows
    ]
