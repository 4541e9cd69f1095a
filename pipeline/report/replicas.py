"""Tables that compare arms, if arms are trained with several seeds: a line per arm, and one per seed.

Suites write tables with a line or a column for every adapter, as if each were an arm. `by_arm` puts mean and
range over the seeds in the place of an arm's replicas, and keeps the replicas in a second table. A column
shows mean and range if its cells have a `value` (`tables.rate`, `tables.mean`, `tables.difference`).
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pipeline.report.arms import Arms, Spread
from pipeline.report.sections import Section
from pipeline.report.tables import NOTHING, Cell, Column, Table, mark_best
from pipeline.settings.shown import plural

NOTE = (
    "Seeds: arms trained with several seeds show the mean over the seeds and the range, the highest minus the"
    " lowest. Intervals are over instructions or entries and do not contain what another training seed would"
    " change; the spread over seeds stands beside them. The tables of every seed have the intervals of each."
)

_SEEDS = re.compile(r" \(\d+ seeds?\)")  # what `_label` adds


def by_arm(section: Section, arms: Sequence[str]) -> Section:
    """The section with its tables by arm, each followed by the table of every seed. Unchanged if no arm has
    several seeds."""
    known = Arms.of(arms)
    if not known.replicas:
        return section
    found = [made for table in section.tables for made in _split(table, known)]
    notes = [*section.notes, NOTE] if len(found) > len(section.tables) else section.notes
    return replace(section, tables=found, notes=notes)


def _split(table: Table, arms: Arms) -> list[Table]:
    """A table by arm and one of every seed; the table as it is if it has no replica.

    A table that measures nothing keeps every seed, and is folded.
    """
    in_columns = any(arms.labeled(column.name) != column.name for column in table.columns)
    in_rows = any(arms.labeled(row[0].text) != row[0].text for _, rows in table.groups for row in rows)
    if not in_columns and not in_rows:
        return [table]
    if not any(cell.shown for _, rows in table.groups for row in rows for cell in row):
        return [replace(table, folded=True) if table.title else table]
    title = f"{table.title}: every seed" if table.title else "Every seed"
    merged, every = (_columns if in_columns else _rows)(table, arms)
    of_rows = any(not column.name for column in table.columns)  # the rows say what is measured
    measure = table.measure or ("" if of_rows else table.title)
    return [merged, replace(every, title=title, folded=True, measure=measure)]


def _rows(table: Table, arms: Arms) -> tuple[Table, Table]:
    """Arms in rows: the first cell names them; texts right behind it say what of them the row is about."""
    merged, every = [], []
    kinds = [column.kind for column in table.columns]
    leading = next((place for place, kind in enumerate(kinds) if kind != "text"), len(kinds))
    for heading, rows in table.groups:
        kept: dict[tuple[str, ...], list[list[Cell]]] = {}
        for row in rows:
            key = (arms.labeled(row[0].text), *(cell.text for cell in row[1:leading]))
            kept.setdefault(key, []).append(row)
        lines = [
            same[0]
            if label == same[0][0].text
            else [
                Cell(_label(label, len(same))),
                *(
                    _merged(list(cells), column)
                    for cells, column in zip(
                        zip(*(row[1:] for row in same), strict=True), table.columns[1:], strict=True
                    )
                ),
            ]
            for (label, *_), same in kept.items()
        ]
        merged.append((heading, _best_of_columns(lines)))
        single = [row for row in rows if arms.labeled(row[0].text) != row[0].text]
        every.append((heading, [list(map(_unmarked, row)) for row in single]))
    return replace(table, groups=merged), replace(table, groups=[part for part in every if part[1]])


def _columns(table: Table, arms: Arms) -> tuple[Table, Table]:
    """Arms in columns: the columns' names begin with theirs."""
    places: dict[str, list[int]] = {}
    for place, column in enumerate(table.columns):
        places.setdefault(arms.labeled(column.name), []).append(place)
    alone = {label for label, at in places.items() if label == table.columns[at[0]].name}
    columns = [
        replace(table.columns[at[0]], name=label if label in alone else _label(label, len(at)))
        for label, at in places.items()
    ]
    merged = [
        (
            heading,
            [
                _best(
                    [
                        row[at[0]]
                        if label in alone
                        else _merged([row[place] for place in at], table.columns[at[0]])
                        for label, at in places.items()
                    ]
                )
                for row in rows
            ],
        )
        for heading, rows in table.groups
    ]
    single = [0, *(place for label, at in places.items() if label not in alone for place in at)]
    every = [
        (heading, [[_unmarked(row[place]) for place in single] for row in rows])
        for heading, rows in table.groups
    ]
    return (
        replace(table, columns=columns, groups=merged),
        replace(table, columns=[table.columns[place] for place in single], groups=every),
    )


def _label(label: str, seeds: int) -> str:
    """`dpo` of three seeds: `dpo (3 seeds)`; a column's unit stays last: `dpo (3 seeds), %`."""
    name, comma, unit = label.rpartition(", %")
    told = f"({plural(seeds, 'seed')})"
    return f"{name} {told}{comma}{unit}" if comma else f"{label} {told}"


def without_seeds(text: str) -> str:
    """A row's or column's name without the number of seeds: `dpo (3 seeds), %` → `dpo, %`."""
    return _SEEDS.sub("", text)


def _merged(cells: list[Cell], column: Column) -> Cell:
    """The cell of an arm, from those of its replicas."""
    known = [cell for cell in cells if cell.value is not None and cell.shown is not None]
    if known:
        spread, first = Spread([cell.value for cell in known if cell.value is not None]), known[0]
        shown = first.shown or str
        told = spread.told(shown) or "one seed"
        if 1 < len(known) < len(cells):
            told += f" of {len(known)} seeds"
        apart = first.better is None and all(c.best for c in cells) and _same_sign(spread)
        number = first.number and replace(
            first.number, value=spread.mean, low=None, high=None, n=_same_n(known)
        )
        return Cell(shown(spread.mean), told, apart, number, shown, first.better)
    texts = [cell.text for cell in cells]
    if len(set(texts)) == 1:
        return replace(cells[0], interval="", best=False)
    if column.kind == "text":
        return Cell(", ".join(f"{text} ({n} of {len(texts)})" for text, n in Counter(texts).items()))
    return Cell(", ".join(texts) if column.kind == "number" else NOTHING)


def _same_n(cells: list[Cell]) -> int | None:
    """What every replica counted; None if they counted differently many."""
    found = {cell.number.n for cell in cells if cell.number}
    return found.pop() if len(found) == 1 else None


def _same_sign(spread: Spread) -> bool:
    return min(spread.values) > 0 or max(spread.values) < 0


def _unmarked(cell: Cell) -> Cell:
    """Without the mark of the best: the best seed of many is mostly luck. Differences keep theirs."""
    return replace(cell, best=False) if cell.better else cell


def _best_of_columns(rows: list[list[Cell]]) -> list[list[Cell]]:
    columns = [_best(list(cells)) for cells in zip(*rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _best(cells: list[Cell]) -> list[Cell]:
    """The cells with the best one marked anew, if one is to be marked."""
    better = next((cell.better for cell in cells if cell.better), None)
    if better is None:
        return cells
    plain = [replace(cell, best=False) for cell in cells]
    return mark_best([cell.value for cell in cells], plain, better)
