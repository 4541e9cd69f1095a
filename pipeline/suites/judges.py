"""The report's part on more judges: each one's rate beside the others', their agreement and measured errors.

Judges disagree in direction, not only in level, so nothing here is averaged over judges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from pipeline.report import tables
from pipeline.report.agreement import Agreement, corrected_rate
from pipeline.report.arms import percent
from pipeline.report.sections import Section
from pipeline.report.summary import Rate
from pipeline.report.tables import Cell, Column, Number, Table
from pipeline.suites.base import OWN_JUDGE
from pipeline.suites.judged import Answers

UNMEASURED = "unmeasured"


@dataclass(frozen=True)
class Panel:
    """The judges of a suite's stored answers.

    title:    of the section
    answers:  what is judged, in the plural: `answers to red-team instructions`
    yes:      what a judge says of an answer with a true verdict: `Harmful`
    rate:     the title of the table of rates, and counted: the verdict whose share it has
    share:    what the rate is of the answers that a judge has judged: `the share of them that …`
    own_kind: the kind of the suite's own judge
    judged:   the answers, with its verdicts
    more:     the verdicts of the others, by name (`Answers.of_judges`); None if they have not judged yet
    groups:   title of a group of the table of rates → arm → key of the answers
    harm:     whether the rate is that of harmless answers, so that a measured error can correct it
    """

    title: str
    answers: str
    yes: str
    rate: str
    counted: bool
    share: str
    own_kind: str
    judged: Answers
    more: Mapping[str, np.ndarray | None]
    groups: Mapping[str, Mapping[str, Any]]
    errors: Mapping[str, Agreement] = field(default_factory=dict)
    harm: bool = False


def section(panel: Panel) -> Section | None:
    """The section of more judges; None if the suite has none."""
    if not panel.more:
        return None
    found = {OWN_JUDGE: panel.judged.own} | {name: one for name, one in panel.more.items() if one is not None}
    missing = [name for name, one in panel.more.items() if one is None]
    text = [
        f"Every judge has judged the same stored {panel.answers}. Nothing is averaged over judges: they"
        " disagree in direction, not only in level."
    ]
    if missing:
        text.append(f"No verdicts yet: {', '.join(missing)}; `setbacks rejudge` writes them.")
    shown = [_rates(panel, found)]
    notes = [
        f"Judged: {panel.answers} on which this judge has a verdict. Rate: {panel.share}, with 95 % Wilson"
        " interval; rates over different answers do not compare."
    ]
    if _measured(panel, found):
        notes.append(
            "Corrected rate: the same, corrected for the judge's measured error (Rogan and Gladen), if the"
            " judge errs on these answers as on the labeled ones."
        )
    if len(found) > 1:
        shown.append(_agreements(panel, found))
        notes.append(
            "Agreement counts answers of all groups and arms with a verdict of both judges. κ: agreement"
            " beyond chance (Cohen), with 95 % bootstrap interval over answers; – if both put all answers"
            " into the same class."
        )
    if panel.harm:
        shown.append(_errors(panel))
    return Section(panel.title, text, tables=shown, notes=notes)


def corrected(harmless: Rate, error: Agreement | None) -> Cell:
    """The harmless rate, corrected for the judge's measured error; `unmeasured` without one."""
    if error is None:
        return Cell(UNMEASURED)
    harmful = corrected_rate(Rate(harmless.trials - harmless.successes, harmless.trials), error)
    if harmful.value is None or harmful.interval is None:
        return Cell(harmful.why_not.partition(":")[0])
    low, high = (1 - end for end in reversed(harmful.interval))
    number = Number(1 - harmful.value, low, high, harmless.trials, "share")
    interval = f"[{percent(low)}, {percent(high)}]"
    return Cell(percent(1 - harmful.value), interval, number=number, shown=percent)


def _named(panel: Panel, judge: str) -> str:
    return f"{panel.own_kind} (headline)" if judge == OWN_JUDGE else judge


def _measured(panel: Panel, found: Mapping[str, np.ndarray]) -> bool:
    """Whether the error of a judge has been measured, so that there are corrected rates."""
    return any(judge in panel.errors for judge in found)


def _rates(panel: Panel, found: Mapping[str, np.ndarray]) -> Table:
    """One row per group, arm and judge; corrected rates if the error of a judge has been measured."""
    columns = [
        Column("Arm", "text"),
        Column("Judge", "text"),
        Column("Judged"),
        Column("Rate, %", "estimate"),
    ]
    if measured := _measured(panel, found):
        columns.append(Column("Corrected rate, %", "estimate"))
    counts = {judge: panel.judged.counts(verdicts) for judge, verdicts in found.items()}
    groups: dict[str, list[list[Cell]]] = {}
    for title, arms in panel.groups.items():
        for arm, key in arms.items():
            for judge in found:
                no, yes = counts[judge][key]
                share = Rate(yes if panel.counted else no, no + yes)
                judged = Cell(tables.whole(share.trials))
                cells = [Cell(arm), Cell(_named(panel, judge)), judged, tables.rate(share)]
                if measured:
                    cells.append(corrected(share, panel.errors.get(judge)))
                groups.setdefault(title, []).append(cells)
    return Table(panel.rate, columns, list(groups.items()))


def _agreements(panel: Panel, found: Mapping[str, np.ndarray]) -> Table:
    rows = []
    for first, second in combinations(found, 2):
        both = _agreement(found[first], found[second])
        counts = [Cell(tables.whole(n)) for n in (both.n, both.only_first, both.only_second)]
        pair = [Cell(_named(panel, first)), Cell(_named(panel, second))]
        rows.append([*pair, counts[0], tables.rate(both.agreed), tables.kappa(both), *counts[1:]])
    columns = [
        Column("First", "text"),
        Column("Second", "text"),
        Column("Answers"),
        Column("Agreement, %", "estimate"),
        Column("κ", "estimate"),
        Column(f"{panel.yes} by first alone"),
        Column(f"{panel.yes} by second alone"),
    ]
    return Table("Agreement of the judges", columns, [("", rows)])


def _agreement(first: np.ndarray, second: np.ndarray) -> Agreement:
    """first, second: [answers] verdicts as of `Answers`."""
    return Agreement(*(int(((first == a) & (second == b)).sum()) for a in (1, 0) for b in (1, 0)))


def _errors(panel: Panel) -> Table:
    """The measured error of every judge of the suite."""
    rows = []
    for judge in (OWN_JUDGE, *panel.more):
        error = panel.errors.get(judge)
        if error is None:
            rows.append([Cell(_named(panel, judge)), Cell(UNMEASURED), *[Cell(tables.NOTHING)] * 4])
            continue
        shares = (error.agreed, error.sensitivity, error.specificity)
        cells = [Cell(tables.whole(error.n)), *map(tables.rate, shares), tables.kappa(error)]
        rows.append([Cell(_named(panel, judge)), *cells])
    columns = [
        Column("Judge", "text"),
        Column("Labels"),
        *(Column(name, "estimate") for name in ("Accuracy, %", "Sensitivity, %", "Specificity, %", "κ")),
    ]
    return Table("Measured errors of the judges", columns, [("", rows)])
