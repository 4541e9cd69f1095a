"""What the report says of mistakes, and of the mixture made of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.methods.base import DataReport
from pipeline.report import tables
from pipeline.report.summary import counts, mistakes_summary
from pipeline.schema import MISTAKES, SFT

if TYPE_CHECKING:
    from pipeline.methods.mistake_analysis import MistakeAnalysis


def data(method: "MistakeAnalysis", numbers: Mapping[str, pa.Table | None]) -> DataReport:
    found = DataReport()
    mistakes, mixture = numbers[MISTAKES.name], numbers[SFT.name]
    if mistakes is None:
        found.text.append("This run holds no mistakes yet: `setbacks generate` writes them.")
    else:
        counted = mistakes_summary(mistakes)
        what = "the model's responses under the hint" if method.mistake == "induced" else "the source's own unsafe responses"
        found.text.append(f"The mistakes are {what}. Every row read ended as ok, not induced or failed.")
        found.tables.append(tables.of_mistakes(counted))
        found.failures = counted.failures
    if mixture is None:
        found.text.append("This run holds no training mixture yet: `setbacks mix` writes it.")
    elif len(mixture):
        found.tables.append(tables.of_shares("Training mixture", "Kind", "Examples", counts(mixture, "kind")))
    return found
