"""One engine's metrics in Ray (see docs/observing.md)."""

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.inference.progress import Tally


class Load:
    """Rows waiting for the engine, rows in flight, and the share of time with any row in flight."""

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
        """Share of the time since the last call in which rows were in flight."""
        now = time.monotonic()
        busy = self._busy + (now - self._busy_since if self.in_flight else 0.0)
        share = busy / max(now - self._since, 1e-9)
        self._since, self._busy_since, self._busy = now, now, 0.0
        return min(share, 1.0)


class EngineMetrics:
    """One engine's metrics in Ray. Create it in the engine's process; Ray adds node and worker labels."""

    def __init__(self, label: str):
        from ray.util import metrics

        def of(kind: type, name: str, what: str, *keys: str):
            found = kind(f"setbacks_{name}", description=what, tag_keys=(*keys, "stage"))
            return found.set_default_tags({"stage": label})

        self._rows = of(metrics.Counter, "rows", "rows done, failed ones included", "output")
        self._failed = of(metrics.Counter, "rows_failed", "rows kept as failed", "output")
        self._prompt = of(metrics.Counter, "prompt_tokens", "tokens of prompts", "output")
        self._completion = of(metrics.Counter, "completion_tokens", "tokens sampled", "output")
        self._waiting = of(metrics.Gauge, "rows_waiting", "rows read that are still waiting for the engine")
        self._in_flight = of(metrics.Gauge, "rows_in_flight", "rows between their first and last step")
        self._busy = of(
            metrics.Gauge,
            "engine_busy",
            "share of the time since the last figure in which the engine had a row to work on",
        )

    def record(self, tallies: "dict[str, Tally]", load: Load) -> None:
        for output, tally in tallies.items():
            for counter, count in (
                (self._rows, tally.rows),
                (self._failed, tally.failed),
                (self._prompt, tally.prompt_tokens),
                (self._completion, tally.completion_tokens),
            ):
                if count:  # Ray refuses to add 0
                    counter.inc(count, {"output": output})
        self._waiting.set(load.waiting)
        self._in_flight.set(load.in_flight)
        self._busy.set(load.busy_share())
