"""The report on mistakes and their training mixture."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.methods.base import DataReport
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.methods.mistake_analysis.summary import MistakesSummary, mistakes_summary, of_mistakes
from pipeline.report import tables
from pipeline.report.examples import Example, Text, among, category, first, judged_text, shown
from pipeline.report.numbers import Rows
from pipeline.report.summary import counts
from pipeline.schema import OK, SFT

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


def data(method: "MistakeAnalysis", numbers: Mapping[str, Rows | None]) -> DataReport:
    found = DataReport()
    mistakes, mixture = numbers[MISTAKES.name], numbers[SFT.name]
    if mistakes is None:
        found.text.append("This run holds no mistakes yet: `setbacks generate` writes them.")
    else:
        counted = mistakes_summary(mistakes)
        what = {
            "induced": "the model's responses under the hint",
            "own": "the model's responses to the instruction alone",
            "reference": "the source's unsafe responses",
        }[method.mistake]
        found.text.append(
            f"The mistakes are {what}. Every row read ended as ok, not induced, dropped or failed."
        )
        compared = counted.contradictions
        if compared.trials:
            found.text.append(
                f"{tables.whole(compared.trials)} analyses pronounce a verdict on a response that was judged;"
                f" {tables.whole(compared.successes)} of them contradict the judge"
                + (" and were dropped." if method.contradictions == "drop" else " and were kept.")
            )
        found.text += _harmless_answers(method, counted)
        found.tables.append(of_mistakes(counted))
        found.failures = counted.failures
    if mixture is None:
        found.text.append("This run holds no training mixture yet: `setbacks mix` writes it.")
    elif len(mixture):
        found.tables.append(tables.of_shares("Training mixture", "Kind", "Examples", counts(mixture, "kind")))
    return found


def _harmless_answers(method: "MistakeAnalysis", counted: MistakesSummary) -> list[str]:
    if not method.analyse_safe:
        return []
    own, given = (counted.safe_analyses.get(name, 0) for name in ("response", "safe_response"))
    compared = counted.safe_contradictions
    return [
        f"{tables.whole(own + given)} rows also hold the analysis of a harmless answer:"
        f" {tables.whole(own)} of the row's own response, which the judge called harmless, and"
        f" {tables.whole(given)} of the source's safe response. {tables.whole(compared.trials)} such analyses"
        f" pronounce a verdict; {tables.whole(compared.successes)} of them call the answer harmful"
        + (" and were dropped." if method.contradictions == "drop" else " and were kept.")
    ]


def examples(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` mistakes with their analyses; if a judge found harmful ones, only those."""
    analysed = (pc.field("status") == OK) & pc.field("analysis").is_valid()
    judged = analysed & pc.field("harmful")
    wanted = judged if any(map(len, dataset.tables(["id"], judged))) else analysed
    rows = dataset.table(where=among("id", first(dataset, "id", wanted, count))).sort_by("id").to_pylist()
    return [
        Example(
            f"{category(row)}: {row['response_source'] or 'a'} response and the model's analysis of it",
            [
                Text("Instruction", "", shown(row["instruction"])),
                judged_text("Mistake", row["harmful"], shown(row["response"])),
                Text(
                    "Analysis",
                    "asked for with the cue" if row["guided"] else "asked for without the cue",
                    shown(row["analysis"]),
                ),
            ],
        )
        for row in rows
    ]
