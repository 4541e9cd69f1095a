"""Kill whatever belongs to a run, at random, until it is through all the same; then compare it with an
undisturbed run.

    python -m tests.chaos.chaos --seed 0 --kills 25
    python -m tests.chaos.chaos --seed 0 --kills 3 --engine toy

The seed fixes victims, signals and moments; what is under way at that moment is the machine's affair. Exit
code 0: the run is equal to the undisturbed one, and nothing of it is left on the machine.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.chaos import harness
from tests.chaos.harness import Driver, Job

VICTIMS = {
    "dummy": ("engine actor", "driver", "raylet", "gcs", "ray worker"),
    "toy": ("vllm child", "engine actor", "driver"),
}
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGSTOP]
ROWS_PER_KILL = 900
HUNG_AFTER_S = (
    240  # without a committed block or a kill; Ray itself waits up to a minute for a GCS that has gone
)
FRUITLESS_ENDS = 4  # of the driver, one after the other, with nobody killed


@dataclass(frozen=True)
class Stroke:
    """One kill: `victims` in the order in which they are looked for, and when: by work done, or by time,
    whichever comes first."""

    victims: tuple[str, ...]
    signal: signal.Signals
    share: float  # of the blocks that are still to be done, per stroke that is still to come
    seconds: float
    stopped_s: float  # if the signal is SIGSTOP: seconds until SIGCONT


def strokes(seed: int, kills: int, engine: str) -> list[Stroke]:
    """Three in ten come a few seconds after the last one, whatever is under way then: mostly a start."""
    chance = random.Random(seed)
    return [
        Stroke(
            tuple(chance.sample(VICTIMS[engine], len(VICTIMS[engine]))),
            chance.choice(SIGNALS),
            chance.uniform(0.3, 1.0),
            chance.uniform(0, 12) if chance.random() < 0.3 else float("inf"),
            chance.uniform(1, 6),
        )
        for _ in range(kills)
    ]


class Chaos:
    """A job that is run again and again while strokes fall on it."""

    def __init__(self, job: Job, planned: list[Stroke]):
        self.job, self.planned, self.made = job, planned, 0
        self.started = self.last_at = time.monotonic()
        self.last_blocks = 0
        self.ends: Counter[int] = Counter()
        self.hangs = 0

    def run(self) -> bool:
        """Run the same command until it ends with 0. False if it does not."""
        driver, fruitless = Driver(self.job), 0
        moved_at, blocks = time.monotonic(), 0
        while fruitless < FRUITLESS_ENDS:
            time.sleep(0.1)
            if (code := driver.process.poll()) is not None:
                self.ends[code] += 1
                if code == 0:
                    return True
                self._tell_end(code, driver)
                fruitless += 1
                driver, moved_at = Driver(self.job), time.monotonic()
            elif self._due() and self._strike():
                fruitless, moved_at = 0, time.monotonic()
            elif (committed := self.job.committed()) != blocks:
                blocks, moved_at = committed, time.monotonic()
            elif time.monotonic() - moved_at > HUNG_AFTER_S:
                self.hangs += 1
                self._tell(f"nothing has moved for {HUNG_AFTER_S} s; the driver is killed")
                driver.process.kill()
                moved_at = time.monotonic()
        return False

    def _due(self) -> bool:
        if self.made == len(self.planned):
            return False
        stroke, total, done = self.planned[self.made], self.job.blocks(), self.job.committed()
        if time.monotonic() - self.last_at >= stroke.seconds:
            return total == 0 or done < total
        left = (total - self.last_blocks) / (len(self.planned) - self.made + 1)
        return total > 0 and self.last_blocks + max(1, stroke.share * left) <= done < total

    def _strike(self) -> bool:
        """False if none of the victims lives yet."""
        stroke = self.planned[self.made]
        living = ((kind, found) for kind in stroke.victims if (found := harness.processes(self.job, kind)))
        kind, found = next(living, (None, []))
        if kind is None:
            return False
        victim = found[-1]  # the newest: not one that an earlier stroke has left dying
        try:
            victim.send_signal(stroke.signal)
        except psutil.Error:
            return False
        if stroke.signal == signal.SIGSTOP:
            wake = threading.Timer(stroke.stopped_s, _send, (victim, signal.SIGCONT))
            wake.daemon = True
            wake.start()
        self.made, self.last_at, self.last_blocks = self.made + 1, time.monotonic(), self.job.committed()
        stopped = f" for {stroke.stopped_s:.1f} s" if stroke.signal == signal.SIGSTOP else ""
        self._tell(f"kill {self.made} of {len(self.planned)}: {stroke.signal.name} to {kind}{stopped}")
        return True

    def _tell_end(self, code: int, driver: Driver) -> None:
        last = (driver.output.read_text().splitlines() or ["without a word"])[-1][:240]
        self._tell(f"the driver ended with {code} ({last}); the same command again")

    def _tell(self, what: str) -> None:
        print(
            f"{time.monotonic() - self.started:6.1f} s, {self.job.committed():4} of {self.job.blocks()}"
            f" blocks: {what}",
            flush=True,
        )


def _send(process: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.Error):
        process.send_signal(number)


def jobs(directory: Path, kills: int, engine: str) -> tuple[Job, Job]:
    """The undisturbed job, and the one to be disturbed: the same work, and as long as so many kills need."""
    if engine == "dummy":
        source = harness.write_source(directory / "instructions.jsonl", ROWS_PER_KILL * kills)
        return harness.write_job(directory / "undisturbed", source), harness.write_job(
            directory / "disturbed", source, latency_s=0.1
        )
    settings = {
        "model": {"path": "toy", "dtype": "float32"},
        "engine": {"kind": "vllm", "rows_per_commit": 16, "max_num_seqs": 32},
        "recipe": {"samples": 8, "induce": {"max_tokens": 48}, "analyse": {"max_tokens": 64}},
    }
    source = "toy:harmful-train"
    return tuple(
        harness.write_job(directory / name, source, **settings) for name in ("undisturbed", "disturbed")
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--engine", choices=sorted(VICTIMS), default="dummy")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="setbacks-chaos-") as directory:
        undisturbed, disturbed = jobs(Path(directory), given.kills, given.engine)
        code, output = Driver(undisturbed).wait(900)
        if code != 0:
            print(f"the undisturbed run ended with {code}:\n{output}")
            return 1
        chaos = Chaos(disturbed, strokes(given.seed, given.kills, given.engine))
        try:
            through = chaos.run()
            found = (
                harness.differences(disturbed, undisturbed, sampled=given.engine == "toy")
                if through
                else ["it did not come to its end"]
            )
            found += [f"{name} is left on the machine" for name in harness.left_behind(disturbed)]
        finally:
            harness.end_processes(disturbed)
        return _verdict(chaos, undisturbed, found, given)


def _verdict(chaos: Chaos, undisturbed: Job, found: list[str], given: argparse.Namespace) -> int:
    if chaos.made < given.kills:
        found.append(f"only {chaos.made} kills came in time")
    if chaos.hangs:
        found.append(f"{chaos.hangs} times nothing moved any more")
    ends = ", ".join(f"{count} with {code}" for code, count in sorted(chaos.ends.items()))
    rows = undisturbed.complete()["rows"]
    print(
        f"seed {given.seed}: {chaos.made} kills, {rows:,} rows, {time.monotonic() - chaos.started:.0f} s;"
        f" ends of the driver: {ends}"
    )
    if given.engine == "toy":
        mine, other = harness.rows_of(chaos.job.run).to_pylist(), harness.rows_of(undisturbed.run).to_pylist()
        same = sum(a == b for a, b in zip(mine, other, strict=True))
        print(
            f"{same} of {rows} rows are identical; a real engine's samples may differ with what is in the"
            " batch beside them"
        )
    for what in found:
        print(f"  {what}")
    print(
        f"equal to the undisturbed run{' in ids and accounting' if given.engine == 'toy' else ''}:"
        f" {'no' if found else 'yes'}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
