"""An attempt: one run of an experiment on a run directory. Its file is lease, heartbeat, history and what `setbacks status` reads.

RUN/.state/attempts/0003.json   who runs (host, process), since when, what became of it, which stage, how far, and a beat that goes on counting

One attempt at a time works on a directory. Whether the newest one still lives is found without comparing clocks: where its process id means
something here, by that process; elsewhere by watching, on our own monotonic clock, whether its beat goes on. An attempt that was taken for dead
(suspended, cut off from its storage) and wakes up finds a newer one, publishes nothing and ends.
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
from pipeline.errors import RunFailed, UserError

BEAT_S = 5.0
WATCH_S = 3 * BEAT_S  # so long without a beat is dead
POLL_S = 1.0
INTERRUPTS = 3  # of the main thread at most, a beat apart, once another attempt has taken over
RUNNING, FINISHED, INTERRUPTED, KILLED = "running", "finished", "interrupted", "killed"  # and "failed: …"


class Attempt:
    """Holds a run directory for as long as the body of `with Attempt(…):` runs, one in a process.

    Entering raises UserError where another attempt is at work; leaving raises RunFailed where another one has taken over meanwhile.
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
            raise UserError(f"{self.directory}: cannot be read or written ({e.strerror or e}); mend it or choose another run_dir") from None
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
        """Say how this attempt ended, unless another one has taken over: then that one has said it."""
        self._ended.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(BEAT_S)
        with suppress(OSError, RunFailed):
            self.check()
            self._write(state=state)

    def check(self) -> None:
        """Raises RunFailed where another attempt has taken over. It reads the directory anew: to be called before anything is published."""
        newest = _newest(self.directory)
        if newest is not None and (newest["number"] > self._facts["number"] or newest.get("token", "") not in ("", self._facts["token"])):
            self._lost = (
                f"attempt {newest['number']} on {newest.get('host', 'another host')} has taken over {self.run_dir}; "
                f"this one, number {self._facts['number']}, ends without publishing anything"
            )
        if self._lost:
            raise RunFailed(self._lost)

    @property
    def number(self) -> int:
        return self._facts["number"]

    def update(self, **facts) -> None:
        """Say where the work is. Raises RunFailed where another attempt has taken over."""
        with suppress(OSError):  # the next beat says it
            self.check()
            self._write(**facts)

    def report(self, output: str | None, rows: int, error: str | None, progress: dict) -> None:
        """Keep what the next beat is to say."""
        with self._lock:
            made = self._facts["outputs"]
            self._facts["outputs"] = made | {name: progress for name in made if output in (None, name)}
            self._facts["rows"] += rows
            self._facts["last_error"] = error or self._facts["last_error"]

    # -- taking the directory

    def _take(self) -> None:
        while True:
            newest = _newest(self.directory)
            running = newest if newest is not None and newest.get("state") == RUNNING else None
            if running is not None and is_alive(self.run_dir, running):
                raise UserError(
                    f"run_dir = {self.run_dir}: attempt {running['number']} is at work there "
                    f"(host {running['host']}, process {running['pid']}, since {running['started']}); "
                    "wait for it, stop it, or choose another run_dir"
                )
            self._facts["number"] = newest["number"] + 1 if newest else 1
            if storage.create(_path(self.directory, self._facts["number"]), json.dumps(self._facts, indent=1)):
                break
        if running is not None:
            path = _path(self.directory, running["number"])
            storage.write_text(path, json.dumps({**running, "state": KILLED}, indent=1))

    # -- keeping it

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            try:
                self.check()
                self._write(beat=self._facts["beat"] + 1)
            except OSError:
                continue  # out of reach; whether somebody took over meanwhile is seen at the next beat
            except RunFailed:
                if self._main is None:
                    return
                # One signal may not be enough: one that meets a system call which the kernel is restarting, as after a
                # suspension, is noticed only when that call returns.
                for _ in range(INTERRUPTS):
                    signal.pthread_kill(self._main, signal.SIGINT)
                    if self._ended.wait(BEAT_S):
                        break
                return

    def _write(self, **facts) -> None:
        with self._lock:
            self._facts |= facts | {"updated": _now()}
            storage.write_text(_path(self.directory, self._facts["number"]), json.dumps(self._facts, indent=1))


# -- the attempt of this process: these do nothing where there is none

_current: Attempt | None = None


def number() -> int:
    """Of this process's attempt, from 1; 0 where there is none. What attempts may not write together goes where the number says."""
    return _current.number if _current else 0


def begin(stage: str) -> None:
    """A stage begins."""
    if _current:
        _current.update(stage=stage, outputs={})


def making(*outputs: str) -> None:
    """The stage turns to these outputs, several if made together: names of data sets, or `adapter/ARM`."""
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
    """How far an output is: `done` of `total` in `unit` (rows, steps); `new_rows` since the last report.

    output: which of those that are being made; not needed if there is only one.
    failed: rows that this attempt kept as failed; per_s, tokens_per_s: of this attempt.
    error: the kind of the last failure, never a text that a model or a data set may have written.
    """
    if _current:
        eta = round((total - done) / per_s) if per_s else None
        progress = {"unit": unit, "done": done, "total": total, "failed": failed, "per_s": per_s and round(per_s, 3)}
        progress |= {"tokens_per_s": tokens_per_s, "eta_s": eta, "note": error}
        _current.report(output, new_rows, error, progress)


def step_reporter() -> Callable[[int, int], None]:
    """`report` for work that goes in steps, with the speed since the first step reported: earlier steps may be another attempt's."""
    first: tuple[int, float] | None = None

    def report_step(step: int, steps: int) -> None:
        nonlocal first
        now = time.monotonic()
        first = first or (step, now)
        report(step, steps, "steps", per_s=(step - first[0]) / (now - first[1]) if step > first[0] else None)

    return report_step


def metrics(addresses: list[str]) -> None:
    """Where the figures of this attempt's engines can be scraped: one address a node."""
    if _current:
        _current.update(metrics=addresses)


def check() -> None:
    """Before anything is published. Raises RunFailed where another attempt has taken over the run directory."""
    if _current:
        _current.check()


def end(state: str) -> None:
    if _current:
        _current.end(state)


# -- reading


def attempts_dir(run_dir: str) -> str:
    return storage.join(run_dir, ".state", "attempts")


def history(run_dir: str) -> list[dict]:
    """All attempts, oldest first; a file that cannot be read has its number only."""
    directory = attempts_dir(run_dir)
    return [{"number": number, **(_read(directory, number) or {})} for number in _numbers(directory)]


def is_alive(run_dir: str, attempt: dict) -> bool:
    """Whether an attempt that says `running` is: at once where its process can be looked up, after up to WATCH_S where it cannot."""
    me, directory = _process(), attempts_dir(run_dir)
    if me["boot"] and (me["boot"], me["pids"]) == (attempt.get("boot"), attempt.get("pids")):
        return _started(attempt["pid"]) == attempt["process_started"]
    end = time.monotonic() + WATCH_S
    while time.monotonic() < end:
        time.sleep(POLL_S)
        now = _read(directory, attempt["number"])
        if now is None or (now["token"], now["beat"], now["state"]) != (attempt["token"], attempt["beat"], attempt["state"]):
            return now is not None and now["state"] == RUNNING
    return False


def _newest(directory: str) -> dict | None:
    numbers = _numbers(directory)
    return {"number": numbers[-1], **(_read(directory, numbers[-1]) or {})} if numbers else None


def _numbers(directory: str) -> list[int]:
    return sorted(int(name[:-5]) for name in storage.sizes(directory) if re.fullmatch(r"\d{4,}\.json", name))


def _read(directory: str, number: int) -> dict | None:
    try:
        return json.loads(storage.read_text(_path(directory, number)))
    except (FileNotFoundError, ValueError):
        return None


def _path(directory: str, number: int) -> str:
    return storage.join(directory, f"{number:04d}.json")


# -- this process


def _process() -> dict:
    """Which process this is. A process id means the same wherever boot and process namespace (containers have their own) are the same."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "boot": _boot(), "pids": _namespace(), "pid": pid, "process_started": _started(pid)}


def _boot() -> str | None:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def _namespace() -> str | None:
    with suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return None


def _started(pid: int) -> int | None:
    """When a living process was started, in the kernel's ticks since boot (no clock moves those); None where there is none."""
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
    return f"failed: {type(error).__name__}"  # nobody foresaw it; its text may hold anything


def _now() -> str:
    """For people; nothing is ever computed from it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
