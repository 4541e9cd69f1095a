"""What stands behind a section's numbers: of how many they are, and who judged.

A number without its n and its judge can be quoted and not be read. `behind` adds both to every table and
figure of measured numbers, so suites need not.
"""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.report.sections import Figure, Section
from pipeline.report.tables import Cell, Column, Table, whole

MEASURED = ("share", "score", "coefficient", "share_difference", "score_difference")


def behind(section: Section, judged: Sequence[str] = ()) -> Section:
    """judged: what is judged by whom, the main judge first, such as `harmlessness of answers by rating`.

    A figure shows the first measure of the section's first table of measures, by the main judge.
    """
    who, main = (f"Judged: {'; '.join(one)}." if one else "" for one in (judged, judged[:1]))
    measured = next((table for table in section.tables if _measures(table)), None)
    return replace(
        section,
        tables=[_table(table, who) if _measures(table) else table for table in section.tables],
        figures=[_figure(figure, measured, main) for figure in section.figures]
        if measured
        else section.figures,
    )


def _measures(table: Table) -> bool:
    return bool(_counted(table))


def _counted(table: Table) -> dict[int, list[int]]:
    """Place of each column of estimates → the n of its cells, without those of nothing."""
    found: dict[int, list[int]] = {}
    for row in _rows(table):
        for place, (column, cell) in enumerate(zip(table.columns, row, strict=True)):
            number = cell.number
            if column.kind == "estimate" and number and number.n and number.unit in MEASURED:
                found.setdefault(place, []).append(number.n)
    return found


def _rows(table: Table) -> list[list[Cell]]:
    return [row for _, rows in table.groups for row in rows]


def _table(table: Table, who: str) -> Table:
    if not _by_row(table):
        told = _told(table)
        return replace(table, note=" ".join(filter(None, (told, who))))
    groups = [(heading, [[*row, Cell(_row_n(row))] for row in rows]) for heading, rows in table.groups]
    return replace(table, columns=[*table.columns, Column("n")], groups=groups, note=who)


def _by_row(table: Table) -> bool:
    """Whether rows count differently, but all cells of a row the same, and no column of the table says it."""
    rows = [_ns(row) for row in _rows(table)]
    return all(len(found) < 2 for found in rows) and len(set().union(*rows)) > 2 and not _is_there(table)


def _ns(row: Sequence[Cell]) -> set[int]:
    return {cell.number.n for cell in row if cell.number and cell.number.n}


def _row_n(row: Sequence[Cell]) -> str:
    return whole(next(iter(_ns(row)), 0))


def _is_there(table: Table) -> bool:
    """Whether a column of counts holds the n of every row that has one."""
    rows = [row for row in _rows(table) if _ns(row)]
    counts = [place for place, column in enumerate(table.columns) if column.kind == "number"]
    return any(all({_count(row[place])} == _ns(row) for row in rows) for place in counts)


def _count(cell: Cell) -> int | float | None:
    return cell.figure.value if cell.figure else None


def _told(table: Table) -> str:
    """`n = 105.`, or the n of each column: `n: 105 (Harmless), 63 (Over-refusal).`"""
    if _is_there(table):
        return ""
    spans: dict[str, list[str]] = {}
    for place, found in _counted(table).items():
        spans.setdefault(_span(found), []).append(table.columns[place].name.removesuffix(", %"))
    if len(spans) == 1:
        return f"n = {next(iter(spans))}."
    parts = [f"{span} ({', '.join(names)})" for span, names in spans.items()]
    return f"n: {'; '.join(parts)}."


def _span(found: Sequence[int]) -> str:
    low, high = min(found), max(found)
    return whole(low) if low == high else f"{whole(low)} to {whole(high)}"


def _figure(figure: Figure, table: Table, who: str) -> Figure:
    found = next(iter(_counted(table).values()))
    return replace(figure, caption=f"{figure.caption} n = {_span(found)} per point. {who}".rstrip())
