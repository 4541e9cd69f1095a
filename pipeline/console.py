"""A bar for work that goes in steps: the toy model's training, an arm's fine-tuning. Elsewhere than on a terminal, a line now and then.

The attempt is told of every step, too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from pipeline import attempt

QUIET_LINE_EVERY_S = 30


@contextmanager
def step_bar(label: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields `update(step, steps, note)`. The bar appears with the first update and is gone afterwards."""
    from rich.console import Console

    console, report = Console(stderr=True), _reported()
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
    """A rich progress bar with a count, the time left and a free `note`; gone when it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    note = TextColumn("{task.fields[note]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), note)
    return Progress(*columns, console=console, transient=True)


def _lines(label: str, console) -> Callable[[int, int, str], None]:
    told_at = time.monotonic()

    def update(step: int, steps: int, note: str) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= QUIET_LINE_EVERY_S:
            told_at = time.monotonic()
            console.print(f"{label}: step {step} of {steps}, {note}", highlight=False, soft_wrap=True)

    return update


def _reported() -> Callable[[int, int], None]:
    """Tells the attempt, with the speed since the first step that was told: earlier ones may be another attempt's."""
    first: tuple[int, float] | None = None

    def report(step: int, steps: int) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (step, now)
        attempt.report(step, steps, "steps", per_s=(step - first[0]) / (now - first[1]) if step > first[0] else None)

    return report
