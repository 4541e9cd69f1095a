"""Who may work on a run directory, with real processes: refused, taken over, fenced off, interrupted."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import UserError
from pipeline.runtime import attempt
from pipeline.runtime.attempt import Attempt
from tests.attempts import change, states

# A holder in a process of its own. ELSEWHERE makes its process id mean nothing here, as on another host.
HOLDER = """
import os, signal, sys, time
from pipeline.runtime import attempt
from pipeline.errors import RunFailed, UserError
run_dir, elsewhere, beat_s, when_told = sys.argv[1], sys.argv[2] == "elsewhere", float(sys.argv[3]), sys.argv[4] == "when told"
attempt.BEAT_S, attempt.WATCH_S = beat_s, 20.0  # a living holder on a busy machine is not taken for dead
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have had it ignored
if elsewhere:
    attempt._boot = lambda: "another-boot"
if when_told:
    print("ready", flush=True)
    sys.stdin.readline()
try:
    with attempt.Attempt(run_dir, ["generate"]):
        print("holds", flush=True)
        for line in sys.stdin:
            attempt.check()
            open(run_dir + "/published", "w").write(line)
            print("published", flush=True)
except (RunFailed, UserError) as e:
    print(type(e).__name__, e, flush=True)
    os._exit(1)
"""


@pytest.fixture
def holder():
    """Start processes that attempt to hold a run directory; what is left of them is killed."""
    started = []

    def start(
        run_dir, *, elsewhere: bool = False, beat_s: float = 0.2, when_told: bool = False
    ) -> subprocess.Popen:
        arguments = [
            str(run_dir),
            "elsewhere" if elsewhere else "here",
            str(beat_s),
            "when told" if when_told else "at once",
        ]
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", HOLDER, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(attempt, "BEAT_S", 0.2)
    monkeypatch.setattr(attempt, "WATCH_S", 1.0)
    monkeypatch.setattr(attempt, "POLL_S", 0.1)


# -- who may begin


def test_a_living_holder_is_named_and_left_alone(tmp_path, holder):
    process = holder(tmp_path)
    assert process.stdout.readline() == "holds\n"
    with pytest.raises(UserError) as e, Attempt(str(tmp_path), []):
        pass
    assert (
        f"process {process.pid}" in str(e.value)
        and "attempt 1 is using it (host " in str(e.value)
        and "\n" not in str(e.value)
    )
    assert states(tmp_path) == ["running"]
    process.stdin.close()
    assert process.wait(10) == 0
    assert states(tmp_path) == ["finished"]


@pytest.mark.parametrize("clock", ["2019-01-01T00:00:00Z", "2035-01-01T00:00:00Z"])
def test_a_killed_holder_is_followed_at_once_whatever_the_clock_says(tmp_path, holder, monkeypatch, clock):
    process = holder(tmp_path)
    process.stdout.readline()
    process.kill()  # and not waited for: it is a zombie, which is as dead as can be
    monkeypatch.setattr(attempt, "_now", lambda: clock)
    started = time.monotonic()
    while attempt.started(process.pid) is not None:
        time.sleep(0.01)
    with Attempt(str(tmp_path), []) as mine:
        assert time.monotonic() - started < attempt.WATCH_S / 2, "nobody watched its beat"
        assert states(tmp_path) == ["killed", "running"]
        mine.check()


@pytest.mark.parametrize("clock", ["2019-01-01T00:00:00Z", "2035-01-01T00:00:00Z"])
def test_a_holder_elsewhere_is_judged_by_its_beat_alone(tmp_path, holder, quick, monkeypatch, clock):
    """Dates in the files are a year off in either direction; nobody looks at them."""
    process = holder(tmp_path, elsewhere=True)
    process.stdout.readline()
    monkeypatch.setattr(attempt, "_now", lambda: clock)
    with pytest.raises(UserError, match="attempt 1 is using it"), Attempt(str(tmp_path), []):
        pass
    process.kill()
    process.wait()
    change(tmp_path, 1, updated=clock)
    started = time.monotonic()
    with Attempt(str(tmp_path), []):
        assert attempt.WATCH_S <= time.monotonic() - started < 5
        assert states(tmp_path) == ["killed", "running"]


@pytest.mark.parametrize("scheme", ["", "file://"])  # a URL goes the way of an object store
def test_of_attempts_that_begin_together_exactly_one_goes_on(tmp_path, holder, scheme):
    processes = [holder(f"{scheme}{tmp_path}", elsewhere=bool(scheme), when_told=True) for _ in range(5)]
    assert {process.stdout.readline() for process in processes} == {"ready\n"}
    for process in processes:
        process.stdin.write("go\n")
    said = [process.stdout.readline() for process in processes]
    assert said.count("holds\n") == 1, said
    assert sum(line.startswith("UserError run_dir = ") and "is using it" in line for line in said) == 4, said
    assert states(tmp_path) == ["running"]


# -- who must end


def taken_over(tmp_path, process) -> Attempt:
    """The holder is suspended for so long that somebody else takes it for dead."""
    assert process.stdout.readline() == "holds\n"
    os.kill(process.pid, signal.SIGSTOP)
    return Attempt(str(tmp_path), [])


def test_a_suspended_holder_that_wakes_up_publishes_nothing(tmp_path, holder, quick):
    """It wakes up just where it was about to publish, long before its next beat."""
    process = holder(tmp_path, elsewhere=True, beat_s=1000)
    with taken_over(tmp_path, process):
        process.stdin.write("mine\n")
        os.kill(process.pid, signal.SIGCONT)
        said = process.stdout.readline()
        assert said.startswith(f"RunFailed attempt 2 on {attempt._process()['host']} has taken over"), said
        assert process.wait(10) == 1
        assert not (tmp_path / "published").exists()
        assert states(tmp_path) == ["killed", "running"]
    assert states(tmp_path) == ["killed", "finished"]


def test_a_suspended_holder_that_wakes_up_is_interrupted(tmp_path, holder, quick):
    """It wakes up in the middle of long work, here: waiting for input."""
    process = holder(tmp_path, elsewhere=True)
    with taken_over(tmp_path, process):
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline().startswith("RunFailed attempt 2 on ")
        assert process.wait(10) == 1
        assert states(tmp_path) == ["killed", "running"]


# -- signals

# A library that catches the interrupt and goes on, or a shutdown that hangs.
DEAF = """
import sys, time
from pipeline.runtime import attempt, stopping
stopping.STOP_S = 1
with stopping.stoppable("interrupted, the end"), attempt.Attempt(sys.argv[1], []):
    for turn in range(2):
        try:
            print("holds" if turn == 0 else "goes on", flush=True)
            time.sleep(60)
        except BaseException:
            print("caught", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_is_lost_still_ends_the_run(tmp_path, signum):
    process = subprocess.Popen(
        [sys.executable, "-c", DEAF, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    for _ in range(3):
        process.send_signal(signum)
        time.sleep(0.1)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (128 + signum, "caught\ngoes on\n", "interrupted, the end\n")
    assert states(tmp_path) == ["interrupted"]
