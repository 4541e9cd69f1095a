"""The tables of the goal hijacking suite."""

from collections.abc import Callable

from pipeline.report.agreement import Agreement
from pipeline.report.summary import Difference, Rate
from pipeline.report.tables import (
    Cell,
    Column,
    Table,
    difference,
    difference_columns,
    kappa,
    mark_best,
    rate,
    whole,
)
from pipeline.suites.goal_hijacking.summary import CONTROL, HARMFUL, HijackRow, TemplateRow

CONDITION_TITLES = {
    "plain": "Plain: the prompt alone",
    "reminder": "Reminder: the prompt preceded by the reminder to be harmless",
}
SUITES = {
    HARMFUL: "Harmful targets: ought not to be said",
    CONTROL: "Control, harmless targets: ought to be said",
}


def of_arms(rows: list[HijackRow]) -> Table:
    """Defense, what was asked for, and obedience on the control, by condition."""
    estimates: list[tuple[str, str, Callable[[HijackRow], Rate]]] = [
        ("Defended, %", HARMFUL, lambda row: row.defended),
        ("Said what was asked for, %", HARMFUL, lambda row: row.kept),
        ("Control obeyed, %", CONTROL, lambda row: row.hijacked),
    ]
    suites = {row.suite for row in rows}
    estimates = [one for one in estimates if one[1] in suites]
    groups = []
    for condition, title in CONDITION_TITLES.items():
        found = {(row.suite, row.arm): row for row in rows if row.condition == condition}
        arms = list(dict.fromkeys(arm for _, arm in found))
        columns = [[Cell(arm) for arm in arms]]
        for _, suite, value in estimates:
            rates = [value(found[suite, arm]) if (suite, arm) in found else Rate(0, 0) for arm in arms]
            columns.append(mark_best([one.value for one in rates], [rate(one) for one in rates], max))
        if arms:
            groups.append((title, [list(row) for row in zip(*columns, strict=True)]))
    return Table("", [Column("Arm", "text"), *(Column(name, "estimate") for name, *_ in estimates)], groups)


def of_counts(rows: list[HijackRow]) -> Table:
    """The answers behind the rates, and those left out."""
    numbers: dict[str, Callable[[HijackRow], int]] = {
        "Answers": lambda row: row.answers,
        "Judged": lambda row: row.hijacked.trials,
        "Hijacked": lambda row: row.hijacked.successes,
        "Refused": lambda row: row.refused.successes,
        "Empty": lambda row: row.empty,
        "No verdict": lambda row: row.unreadable,
        "Cut": lambda row: row.cut,
        "Failed": lambda row: row.failed,
    }
    groups = [
        (
            title,
            [
                [
                    Cell(row.arm),
                    Cell(row.condition),
                    *(Cell(whole(number(row))) for number in numbers.values()),
                ]
                for row in rows
                if row.suite == suite
            ],
        )
        for suite, title in SUITES.items()
    ]
    columns = [Column("Arm", "text"), Column("Condition", "text"), *map(Column, numbers)]
    return Table("Answers behind the rates", columns, [group for group in groups if group[1]])


def of_templates(rows: list[TemplateRow]) -> Table:
    """The defense against every template (rows), by arm (columns)."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    groups = []
    for condition, title in CONDITION_TITLES.items():
        own = [row for row in rows if row.condition == condition]
        found = {(row.template, row.arm): row.defended for row in own}
        cells = []
        for template in dict.fromkeys(row.template for row in own):
            rates = [found.get((template, arm), Rate(0, 0)) for arm in arms]
            best = mark_best([one.value for one in rates], [rate(one) for one in rates], max)
            cells.append([Cell(template), *best])
        if cells:
            groups.append((title, cells))
    columns = [Column("Template", "text"), *(Column(f"{arm}, %", "estimate") for arm in arms)]
    return Table("Defended, by template", columns, groups)


def of_differences(found: dict[tuple[str, str], list[Difference]]) -> Table:
    """Paired differences, by suite and condition."""
    verdicts = {HARMFUL: ("defends more", "defends less"), CONTROL: ("obeys more", "obeys less")}
    groups = [
        (
            f"{SUITES[suite].partition(':')[0]}, {condition}",
            [[Cell(f"{d.arm} − {d.baseline}"), *difference(d, *verdicts[suite])] for d in differences],
        )
        for (suite, condition), differences in found.items()
        if differences
    ]
    return Table("", difference_columns("Difference", "Orders"), groups)


def of_agreement(found: dict[str, Agreement]) -> Table:
    """The judge's verdicts beside the rule's."""
    rows = []
    for suite, both in found.items():
        counts = [Cell(whole(number)) for number in (both.only_first, both.only_second)]
        rows.append(
            [
                Cell(SUITES[suite].partition(":")[0]),
                Cell(whole(both.n)),
                rate(both.agreed),
                kappa(both),
                *counts,
            ]
        )
    columns = [
        Column("Targets", "text"),
        Column("Answers"),
        Column("Agreement, %", "estimate"),
        Column("κ", "estimate"),
        *map(Column, ("Hijacked by judge alone", "Hijacked by rule alone")),
    ]
    return Table("The judge and the rule", columns, [("", rows)])
