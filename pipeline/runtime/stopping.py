"""A command that a signal stops ends soon: one line, and an exit code of 128 and the number of the signal."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOP_S = 8.0  # longest time from a signal to the end; a sender may send SIGKILL after that


def until_stopped(work: Callable[[], Any], message: str) -> None:
    """Do the work; if a signal stops it, print the message and exit."""
    try:
        with stoppable(message):
            work()
    except KeyboardInterrupt as e:  # caught here because typer would exit silently
        print(message, file=sys.stderr, flush=True)
        sys.stdout.flush()
        # Not sys.exit: during interpreter shutdown, an interrupted Ray thread may abort the process.
        os._exit(128 + getattr(e, "signum", signal.SIGINT))


class _Stop(KeyboardInterrupt):
    def __init__(self, signum: int):
        self.signum = signum


@contextmanager
def stoppable(message: str) -> Iterator[None]:
    """The first SIGINT or SIGTERM interrupts the body; later ones are ignored.

    After STOP_S the process exits anyway.
    """

    def stop(signum: int, _frame) -> None:
        for known in list(before):
            signal.signal(known, lambda *_: None)
        before.clear()
        last_word = threading.Timer(STOP_S, _abandon, [message, 128 + signum])
        last_word.daemon = True
        last_word.start()
        raise _Stop(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _abandon(message: str, code: int) -> None:
    """Exit after a library swallowed the interrupt, or while a shutdown hangs.

    A local Ray, and a job's actors, end with this process.
    """
    from pipeline.runtime import attempt  # imports pyarrow, which `setbacks --help` does not need

    attempt.end(attempt.INTERRUPTED)
    print(message, file=sys.stderr, flush=True)
    os._exit(code)
