"""What an engine or a client of a server has to say to the person watching, said once per actor.

A notice holds no text of a row. In an actor it goes to the driver, which shows each notice once.
"""

import sys
from collections.abc import Callable

_told: set[str] = set()


def _to_stderr(notice: str) -> None:
    print(notice, file=sys.stderr, flush=True)


_sink: Callable[[str], object] = _to_stderr


def send_to(sink: Callable[[str], object]) -> None:
    """Send this process's notices to `sink` from now on; they can be told again."""
    global _sink
    _sink = sink
    _told.clear()


def tell(notice: str) -> None:
    if notice not in _told:
        _told.add(notice)
        _sink(notice)
