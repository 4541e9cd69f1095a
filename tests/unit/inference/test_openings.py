"""An engine that does not start is started again in another process, twice; then the run fails with the reason."""

import signal
import subprocess
import sys
import time

import pytest

from pipeline.errors import RunFailed
from pipeline.inference import beside, vllm_start
from pipeline.inference.progress import Counter
from pipeline.runtime.attempt import started


class Ended(BaseException):
    """The actor's process has ended."""


class Spec:
    """An engine that opens after so many failures."""

    def __init__(self, fails: int):
        self.fails = fails

    def open(self):
        self.fails -= 1
        if self.fails >= 0:
            raise RunFailed("no memory on the GPU")
        return "engine"


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    def end(_code):
        raise Ended

    monkeypatch.setattr("os._exit", end)
    monkeypatch.setattr(beside, "actor_id", lambda: "a")


def openings(spec: Spec, counter: Counter) -> list:
    """What every process of the actor comes to."""
    found = []
    while not found or found[-1] == "ended":
        counter.engine_starting()
        try:
            found.append(beside.open_or_end(spec, counter.not_opened))
        except Ended:
            found.append("ended")
    return found


def test_an_engine_whose_opening_fails_twice_is_opened():
    counter = Counter()
    assert openings(Spec(fails=2), counter) == ["ended", "ended", "engine"]
    assert counter.read()["notices"] == [
        "an engine did not start, and is started again: no memory on the GPU"
    ]
    assert counter.fruitless_starts == 1, "what did not open has not crashed over a row"


def test_an_engine_that_never_opens_fails_the_run_with_its_reason():
    with pytest.raises(RunFailed, match=r"^no memory on the GPU; tried 3 times$"):
        openings(Spec(fails=9), Counter())


def test_failures_count_by_engine_and_in_a_row():
    counter = Counter()
    assert [counter.not_opened(engine, "busy") for engine in ("a", "b", "a", "b")] == [1, 1, 2, 2]
    counter.opened("a")
    assert (counter.not_opened("a", "busy"), counter.not_opened("b", "busy")) == (1, 3)


def test_eight_engines_that_fail_twice_each_are_no_crash_loop():
    counter = Counter()
    for _ in range(2):
        for engine in range(8):
            counter.engine_starting()
            counter.not_opened(str(engine), "busy")
    assert counter.engine_starting() == 1


# -- the shell that ends an engine's processes

ENDS = """
import sys
from pipeline.inference import vllm_start
pid, start = map(int, sys.argv[1:])
vllm_start.started = lambda pid: start or pid and real(pid)
from pipeline.runtime.attempt import started as real
vllm_start.end_with_this_process([pid])
"""


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_the_processes_of_an_engine_end_with_its_actor(sleeper):
    subprocess.run([sys.executable, "-c", ENDS, str(sleeper.pid), "0"], check=True, timeout=60)
    assert sleeper.wait(10) == -signal.SIGKILL


def test_a_process_that_has_got_the_pid_of_one_of_them_lives(sleeper):
    other = started(sleeper.pid) - 1
    subprocess.run([sys.executable, "-c", ENDS, str(sleeper.pid), str(other)], check=True, timeout=60)
    time.sleep(1)
    assert sleeper.poll() is None


def test_a_process_that_has_ended_is_not_watched(monkeypatch):
    calls = []
    monkeypatch.setattr(vllm_start.subprocess, "Popen", lambda command, **_: calls.append(command))
    vllm_start.end_with_this_process([2**22 + 1])
    assert calls[0][-1] == "sh", "no process"
