"""Progress of a stage, counted in a small Ray actor that engines report to and the driver shows.

On a terminal: one bar with rows/s, tokens/s, ETA and the running rate of what the judge looks for. Elsewhere: a line every half minute.
The same goes to the attempt (`setbacks status`), and each engine's part to Ray's metrics: see docs/observing.md.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields

from pipeline import attempt
from pipeline.console import QUIET_LINE_EVERY_S, new_bar
from pipeline.data.schema import FAILED
from pipeline.data.store import reason
from pipeline.session import beside_driver


@dataclass
class Tally:
    """Counts that add up over rows. Verdicts are of a row's response (`harmful` of `judged`), or of its paths (`corrected` of `paths`)."""

    rows: int = 0
    failed: int = 0
    judged: int = 0
    harmful: int = 0
    paths: int = 0
    corrected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    last_error: str | None = field(default=None, compare=False)  # its kind, not its text

    @classmethod
    def of(cls, row: dict) -> "Tally":
        harmful, paths = row.get("harmful"), [verdict for verdict in row.get("corrected") or [] if verdict is not None]
        return cls(
            rows=1,
            failed=row.get("status") == FAILED,
            judged=harmful is not None,
            harmful=harmful is True,
            paths=len(paths),
            corrected=sum(paths),
            prompt_tokens=row.get("prompt_tokens") or 0,
            completion_tokens=row.get("completion_tokens") or 0,
            last_error=reason(row["error"]) if row.get("status") == FAILED and row.get("error") else None,
        )

    def __iadd__(self, other: "Tally") -> "Tally":
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.last_error = other.last_error or self.last_error
        return self


_COUNTS = [count.name for count in fields(Tally) if count.name != "last_error"]


class Counter:
    """Lives in a Ray actor of its own: the sum of what all engines report."""

    def __init__(self):
        self.tally = Tally()
        self.fruitless_starts = 0
        self.starts: dict[str, int] = {}
        self.engine_start_s: float | None = None
        self.first_engine_at: float | None = None
        self.last_row_at: float | None = None

    def add(self, tally: Tally) -> None:
        self.tally += tally
        self.fruitless_starts = 0
        self.last_row_at = time.time()

    def engine_starting(self) -> int:
        """Engine starts since the last finished row, this one included: many of them mean that engines die before they finish anything."""
        self.fruitless_starts += 1
        return self.fruitless_starts

    def starting(self, what: str) -> int:
        """How often this block or row has been begun, this time included: more than once where an actor died over it."""
        self.starts[what] = self.starts.get(what, 0) + 1
        return self.starts[what]

    def engine_ready(self, seconds: float) -> None:
        if self.engine_start_s is None:
            self.engine_start_s, self.first_engine_at = seconds, time.time()

    def read(self) -> dict:
        busy = (self.last_row_at - self.first_engine_at) if self.last_row_at and self.first_engine_at else 0.0
        return {**asdict(self.tally), "engine_start_s": self.engine_start_s, "busy_s": busy}


class Reporter:
    """The engine's end: gathers rows and sends them at most twice a second."""

    def __init__(self, counter, label: str = ""):
        self._counter, self._label = counter, label
        self._pending, self._sent_at = Tally(), 0.0
        self._load, self._metrics = Load(), None

    def engine_starting(self) -> int:
        import ray

        return ray.get(self._counter.engine_starting.remote())

    def starting(self, what: str) -> int:
        import ray

        return ray.get(self._counter.starting.remote(what))

    def engine_ready(self, seconds: float) -> None:
        self._counter.engine_ready.remote(seconds)
        self._metrics = EngineMetrics(self._label)

    def rows_waiting(self, rows: int) -> None:
        """So many rows of a block have been read."""
        self._load.waiting += rows

    def row_started(self) -> None:
        self._load.start()

    def row_done(self, tally: Tally) -> None:
        self._load.end()
        self._pending += tally
        if time.monotonic() - self._sent_at > 0.5:
            self.flush()

    def flush(self) -> None:
        self._counter.add.remote(self._pending)
        if self._metrics:
            self._metrics.record(self._pending, self._load)
        self._pending, self._sent_at = Tally(), time.monotonic()


class Load:
    """Rows waiting for a place in the engine's batch, rows in flight, and for how much of the time there were any."""

    def __init__(self):
        self.waiting = self.in_flight = 0
        self._since = self._busy_since = time.monotonic()
        self._busy = 0.0

    def start(self) -> None:
        if not self.in_flight:
            self._busy_since = time.monotonic()
        self.waiting, self.in_flight = self.waiting - 1, self.in_flight + 1

    def end(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self._busy += time.monotonic() - self._busy_since

    def busy_share(self) -> float:
        """Of the time since the last call."""
        now = time.monotonic()
        busy = self._busy + (now - self._busy_since if self.in_flight else 0.0)
        share = busy / max(now - self._since, 1e-9)
        self._since, self._busy_since, self._busy = now, now, 0.0
        return min(share, 1.0)


class EngineMetrics:
    """What one engine does, in Ray's metrics. To be made in the engine's process; Ray adds node and worker to every figure."""

    def __init__(self, label: str):
        from ray.util import metrics

        def of(kind: type, name: str, what: str):
            return kind(f"setbacks_{name}", description=what, tag_keys=("stage",)).set_default_tags({"stage": label})

        self._rows = of(metrics.Counter, "rows", "rows done, failed ones included")
        self._failed = of(metrics.Counter, "rows_failed", "rows kept as failed")
        self._prompt = of(metrics.Counter, "prompt_tokens", "tokens of prompts")
        self._completion = of(metrics.Counter, "completion_tokens", "tokens sampled")
        self._waiting = of(metrics.Gauge, "rows_waiting", "rows read that have no place in the engine's batch yet")
        self._in_flight = of(metrics.Gauge, "rows_in_flight", "rows between their first and last step")
        self._busy = of(metrics.Gauge, "engine_busy", "share of the time since the last figure in which the engine had a row to work on")

    def record(self, tally: Tally, load: Load) -> None:
        for counter, count in (
            (self._rows, tally.rows),
            (self._failed, tally.failed),
            (self._prompt, tally.prompt_tokens),
            (self._completion, tally.completion_tokens),
        ):
            if count:  # Ray refuses to add 0
                counter.inc(count)
        self._waiting.set(load.waiting)
        self._in_flight.set(load.in_flight)
        self._busy.set(load.busy_share())


class Progress:
    """The driver's end. `done` rows of `total` were committed by earlier attempts."""

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done = label, total, done
        self._reported = 0
        self._counter = beside_driver(Counter)

    def reporter(self) -> Reporter:
        return Reporter(self._counter, self.label)

    def figures(self) -> dict:
        """rows, failed, prompt_tokens, completion_tokens of this attempt, engine_start_s, and tokens_per_s once an engine ran."""
        import ray

        read = ray.get(self._counter.read.remote())
        tokens = read["completion_tokens"]
        rate = round(tokens / read["busy_s"], 1) if read["busy_s"] > 0 else None
        return {**read, "resumed_rows": self.done, "tokens_per_s": rate}

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the counts while the body runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
            self._report(self.figures())
        finally:
            stop.set()
            thread.join(timeout=5)

    def _watch(self, stop: threading.Event) -> None:
        from ray.exceptions import RayError
        from rich.console import Console

        with suppress(RayError), self._shown_on(Console(stderr=True)) as show:  # Ray may go first
            while not stop.wait(0.5):
                figures = self.figures()
                self._report(figures)
                show(figures)

    @contextmanager
    def _shown_on(self, console) -> Iterator[Callable[[dict], None]]:
        if not console.is_terminal:
            yield self._lines(console)
            return
        with new_bar(console) as bar:
            task = bar.add_task(self.label, total=self.total, completed=self.done, note="starting the engine")
            yield lambda figures: bar.update(task, completed=self.done + figures["rows"], note=self._note(figures))

    def _lines(self, console) -> Callable[[dict], None]:
        told_at = time.monotonic()

        def show(figures: dict) -> None:
            nonlocal told_at
            if time.monotonic() - told_at >= QUIET_LINE_EVERY_S:
                told_at = time.monotonic()
                done = self.done + figures["rows"]
                console.print(f"{self.label}: {done:,} of {self.total:,} rows, {self._note(figures)}", highlight=False, soft_wrap=True)

        return show

    def _report(self, figures: dict) -> None:
        new, self._reported = figures["rows"] - self._reported, figures["rows"]
        attempt.report(
            self.done + figures["rows"],
            self.total,
            "rows",
            failed=figures["failed"],
            per_s=_per_s(figures),
            tokens_per_s=figures["tokens_per_s"],
            new_rows=new,
            error=figures["last_error"],
        )

    @staticmethod
    def _note(figures: dict) -> str:
        if not figures["rows"]:
            return "starting the engine" if figures["engine_start_s"] is None else "first rows"
        notes = [f"{_per_s(figures) or 0:,.1f} rows/s", f"{figures['tokens_per_s'] or 0:,.0f} tokens/s"]
        for found, judged in (("harmful", "judged"), ("corrected", "paths")):
            if figures[judged]:
                notes.append(f"{figures[found] / figures[judged]:.0%} {found}")
        if figures["failed"]:
            notes.append(f"{figures['failed']} failed")
        return ", ".join(notes)


def _per_s(figures: dict) -> float | None:
    """Rows per second since the first engine was ready."""
    return figures["rows"] / figures["busy_s"] if figures["busy_s"] > 0 else None
