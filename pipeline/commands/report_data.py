"""The report's section on generated data and training sets, one part per method."""

from collections.abc import Iterable, Mapping

from pipeline.data import endings, faults
from pipeline.registry import Method
from pipeline.report import tables
from pipeline.report.numbers import Rows, entries
from pipeline.report.sections import Section
from pipeline.sources.counts import Accounts


def data(methods: Iterable[Method], numbers: Mapping[str, Rows | None], stages: list[dict]) -> Section:
    """numbers: data sets by name, without their texts; None if the run has none yet. stages: the run's
    timings and counts."""
    section, methods = Section("Data"), list(methods)
    failures: list[tuple[str, str, int]] = []
    for method in methods:
        part = method.report(numbers)
        section.text += part.text
        section.tables += part.tables
        generated = numbers[method.generated.name]
        if generated is not None and "endings" in generated.column_names:
            section.tables += _endings(generated)
        if generated is not None and "faults" in generated.column_names:
            counted = entries(generated, "faults")
            section.tables += [tables.of_faults(faults.by_step(counted))] if counted else []
        stage = f"generate ({method.generated.name})" if len(methods) > 1 else "generate"
        failures += [(stage, reason, n) for reason, n in part.failures.items()]
    drops = [(line["name"], reason, n) for line in stages for reason, n in line["drops"].items()]
    known = {(stage, reason) for stage, reason, _ in drops}
    drops = [loss for loss in failures if loss[:2] not in known] + drops
    if drops:
        section.tables.append(tables.of_losses(drops))
    return section


def _endings(generated: Rows) -> list[tables.Table]:
    """How the texts of every step ended; nothing if no text ended at max_tokens."""
    counted = endings.by_step(entries(generated, "endings"))
    return [tables.of_endings(counted)] if any(step.cut for step in counted) else []


def thoughts(stages: list[dict]) -> Section | None:
    """The answers that are missing, since the model did not end its thought; None if there are none."""
    told = [f"{line['name']}: {text}." for line in stages for text in endings.unended(line)]
    return Section("Thoughts", told) if told else None


def sources(stages: list[dict]) -> Section | None:
    """How every source was read; None if the run has not recorded that."""
    told = [
        f"{line['name']}: {text}."
        for line in stages
        for text in Accounts.from_facts(line.get("sources")).told()
    ]
    return Section("Sources", told) if told else None
