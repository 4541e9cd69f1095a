"""A progress bar for work in steps: the toy model's training, an arm's fine-tuning.

Without a terminal, a line is printed now and then instead.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

QUIET_LINE_EVERY_S = 30


@contextmanager
def step_bar(
    label: str, report: Callable[[int, int], None] = lambda step, steps: None
) -> Iterator[Callable[[int, int, str], None]]:
    """Yields `update(step, steps, note)`. The bar appears with the first update and disappears at the end.

    report: also called on each update, with step and steps.
    """
    from rich.console import Console

    console = Console(stderr=True)
    with _bar(label, console) if console.is_terminal else nullcontext(_lines(label, console)) as show:

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
