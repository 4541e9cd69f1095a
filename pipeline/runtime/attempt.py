"""An attempt: one run of an experiment on a run directory.

Its file is lease, heartbeat and history, and the source of `setbacks status`.

RUN/.state/attempts/0003.json   host, process, start time, state, stage, progress, and a heartbeat counter

One attempt at a time works on a directory. No clocks are compared to find out whether the newest attempt is
alive. If its process id is valid on this machine, that process is looked up; otherwise its heartbeat counter
is watched on the local monotonic clock. An attempt that was taken for dead (suspended, cut off from its
storage) and wakes up finds a newer one, publishes nothing and ends.
"""

import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from pipeline.data import storage
from pipeline.data.conditional import Replaced
from pipeline.errors import RunFailed, UserError

BEAT_S = 5.0
WATCH_S = 3 * BEAT_S  # an attempt without a heartbeat for this long is dead
POLL_S = 1.0
INTERRUPTS = 3  # at most, of the main thread, BEAT_S apart, once another attempt has taken over
RUNNING, FINISHED, INTERRUPTED, KILLED = "running", "finished", "interrupted", "killed"  # and "failed: …"


class Attempt:
    """Holds a run directory while the body of `with Attempt(…):` runs; at most one per process.

    Entering raises UserError if another attempt is running. Leaving raises RunFailed if another attempt has
    taken over meanwhile.
    """

    def __init__(self, run_dir: str, stages: list[str]):
        self.run_dir, self.directory = run_dir, attempts_dir(run_dir)
        self._facts = {
            "number": 0,
            "token": secrets.token_hex(8),
            **_process(),
            "stages": stages,
            "started": _now(),
            "updated": _now(),
            "beat": 0,
            "state": RUNNING,
            "stage": None,
            "outputs": {},
            "rows": 0,
            "last_error": None,
            "metrics": [],
        }
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._lost: str | None = None

    def __enter__(self) -> "Attempt":
        global _current
        try:
            self._take()
        except OSError as e:
            why = f"cannot be read or written ({e.strerror or e})"
            raise UserError(f"{self.directory}: {why}; fix it or choose another run_dir") from None
        here = threading.current_thread()
        self._main = threading.get_ident() if here is threading.main_thread() else None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        _current = self
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        global _current
        _current = None
        self.end(_ending(error))
        if self._lost:
            raise RunFailed(self._lost) from None

    def end(self, state: str) -> None:
        """Record how this attempt ended, unless another one has taken over and recorded that already."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(BEAT_S)
        with suppress(OSError, RunFailed):
            self.check()
            self._write(state=state)

    def check(self) -> None:
        """Raises RunFailed if another attempt has taken over.

        Rereads the directory; call it before publishing.
        """
        newest = _newest(self.directory)
        if newest is not None and (
            newest["number"] > self._facts["number"]
            or newest.get("token", "") not in ("", self._facts["token"])
        ):
            self._lost = (
                f"attempt {newest['number']} on {newest.get('host', 'another host')} has taken over"
                f" {self.run_dir}; this one, number {self._facts['number']}, ends without publishing anything"
            )
        if self._lost:
            raise RunFailed(self._lost)

    @property
    def number(self) -> int:
        return self._facts["number"]

    def update(self, **facts) -> None:
        """Record the progress. Raises RunFailed if another attempt has taken over."""
        with suppress(OSError):  # the next heartbeat writes it
            self.check()
            self._write(**facts)

    def report(self, output: str | None, rows: int, error: str | None, progress: dict) -> None:
        """Keep progress for the next heartbeat to write."""
        with self._lock:
            made = self._facts["outputs"]
            self._facts["outputs"] = made | {name: progress for name in made if output in (None, name)}
            self._facts["rows"] += rows
            self._facts["last_error"] = error or self._facts["last_error"]

    # -- taking the directory

    def _take(self) -> None:
        storage.agree(self.run_dir)
        while True:
            newest = _newest(self.directory)
            running = newest if newest is not None and newest.get("state") == RUNNING else None
            if running is not None and is_alive(self.run_dir, running):
                raise UserError(
                    f"run_dir = {self.run_dir}: attempt {running['number']} is using it "
                    f"(host {running['host']}, process {running['pid']}, since {running['started']}); "
                    "wait for it, stop it, or choose another run_dir"
                )
            self._facts["number"] = newest["number"] + 1 if newest else 1
            path = _path(self.directory, self._facts["number"])
            if (file := storage.create(path, json.dumps(self._facts, indent=1))) is not None:
                self._file = file
                break
        if running is not None:
            path = _path(self.directory, running["number"])
            storage.write_text(path, json.dumps({**running, "state": KILLED}, indent=1))
        self._tidy()

    def _tidy(self) -> None:
        """Remove what earlier attempts have half written when they died."""
        with suppress(OSError):  # it is in nobody's way
            for half_written in storage.files(self.directory, ".tmp"):
                name = storage.name(half_written)
                if (number := name.partition(".")[0]).isdecimal() and int(number) < self._facts["number"]:
                    storage.remove(storage.join(self.directory, name))

    # -- keeping it

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.check()
                self._write(beat=self._facts["beat"] + 1)
            except OSError:
                continue  # storage unreachable; the next heartbeat checks for a takeover
            except RunFailed:
                if self._main is None:
                    return
                # One signal may not be enough. If it arrives while the kernel restarts a system call, as
                # after a suspension, Python notices it only when that call returns.
                for _ in range(INTERRUPTS):
                    signal.pthread_kill(self._main, signal.SIGINT)
                    if self._ended.wait(BEAT_S):
                        break
                return

    def _write(self, **facts) -> None:
        with self._lock:
            self._facts |= facts | {"updated": _now()}
            try:
                self._file.write(json.dumps(self._facts, indent=1))
            except Replaced:
                self.check()
                self._lost = f"somebody else has written {self._file.path}; this attempt ends"
                raise RunFailed(self._lost) from None


# -- the attempt of this process: these functions do nothing if there is none

_current: Attempt | None = None


def number() -> int:
    """Number of this process's attempt (0 if none). Keeps the checkpoints of different attempts apart."""
    return _current.number if _current else 0


def begin(stage: str) -> None:
    """A stage begins."""
    if _current:
        _current.update(stage=stage, outputs={})


def making(*outputs: str) -> None:
    """The stage starts on these outputs, several if made together: names of data sets, or `adapter/ARM`."""
    if _current:
        _current.update(outputs=dict.fromkeys(outputs))


def report(
    done: int,
    total: int,
    unit: str,
    *,
    output: str | None = None,
    failed: int | None = None,
    per_s: float | None = None,
    tokens_per_s: float | None = None,
    new_rows: int = 0,
    error: str | None = None,
) -> None:
    """Report progress: `done` of `total` in `unit` (rows, steps), and `new_rows` since the last report.

    output: one of the outputs in progress; not needed if there is only one.
    failed: rows that this attempt kept as failed; per_s, tokens_per_s: of this attempt.
    error: the kind of the last failure, never text that a model or a data set may have written.
    """
    if _current:
        eta = round((total - done) / per_s) if per_s else None
        progress = {
            "unit": unit,
            "done": done,
            "total": total,
            "failed": failed,
            "per_s": per_s and round(per_s, 3),
        }
        progress |= {"tokens_per_s": tokens_per_s, "eta_s": eta, "note": error}
        _current.report(output, new_rows, error, progress)


def step_reporter() -> Callable[[int, int], None]:
    """`report` for work in steps.

    The speed counts from the first step reported: earlier steps may be another attempt's.
    """
    first: tuple[int, float] | None = None

    def report_step(step: int, steps: int) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (step, now)
        report(step, steps, "steps", per_s=(step - first[0]) / (now - first[1]) if step > first[0] else None)

    return report_step


def metrics(addresses: list[str]) -> None:
    """Record the addresses for scraping metrics of this attempt's engines, one per node."""
    if _current:
        _current.update(metrics=addresses)


def check() -> None:
    """Call before publishing. Raises RunFailed if another attempt has taken over the run directory."""
    if _current:
        _current.check()


def end(state: str) -> None:
    """Record how this process's attempt ended."""
    if _current:
        _current.end(state)


# -- reading


def attempts_dir(run_dir: str) -> str:
    """Directory of the attempts' files in a run directory."""
    return storage.join(run_dir, ".state", "attempts")


def history(run_dir: str) -> list[dict]:
    """All attempts, oldest first; an unreadable file yields its number only."""
    directory = attempts_dir(run_dir)
    return [{"number": number, **(_read(directory, number) or {})} for number in _numbers(directory)]


def is_alive(run_dir: str, attempt: dict) -> bool:
    """Whether an attempt in state `running` is alive.

    Returns at once if its process can be looked up, else within WATCH_S.
    """
    me, directory = _process(), attempts_dir(run_dir)
    if me["boot"] and (me["boot"], me["pids"]) == (attempt.get("boot"), attempt.get("pids")):
        return started(attempt["pid"]) == attempt["process_started"]
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(POLL_S)
        now = _read(directory, attempt["number"])
        if now is None or (now["token"], now["beat"], now["state"]) != (
            attempt["token"],
            attempt["beat"],
            attempt["state"],
        ):
            return now is not None and now["state"] == RUNNING
    return False


def _newest(directory: str) -> dict | None:
    numbers = _numbers(directory)
    return {"number": numbers[-1], **(_read(directory, numbers[-1]) or {})} if numbers else None


def _numbers(directory: str) -> list[int]:
    return sorted(int(name[:-5]) for name in storage.sizes(directory) if re.fullmatch(r"\d{4,}\.json", name))


def _read(directory: str, number: int) -> dict | None:
    try:
        found = json.loads(storage.read_text(_path(directory, number)))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _path(directory: str, number: int) -> str:
    return storage.join(directory, f"{number:04d}.json")


# -- this process


def _process() -> dict:
    """Identity of this process.

    A process id is comparable only within one boot and one process namespace (of a container).
    """
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pids": _namespace(),
        "pid": pid,
        "process_started": started(pid),
    }


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _namespace() -> str | None:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def started(pid: int) -> int | None:
    """Start time of a living process, in kernel ticks since boot (no clock changes them); None if gone."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[19]) if fields[0] not in "ZX" else None
    return None


def _ending(error: BaseException | None) -> str:
    match error:
        case None:
            return FINISHED
        case KeyboardInterrupt() | SystemExit():
            return INTERRUPTED
        case UserError() | RunFailed():
            return f"failed: {' '.join(str(error).split())}"
    return f"failed: {type(error).__name__}"  # unforeseen; its text may hold anything


def _now() -> str:
    """For people only; nothing is computed from it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
