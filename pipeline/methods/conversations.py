"""Rows of `schema.SFT` for all methods, repeated by a ratio."""

import hashlib
from collections.abc import Iterator

from pipeline.chat import assistant, user


def drawn(id: str, what: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{id}/{what}".encode(), digest_size=8).digest()) / 2**64


def times(id: str, kind: str, ratio: float, seed: int) -> int:
    """Examples of an id: floor(ratio), and one more for a share of ids, drawn by seed."""
    return int(ratio) + (drawn(id, kind, seed) < ratio - int(ratio))


def copies(
    id: str, row: dict, kind: str, question: str, answer: str, ratio: float, seed: int
) -> Iterator[dict]:
    """The examples of a question and answer: `times` of them."""
    for copy in range(times(id, kind, ratio, seed)):
        yield {
            "id": f"{id}-{kind}-{copy}",
            "instruction_id": row["instruction_id"],
            "kind": kind,
            "category": row["category"],
            "messages": [user(question), assistant(answer)],
        }
