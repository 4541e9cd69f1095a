"""Of all tests: what collecting them has imported is left alone by the garbage collector; Ray's workers get
as much of the machine as others; a failure is printed when it happens."""

import gc
import os
import time

import pytest
from hypothesis import HealthCheck, settings

# A busy machine is slow, and that is no fault of what is tested.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

os.environ.setdefault("RAY_worker_niceness", "0")  # as `session` has it; some tests start a Ray of their own

SLOW_S = 60.0
_start = time.monotonic()
_terminal = None


def pytest_collection():
    """Torch and transformers make millions of objects that stay: looking at them again and again takes a
    fifth of the unit tests' time."""
    gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    global _terminal
    if not hasattr(config, "workerinput"):  # the process that prints, not one that runs files for it
        _terminal = config.pluginmanager.get_plugin("terminalreporter")


def pytest_runtest_logreport(report):
    """A run that is broken off from outside never gets to pytest's summary: what failed, and what took long,
    stands on the terminal before it."""
    if _terminal is None or not (report.failed or report.duration > SLOW_S):
        return
    at = f"{time.monotonic() - _start:.0f} s after the start"
    _terminal.ensure_newline()
    _terminal.write_line(f"{report.nodeid} ({report.when}): {report.outcome}, {report.duration:.0f} s; {at}")
    if report.failed:
        _terminal.write_line("\n".join(report.longreprtext.splitlines()[-60:]))
