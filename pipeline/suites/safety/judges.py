"""The report's part on judges: each one's rate beside the others', their agreement and measured errors.

Judges disagree in direction, not only in level, so nothing here is averaged over judges.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.report import tables
from pipeline.report.agreement import Agreement, compared
from pipeline.report.sections import Section
from pipeline.report.summary import Rate
from pipeline.report.tables import Cell, Column, Table
from pipeline.suites.base import OWN_JUDGE, Judgements
from pipeline.suites.safety.summary import arm_conditions
from pipeline.suites.safety.tables import SHORT_TITLES, UNMEASURED, corrected

if TYPE_CHECKING:
    from pipeline.suites.safety import Safety

Verdicts = dict[str, bool | None]  # harmful, by id of the answer


def section(
    suite: "Safety", answers: pa.Table, arms: Sequence[str], judgements: Judgements
) -> Section | None:
    """The section of more judges; None if the suite has none. answers: the suite's data set without texts."""
    if not suite.more_judges:
        return None
    found = {OWN_JUDGE: _own(answers)}
    missing = []
    for name in suite.more_judges:
        table = judgements.verdicts.get(name)
        if table is None:
            missing.append(name)
        else:
            found[name] = dict(zip(table["answer_id"].to_pylist(), table["harmful"].to_pylist(), strict=True))
    text = [
        "Every judge has judged the same stored answers to red-team instructions. Nothing is averaged over"
        " judges: they disagree in direction, not only in level."
    ]
    if missing:
        text.append(f"No verdicts yet: {', '.join(missing)}; `setbacks rejudge` writes them.")
    names = {judge: _named(suite, judge) for judge in found}
    shown = [_rates(answers, arms, found, names, judgements.errors)]
    if len(found) > 1:
        shown.append(_agreements(found, names))
    notes = [
        "Harmless: the share of the answers with this judge's verdict that it calls harmless, with 95 %"
        " Wilson interval. Corrected: the same, corrected for the judge's measured error (Rogan and Gladen),"
        " if the judge errs on these answers as on the labeled ones.",
        "Agreement counts answers of all arms and conditions with a verdict of both judges. κ: agreement"
        " beyond chance (Cohen), with 95 % bootstrap interval over answers; – if both put all answers"
        " into the same class.",
    ]
    shown.append(_errors(suite, judgements.errors))
    return Section("Judges", text, tables=shown, notes=notes)


def told(suite: "Safety", errors: Mapping[str, Agreement]) -> str:
    """A sentence on the measured error of the suite's own judge, for the section of headline numbers."""
    error = errors.get(OWN_JUDGE)
    if error is None:
        return (
            f"The error of the judge ({suite.harmless.kind}) is unmeasured: label a sample of the answers,"
            " and keep the result with `setbacks judge RUN/evaluation --labels FILE --keep"
            " RUN/judge_errors/NAME.json`."
        )
    kappa = tables.NOTHING if error.kappa is None else f"{error.kappa:.2f}"
    return (
        f"Measured error of the judge ({suite.harmless.kind}) on {tables.whole(error.n)} labeled answers: it"
        f" calls {_percent(error.sensitivity)} of the harmful ones harmful and {_percent(error.specificity)}"
        f" of the harmless ones harmless; κ {kappa}."
    )


def _own(answers: pa.Table) -> Verdicts:
    rows = answers.select(["id", "suite", "harmful"]).to_pylist()
    return {row["id"]: row["harmful"] for row in rows if row["suite"] == "harmful"}


def _named(suite: "Safety", judge: str) -> str:
    return f"{suite.harmless.kind} (headline)" if judge == OWN_JUDGE else judge


def _rates(
    answers: pa.Table,
    arms: Sequence[str],
    found: dict[str, Verdicts],
    names: dict[str, str],
    errors: Mapping[str, Agreement],
) -> Table:
    """One row per arm and condition, one column per judge, and one more if its error has been measured."""
    columns = [Column("Arm", "text")]
    for judge, name in names.items():
        columns.append(Column(f"{name}, %", "estimate"))
        if judge in errors:
            columns.append(Column(f"{name}, corrected, %", "estimate"))
    groups: dict[str, list[list[Cell]]] = {}
    for (arm, condition), ids in arm_conditions(answers, arms).items():
        cells = [Cell(arm)]
        for judge, verdicts in found.items():
            known = [verdicts[one] for one in ids if verdicts.get(one) is not None]
            harmless = Rate.of(not harmful for harmful in known)
            cells.append(tables.rate(harmless))
            if judge in errors:
                cells.append(corrected(harmless, errors[judge]))
        groups.setdefault(SHORT_TITLES[condition], []).append(cells)
    return Table("Harmless rate by every judge", columns, list(groups.items()))


def _agreements(found: dict[str, Verdicts], names: dict[str, str]) -> Table:
    rows = []
    for first, second in combinations(found, 2):
        both, _ = compared(found[first], found[second])
        kappa = tables.decimals(both.kappa, both.kappa_interval(), both.n)
        counts = [Cell(tables.whole(n)) for n in (both.n, both.only_first, both.only_second)]
        pair = [Cell(names[first]), Cell(names[second])]
        rows.append([*pair, counts[0], tables.rate(both.agreed), kappa, *counts[1:]])
    columns = [
        Column("First", "text"),
        Column("Second", "text"),
        Column("Answers"),
        Column("Agreement, %", "estimate"),
        Column("κ", "estimate"),
        Column("Harmful by first alone"),
        Column("Harmful by second alone"),
    ]
    return Table("Agreement of the judges", columns, [("", rows)])


def _errors(suite: "Safety", errors: Mapping[str, Agreement]) -> Table:
    """The measured error of every judge of the suite."""
    rows = []
    for judge in (OWN_JUDGE, *suite.more_judges):
        error = errors.get(judge)
        if error is None:
            rows.append([Cell(_named(suite, judge)), Cell(UNMEASURED), *[Cell(tables.NOTHING)] * 4])
            continue
        kappa = tables.decimals(error.kappa, error.kappa_interval(), error.n)
        shares = (error.agreed, error.sensitivity, error.specificity)
        cells = [Cell(tables.whole(error.n)), *map(tables.rate, shares), kappa]
        rows.append([Cell(_named(suite, judge)), *cells])
    columns = [
        Column("Judge", "text"),
        Column("Labels"),
        *(Column(name, "estimate") for name in ("Accuracy, %", "Sensitivity, %", "Specificity, %", "κ")),
    ]
    return Table("Measured errors of the judges", columns, [("", rows)])


def _percent(rate: Rate) -> str:
    if rate.value is None:
        return tables.NOTHING
    low, high = rate.interval
    return f"{100 * rate.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
