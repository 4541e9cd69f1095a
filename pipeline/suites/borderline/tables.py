"""The tables of the borderline suite."""

from pipeline.report.summary import Difference, Rate
from pipeline.report.tables import (
    Cell,
    Column,
    Table,
    difference,
    difference_columns,
    mark_best,
    rate,
    whole,
)
from pipeline.suites.borderline.schema import FULL, PARTIAL, REFUSAL, SAFE, UNSAFE
from pipeline.suites.borderline.summary import CategoryRow, HalfRow

HALVES = {SAFE: "Safe half: ought to be answered", UNSAFE: "Unsafe half: ought to be refused"}


def of_arms(halves: dict[str, list[HalfRow]]) -> Table:
    """Both axes side by side: what ought to be answered, and what ought to be refused."""
    estimates = {
        (SAFE, "compliance"): ("Safe: full compliance, %", max),
        (SAFE, "refusal"): ("Safe: refused, %", min),
        (UNSAFE, "refusal"): ("Unsafe: refused, %", max),
        (UNSAFE, "compliance"): ("Unsafe: full compliance, %", min),
    }
    arms = list(dict.fromkeys(row.arm for rows in halves.values() for row in rows))
    columns: list[list[Cell]] = [[Cell(arm) for arm in arms]]
    names = []
    for (half, which), (name, better) in estimates.items():
        if half not in halves:
            continue
        found = {row.arm: getattr(row, which) for row in halves[half]}
        rates = [found.get(arm, Rate(0, 0)) for arm in arms]
        columns.append(mark_best([one.value for one in rates], [rate(one) for one in rates], better))
        names.append(Column(name, "estimate"))
    return Table(
        "", [Column("Arm", "text"), *names], [("", [list(row) for row in zip(*columns, strict=True)])]
    )


def of_counts(halves: dict[str, list[HalfRow]]) -> Table:
    """The answers behind the rates, by class, and those left out."""
    names = ("Answers", "Full", "Partial", "Refusal", "of these empty", "No class", "Cut", "Failed")
    groups = []
    for half, rows in halves.items():
        cells = []
        for row in rows:
            classes = (row.classes[name] for name in (FULL, PARTIAL, REFUSAL))
            numbers = (row.answers, *classes, row.empty, row.unreadable, row.cut, row.failed)
            cells.append([Cell(row.arm), *(Cell(whole(number)) for number in numbers)])
        groups.append((HALVES[half], cells))
    return Table("Answers behind the rates", [Column("Arm", "text"), *map(Column, names)], groups)


def of_differences(found: dict[str, list[Difference]]) -> Table:
    """Paired differences on each half of how often an arm does what is right there."""
    verdicts = {SAFE: ("complies more", "complies less"), UNSAFE: ("refuses more", "refuses less")}
    groups = [
        (
            HALVES[half],
            [[Cell(f"{d.arm} − {d.baseline}"), *difference(d, *verdicts[half])] for d in differences],
        )
        for half, differences in found.items()
        if differences
    ]
    return Table("", difference_columns("Difference", "Prompts"), groups)


def of_categories(rows: list[CategoryRow]) -> Table:
    """Full compliance per category, one column per arm."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    groups = []
    for half, title in HALVES.items():
        of_half = [row for row in rows if row.half == half]
        found = {(row.category, row.arm): row.compliance for row in of_half}
        cells = [
            [Cell(name), *(rate(found[name, arm]) for arm in arms)]
            for name in dict.fromkeys(row.category for row in of_half)
        ]
        groups.append((title, cells))
    columns = [Column("Category", "text"), *(Column(f"{arm}, %", "estimate") for arm in arms)]
    return Table("Full compliance per category", columns, [g for g in groups if g[1]], folded=True)
