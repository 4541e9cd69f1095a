"""The tables of the jailbreak suite."""

from collections.abc import Callable

from pipeline.report.summary import Difference, Rate
from pipeline.report.tables import (
    Cell,
    Column,
    Table,
    difference,
    difference_columns,
    mark_best,
    mean,
    rate,
    whole,
)
from pipeline.suites.jailbreak.summary import AttackRow, GoalsRow

TRANSFORMS = "Transforms of goals"


def of_attacks(
    rows: list[AttackRow], title: str, value: Callable[[AttackRow], Rate], *, best: bool = True
) -> Table:
    """A rate of every attack (rows) and arm (columns), lower is better."""
    arms = list(dict.fromkeys(row.arm for row in rows))
    found = {(row.attack, row.arm): value(row) for row in rows}
    groups: dict[str, list[list[Cell]]] = {}
    for attack in dict.fromkeys(row.attack for row in rows):
        rates = [found.get((attack, arm), Rate(0, 0)) for arm in arms]
        source, slash, name = attack.partition("/")
        cells = [rate(one) for one in rates]
        if best:
            cells = mark_best([one.value for one in rates], cells, min)
        of = f"Ready prompts: {source}" if slash else TRANSFORMS
        groups.setdefault(of, []).append([Cell(name if slash else attack), *cells])
    columns = [Column("Attack", "text"), *(Column(f"{arm}, %", "estimate") for arm in arms)]
    shown = list(groups.items()) if len(groups) > 1 else [("", rows) for rows in groups.values()]
    return Table(title, columns, shown, measure=title or "Attack success")


def of_goals(rows: list[GoalsRow]) -> Table:
    """Every arm over all attacks, by goal."""
    broken = mark_best([r.broken.value for r in rows], [rate(r.broken) for r in rows], min)
    safety = mark_best([r.safety.value for r in rows], [mean(r.safety) for r in rows], max)
    worst = mark_best([r.worst.value for r in rows], [mean(r.worst) for r in rows], max)
    cells = [
        [
            Cell(r.arm),
            *estimates,
            Cell(whole(r.broken.trials)),
            Cell(_span(r.attacks)),
            Cell(whole(r.partial)),
        ]
        for r, *estimates in zip(rows, broken, safety, worst, strict=True)
    ]
    names = ("Goals broken by any attack, %", "Mean safety", "Worst-decile safety")
    columns = [Column("Arm", "text"), *(Column(name, "estimate") for name in names)]
    return Table(
        "", [*columns, Column("Goals"), Column("Attacks per goal"), Column("Not judged fully")], [("", cells)]
    )


def _span(counts: tuple[int, int]) -> str:
    return whole(counts[0]) if counts[0] == counts[1] else f"{whole(counts[0])}–{whole(counts[1])}"


def of_counts(rows: list[AttackRow], *, judged: bool) -> Table:
    """The answers behind the rates, and those left out, by attack and arm. judged: a judge was asked."""
    numbers: dict[str, Callable[[AttackRow], int]] = {"Answers": lambda r: r.answers}
    if judged:
        numbers |= {"Judged": lambda r: r.success.trials, "No verdict": lambda r: r.unreadable}
    numbers |= {"Empty": lambda r: r.empty, "Cut": lambda r: r.cut, "Failed": lambda r: r.failed}
    cells = [
        [Cell(row.attack), Cell(row.arm), *(Cell(whole(number(row))) for number in numbers.values())]
        for row in rows
    ]
    columns = [Column("Attack", "text"), Column("Arm", "text"), *map(Column, numbers)]
    return Table("Answers behind the rates", columns, [("", cells)], folded=True)


def of_differences(found: dict[str, list[Difference]]) -> Table:
    """Paired differences of the safety of goals, by measure."""
    groups = [
        (
            title,
            [[Cell(f"{d.arm} − {d.baseline}"), *difference(d, "safer", "less safe")] for d in differences],
        )
        for title, differences in found.items()
        if differences
    ]
    return Table("", difference_columns("Difference", "Goals"), groups)
