"""A table of the report, in the terminal."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.commands.show import safe_text
from pipeline.report.tables import Table


def printed(table: Table, console: Console) -> None:
    """Print a table: its title, its headings as lines, its cells with their intervals."""
    if table.title:
        console.print(f"[bold]{_safe(table.title)}[/bold]")
    grid = Grid(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in table.columns:
        grid.add_column(_safe(column.name), justify="left" if column.kind == "text" else "right")
    for heading, rows in table.groups:
        if heading:
            grid.add_row(f"[italic]{_safe(heading)}[/italic]")
        for row in rows:
            cells = [" ".join(filter(None, (cell.text, cell.interval))) for cell in row]
            marks = ["[bold]" if cell.best else "" for cell in row]
            grid.add_row(*(f"{mark}{_safe(text)}" for mark, text in zip(marks, cells, strict=True)))
    console.print(grid)


def _safe(text: str) -> str:
    return escape(safe_text(text))
