"""The tables of the safety suite."""

from collections.abc import Callable

from pipeline.report.agreement import Agreement
from pipeline.report.summary import Rate
from pipeline.report.tables import (
    Cell,
    Column,
    Table,
    difference,
    difference_columns,
    grade,
    mark_best,
    mean,
    points,
    rate,
    whole,
)
from pipeline.suites.judges import corrected
from pipeline.suites.safety.summary import ArmRow, CategoryRow, PairedDifference

CONDITION_TITLES = {
    "plain": "Plain: the instruction alone",
    "reminder": "Reminder: the instruction preceded by the reminder to be harmless",
    "hint": "Hint: the instruction with the cue that induces mistakes",
    "think": "Think: first whether an answer could be harmful, then the answer",
}


SHORT_TITLES = {condition: title.partition(":")[0] for condition, title in CONDITION_TITLES.items()}


def of_arms(rows: list[ArmRow], *, rated: bool, helpful: bool, error: Agreement | None = None) -> Table:
    """The table of arms, grouped by condition; the best arm of a group is marked. error: the judge's."""
    estimates: dict[str, tuple[Callable, Callable, Callable]] = {
        "Harmless, %": (lambda r: r.harmless, rate, max)
    }
    if any(r.harmless_score.n for r in rows):
        estimates["Harmless 1–10"] = (lambda r: r.harmless_score, mean, max)
    if any(r.harm_score.n for r in rows):
        estimates["StrongREJECT 0–1"] = (lambda r: r.harm_score, mean, min)
    if rated:
        estimates["Harm-Help"] = (lambda r: r.harm_help, mean, max)
    if rated and helpful:
        estimates["Help"] = (lambda r: r.help, mean, max)
    if helpful:
        estimates["Over-refusal, %"] = (lambda r: r.over_refusal, rate, min)

    def cells(group: list[ArmRow]) -> list[list[Cell]]:
        columns = [[Cell(r.arm) for r in group]]
        for value, show, better in estimates.values():
            columns.append(
                mark_best([value(r).value for r in group], [show(value(r)) for r in group], better)
            )
        columns.insert(2, [corrected(r.harmless, error) for r in group])
        return [list(row) for row in zip(*columns, strict=True)]

    names = list(estimates)
    return Table(
        "",
        [
            Column("Arm", "text"),
            *(Column(name, "estimate") for name in (names[0], "Corrected, %", *names[1:])),
        ],
        _by_condition(rows, CONDITION_TITLES, cells),
    )


def of_counts(rows: list[ArmRow], *, rated: bool) -> Table:
    """The number of answers behind the table of arms, and of answers left out."""
    numbers: dict[str, Callable] = {
        "Red-team answers": lambda r: r.answers - r.benign,
        "Judged": lambda r: r.judged,
        "No verdict": lambda r: r.unreadable,
    }
    if any(r.other_category for r in rows):
        numbers["Other category"] = lambda r: r.other_category
    if rated:
        numbers["No rating"] = lambda r: r.unreadable_ratings
    if any(r.benign for r in rows):
        numbers["Benign answers"] = lambda r: r.benign
    numbers["Cut"] = lambda r: r.cut
    if any(r.deliberations_cut for r in rows):
        numbers["Deliberations cut"] = lambda r: r.deliberations_cut
    numbers["Failed"] = lambda r: r.failed

    def cells(group: list[ArmRow]) -> list[list[Cell]]:
        return [[Cell(r.arm), *(Cell(whole(value(r))) for value in numbers.values())] for r in group]

    return Table(
        "Answers behind the rates",
        [Column("Arm", "text"), *map(Column, numbers)],
        _by_condition(rows, SHORT_TITLES, cells),
    )


def of_differences(differences: list[PairedDifference]) -> Table:
    """Paired differences of the harmless rate."""
    return _paired("", "Points", differences, points)


def of_scores(differences: list[PairedDifference]) -> Table:
    """Paired differences of the harmless score."""
    return _paired("Harmless score", "Rating points", differences, grade)


def _paired(title: str, unit: str, differences: list[PairedDifference], shown: Callable) -> Table:
    def cells(group: list[PairedDifference]) -> list[list[Cell]]:
        return [
            [Cell(f"{d.arm} − {d.baseline}"), *difference(d, "more harmless", "less harmless", shown)]
            for d in group
        ]

    columns = difference_columns("Difference", "Instructions", unit)
    return Table(title, columns, _by_condition(differences, SHORT_TITLES, cells))


def of_categories(rows: list[CategoryRow]) -> Table:
    """The numbers behind the plot of categories: one row per category, one column per arm."""
    arms = list(dict.fromkeys(r.arm for r in rows))

    def cells(group: list[CategoryRow]) -> list[list[Cell]]:
        found = {(r.category, r.arm): r.harmless for r in group}
        categories = dict.fromkeys(r.category for r in group)
        return [
            [Cell(name), *(rate(found.get((name, arm), Rate(0, 0))) for arm in arms)] for name in categories
        ]

    columns = [Column("Category", "text"), *(Column(f"{arm}, %", "estimate") for arm in arms)]
    return Table("Harmless rate per category", columns, _by_condition(rows, SHORT_TITLES, cells), folded=True)


def _by_condition(rows: list, titles: dict[str, str], cells: Callable) -> list[tuple[str, list[list[Cell]]]]:
    grouped = ((title, [r for r in rows if r.condition == condition]) for condition, title in titles.items())
    return [(title, cells(group)) for title, group in grouped if group]
