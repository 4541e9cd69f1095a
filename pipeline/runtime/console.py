"""How much is told: `--quiet`, `--verbose`, and a progress bar for work in steps.

Without a terminal, a line is printed now and then instead of a bar.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

QUIET_LINE_EVERY_S = 30


@dataclass
class Level:
    """quiet: only warnings, no progress. verbose: messages of libraries too, on the terminal."""

    quiet: bool = False
    verbose: bool = False


level = Level()  # of this process; the command line sets it


@contextmanager
def step_bar(
    label: str, report: Callable[[int, int], None] = lambda step, steps: None
) -> Iterator[Callable[[int, int, str], None]]:
    """Yields `update(step, steps, note)`. The bar appears with the first update and disappears at the end.

    report: also called on each update, with step and steps.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if level.quiet:
        shown: AbstractContextManager = nullcontext(lambda step, steps, note: None)
    elif console.is_terminal:
        shown = _bar(label, console)
    else:
        shown = nullcontext(_lines(label, console))
    with shown as show:

        def update(step: int, steps: int, note: str) -> None:
            show(step, steps, note)
            report(step, steps)

        yield update


@contextmanager
def _bar(label: str, console) -> Iterator[Callable[[int, int, str], None]]:
    with new_bar(console) as bar:
        task = bar.add_task(label, total=None, note="starting")
        yield lambda step, steps, note: bar.update(task, completed=step, total=steps, note=note)


def new_bar(console):
    """A rich progress bar with a count, the time left and a free `note`; disappears at the end."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        note,
    )
    return Progress(*columns, console=console, transient=True)


def _lines(label: str, console) -> Callable[[int, int, str], None]:
    told_at = time.monotonic()

    def update(step: int, steps: int, note: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= QUIET_LINE_EVERY_S:
            told_at = time.monotonic()
            console.print(f"{label}: step {step} of {steps}, {note}", highlight=False, soft_wrap=True)

    return update
