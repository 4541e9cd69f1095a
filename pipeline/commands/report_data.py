"""The report's section on generated data and training sets, one part per method."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import Method
from pipeline.data import endings
from pipeline.report import tables
from pipeline.report.sections import Section


def data(methods: Iterable[Method], numbers: Mapping[str, pa.Table | None], stages: list[dict]) -> Section:
    """numbers: data sets by name, without their texts; None if the run has none yet. stages: the run's
    timings and counts."""
    section = Section("Data", _read(stages))
    failures: dict[str, int] = {}
    for method in methods:
        part = method.report(numbers)
        section.text += part.text
        section.tables += part.tables
        generated = numbers[method.generated.name]
        if generated is not None and "endings" in generated.column_names:
            section.tables += _endings(generated)
        failures |= part.failures
    drops = [(line["name"], reason, n) for line in stages for reason, n in line["drops"].items()]
    known = {(stage, reason) for stage, reason, _ in drops}
    drops = [
        ("generate", reason, n) for reason, n in failures.items() if ("generate", reason) not in known
    ] + drops
    if drops:
        section.tables.append(tables.of_losses(drops))
    return section


def _endings(generated: pa.Table) -> list[tables.Table]:
    """How the texts of every step ended; nothing if no text ended at max_tokens."""
    counted = endings.by_step(Counter(pc.list_flatten(generated["endings"]).to_pylist()))
    return [tables.of_endings(counted)] if any(step.cut for step in counted) else []


def _read(stages: list[dict]) -> list[str]:
    """How each method's source was read; nothing for a method whose reading the run did not record."""
    said = []
    lines = [line for line in stages if line["stage"] == "generate" and line.get("read") is not None]
    for line in lines:
        read, duplicates, malformed = (
            tables.whole(line.get(key, 0)) for key in ("read", "duplicates", "malformed")
        )
        source = "the source" if len(lines) == 1 else f"the source of {line['name']}"
        said.append(
            f"{read} rows were read from {source}; {duplicates} repeat an instruction, {malformed} are"
            " malformed."
        )
    return said
