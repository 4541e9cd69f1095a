"""Notices from an engine or a server's client to the person watching, each sent once per actor.

A notice holds no text of a row. In an actor it goes to the driver, which shows each notice once.
"""

import sys
from collections.abc import Callable

_told: set[str] = set()


def _to_stderr(notice: str) -> None:
    print(notice, file=sys.stderr, flush=True)


_sink: Callable[[str], object] = _to_stderr


def send_to(sink: Callable[[str], object]) -> None:
    """Send this process's notices to `sink` from now on, including those already sent elsewhere."""
    global _sink
    _sink = sink
    _told.clear()


def tell(notice: str) -> None:
    """Send a notice, unless this process has sent it before."""
    if notice not in _told:
        _told.add(notice)
        _sink(notice)
