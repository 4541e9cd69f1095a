"""Progress of a stage, counted in a small Ray actor that engines report to and the driver shows.

Counts are per output: data sets that are made together share engines, but not figures. A terminal shows a bar
per output with rows/s, tokens/s, ETA and the judge's rate so far; otherwise a line is printed every half
minute. The attempt (`setbacks status`) gets the same figures; Ray's metrics get each engine's part: see
docs/observing.md.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields

from pipeline.data.store import reason
from pipeline.inference.beside import OPENINGS, Failures
from pipeline.inference.metrics import EngineMetrics, Load
from pipeline.runtime import attempt
from pipeline.runtime.console import QUIET_LINE_EVERY_S, level, new_bar
from pipeline.runtime.session import actor_id, actor_on_driver_node
from pipeline.schema import FAILED


@dataclass
class Tally:
    """Counts that add up over rows.

    A verdict is on a row's response (`harmful` of `judged`) or on one of its paths (`corrected` of `paths`).
    """

    rows: int = 0
    failed: int = 0
    judged: int = 0
    harmful: int = 0
    paths: int = 0
    corrected: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_s: float = 0.0  # engine time: see `Reporter.flush`
    last_error: str | None = field(default=None, compare=False)  # the kind of the error, not its text

    @classmethod
    def of(cls, row: dict) -> "Tally":
        harmful, paths = (
            row.get("harmful"),
            [verdict for verdict in row.get("corrected") or [] if verdict is not None],
        )
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


class Counter(Failures):
    """A Ray actor that sums the reports of all engines, by output."""

    def __init__(self):
        super().__init__()
        self.tallies: dict[str, Tally] = defaultdict(Tally)
        self.fruitless_starts = 0
        self.starts: dict[str, int] = {}
        self.notices: dict[str, None] = {}  # in the order in which they came
        self.engine_start_s: float | None = None
        self.first_engine_at: float | None = None
        self.last_row_at: float | None = None

    def add(self, tallies: dict[str, Tally]) -> None:
        for output, tally in tallies.items():
            self.tallies[output] += tally
        self.fruitless_starts = 0
        self.last_row_at = time.monotonic()

    def engine_starting(self) -> int:
        """Engine starts since the last finished row, this one included; many mean that engines crash."""
        self.fruitless_starts += 1
        return self.fruitless_starts

    def not_opened(self, engine: str | None, why: str) -> int:
        self.fruitless_starts -= 1  # it did not crash over a row, and has a limit of its own
        times = super().not_opened(engine, why)
        if times < OPENINGS:
            self.tell(f"an engine did not start, and is started again: {why}")
        return times

    def starting(self, what: str) -> int:
        """How often this block or row has been started, this time included; above 1 if an actor died."""
        self.starts[what] = self.starts.get(what, 0) + 1
        return self.starts[what]

    def tell(self, notice: str) -> None:
        """Keep a notice for the driver; the same one of several engines is kept once."""
        self.notices[notice] = None

    def engine_ready(self, seconds: float) -> None:
        if self.engine_start_s is None:
            self.engine_start_s, self.first_engine_at = seconds, time.monotonic()

    def read(self) -> dict:
        busy = (self.last_row_at - self.first_engine_at) if self.last_row_at and self.first_engine_at else 0.0
        return {
            "tallies": dict(self.tallies),
            "engine_start_s": self.engine_start_s,
            "busy_s": busy,
            "notices": list(self.notices),
        }


class Reporter:
    """The engine's side: collects counts of rows and sends them at most twice a second."""

    def __init__(self, counter, label: str = ""):
        self._counter, self._label = counter, label
        self._pending: dict[str, Tally] = defaultdict(Tally)
        self._sent_at, self._divided_at, self._arrival = 0.0, time.monotonic(), None
        self._load = Load()
        self._metrics: EngineMetrics | None = None

    def engine_starting(self) -> int:
        import ray

        return ray.get(self._counter.engine_starting.remote())

    def not_opened(self, engine: str | None, why: str) -> int:
        import ray

        return ray.get(self._counter.not_opened.remote(engine, why))

    def starting(self, what: str) -> int:
        import ray

        return ray.get(self._counter.starting.remote(what))

    def engine_ready(self, seconds: float) -> None:
        self._counter.opened.remote(actor_id())
        self._counter.engine_ready.remote(seconds)
        self._metrics, self._divided_at = EngineMetrics(self._label), time.monotonic()

    def tell(self, notice: str) -> None:
        """Show a notice to the person watching, once."""
        self._counter.tell.remote(notice)

    def rows_waiting(self, rows: int) -> None:
        """Record that `rows` rows of a block have been read."""
        self._load.waiting += rows

    def row_started(self) -> None:
        self._load.start()

    def row_done(self, output: str, tally: Tally) -> None:
        self._load.end()
        self._pending[output] += tally
        if time.monotonic() - self._sent_at > 0.5:
            self.flush()

    def flush(self) -> None:
        """Send the pending counts.

        One batch serves all outputs, so the engine's time since rows were last sent is divided among outputs
        by the tokens that their rows have sampled. Each row counts one token extra, since some rows sample
        nothing.
        """
        now = time.monotonic()
        weights = {output: tally.completion_tokens + tally.rows for output, tally in self._pending.items()}
        for output, weight in weights.items():
            self._pending[output].engine_s = (now - self._divided_at) * weight / sum(weights.values())
        if weights:
            self._divided_at = now
        self._arrival = self._counter.add.remote(dict(self._pending))
        if self._metrics:
            self._metrics.record(self._pending, self._load)
        self._pending, self._sent_at = defaultdict(Tally), now

    def arrived(self) -> None:
        """Wait until the counter has added the last counts sent."""
        import ray

        ray.get(self._arrival)


class Progress:
    """The driver's side. extents: output → rows that earlier attempts have committed, and total rows."""

    def __init__(self, label: str, extents: dict[str, tuple[int, int]]):
        self.label, self.extents = label, extents
        self._reported = dict.fromkeys(extents, 0)
        self._counter = actor_on_driver_node(Counter)
        self._started, self._apart, self._start_told = time.monotonic(), 0.0, False
        self._notices: list[str] = []  # of the engines, so far
        self._notices_told = 0

    def reporter(self) -> Reporter:
        return Reporter(self._counter, self.label)

    def figures(self) -> dict[str, dict]:
        """This attempt's figures by output: `Tally`, engine_start_s, busy_s, tokens_per_s, resumed_rows.

        busy_s: the output's part of the time from the first engine's start to the last row.
        tokens_per_s: over busy_s, all engines together.
        """
        import ray

        read = ray.get(self._counter.read.remote())
        self._notices = read["notices"]
        tallies = {output: read["tallies"].get(output, Tally()) for output in self.extents}
        engines_s = sum(tally.engine_s for tally in tallies.values())
        found = {}
        for output, tally in tallies.items():
            busy = read["busy_s"] * tally.engine_s / engines_s if engines_s else 0.0
            found[output] = asdict(tally) | {
                "engine_s": round(tally.engine_s, 3),
                "engine_start_s": read["engine_start_s"],
                "busy_s": round(busy, 3),
                "resumed_rows": self.extents[output][0],
                "tokens_per_s": round(tally.completion_tokens / busy, 1) if busy > 0 else None,
            }
        return found

    def ended(self, output: str) -> dict:
        """The figures of an output whose rows are all done, and `seconds`.

        `seconds` is the output's part of the engines' time, plus all other time since the last output ended
        (or since the start). So the seconds of all outputs add up to wall-clock time. The outputs share the
        engines' start, so it is reported once: with the first output that ends.
        """
        found = self.figures()
        apart = time.monotonic() - self._started - sum(figures["busy_s"] for figures in found.values())
        mine = found[output] | {"seconds": round(found[output]["busy_s"] + apart - self._apart, 2)}
        if self._start_told:
            mine["engine_start_s"] = None
        self._apart, self._start_told = apart, self._start_told or mine["engine_start_s"] is not None
        return mine

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the counts, and the engines' notices, while the body runs."""
        from rich.console import Console

        stop = threading.Event()
        thread = threading.Thread(target=self._watch, args=(stop,), daemon=True)
        thread.start()
        try:
            yield
            self._report(self.figures())
        finally:
            stop.set()
            thread.join(timeout=5)
            self._tell_notices(Console(stderr=True))

    def _watch(self, stop: threading.Event) -> None:
        from ray.exceptions import RayError
        from rich.console import Console

        console = Console(stderr=True)
        with suppress(RayError), self._shown_on(console) as show:  # Ray may go first
            while not stop.wait(0.5):
                figures = self.figures()
                self._report(figures)
                show(figures)
                self._tell_notices(console)

    @contextmanager
    def _shown_on(self, console) -> Iterator[Callable[[dict[str, dict]], None]]:
        if level.quiet or not console.is_terminal:
            yield (lambda _found: None) if level.quiet else self._lines(console)
            return
        with new_bar(console) as bar:
            start = {"note": "starting the engine"}
            tasks = {
                output: bar.add_task(f"{self.label} {output}", total=total, completed=done, **start)
                for output, (done, total) in self.extents.items()
            }

            def show(found: dict[str, dict]) -> None:
                for output, figures in found.items():
                    bar.update(tasks[output], completed=self._done(output, figures), note=self._note(figures))

            yield show

    def _tell_notices(self, console) -> None:
        """Print the notices that have not been printed. Above the bars, if the console shows any."""
        for notice in self._notices[self._notices_told :]:
            console.print(f"{self.label}: {notice}", highlight=False, soft_wrap=True, markup=False)
        self._notices_told = len(self._notices)

    def _lines(self, console) -> Callable[[dict[str, dict]], None]:
        told_at = time.monotonic()

        def show(found: dict[str, dict]) -> None:
            nonlocal told_at
            if time.monotonic() - told_at < QUIET_LINE_EVERY_S:
                return
            told_at = time.monotonic()
            for output, figures in found.items():
                done, total = self._done(output, figures), self.extents[output][1]
                if done < total:
                    line = f"{self.label} {output}: {done:,} of {total:,} rows, {self._note(figures)}"
                    console.print(line, highlight=False, soft_wrap=True)

        return show

    def _report(self, found: dict[str, dict]) -> None:
        for output, figures in found.items():
            new, self._reported[output] = figures["rows"] - self._reported[output], figures["rows"]
            attempt.report(
                self._done(output, figures),
                self.extents[output][1],
                "rows",
                output=output,
                failed=figures["failed"],
                per_s=_per_s(figures),
                tokens_per_s=figures["tokens_per_s"],
                new_rows=new,
                error=figures["last_error"],
            )

    def _done(self, output: str, figures: dict) -> int:
        return self.extents[output][0] + figures["rows"]

    @staticmethod
    def _note(figures: dict) -> str:
        if not figures["rows"]:
            return "starting the engine" if figures["engine_start_s"] is None else "no rows yet"
        notes = [f"{_per_s(figures) or 0:,.1f} rows/s", f"{figures['tokens_per_s'] or 0:,.0f} tokens/s"]
        for found, judged in (("harmful", "judged"), ("corrected", "paths")):
            if figures[judged]:
                notes.append(f"{figures[found] / figures[judged]:.0%} {found}")
        if figures["failed"]:
            notes.append(f"{figures['failed']} failed")
        return ", ".join(notes)


def _per_s(figures: dict) -> float | None:
    """Rows per second of engine time, without the engines' start."""
    return figures["rows"] / figures["busy_s"] if figures["busy_s"] > 0 else None
