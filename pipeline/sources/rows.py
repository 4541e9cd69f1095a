"""What every reader of a file yields."""

from dataclasses import dataclass

# A longer line cannot hold a usable row, and a file without line ends must not fill the memory.
MAX_LINE_BYTES = 16 * 2**20


@dataclass(frozen=True)
class BadRow:
    """A row without columns: the reason, and the content as read."""

    reason: str
    raw: bytes
