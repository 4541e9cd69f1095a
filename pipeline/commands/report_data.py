"""The report's section on generated data and training sets, one part per method."""

from collections.abc import Iterable, Mapping

import pyarrow as pa

from pipeline.config import Method
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
        failures |= part.failures
    drops = [(line["name"], reason, n) for line in stages for reason, n in line["drops"].items()]
    known = {(stage, reason) for stage, reason, _ in drops}
    drops = [
        ("generate", reason, n) for reason, n in failures.items() if ("generate", reason) not in known
    ] + drops
    if drops:
        section.tables.append(tables.of_losses(drops))
    return section


def _read(stages: list[dict]) -> list[str]:
    """How the source was read; nothing if the run did not record it."""
    line = next(
        (line for line in stages if line["stage"] == "generate" and line.get("read") is not None), None
    )
    if line is None:
        return []
    read, duplicates, malformed = (
        tables.whole(line.get(key, 0)) for key in ("read", "duplicates", "malformed")
    )
    return [
        f"{read} rows were read from the source; {duplicates} repeat an instruction, {malformed} are"
        " malformed."
    ]
