"""Rows of `schema.SFT` for all methods: one question and one answer, repeated by a ratio."""

import hashlib
from collections.abc import Iterator

from pipeline.chat import assistant, user


def copies(
    id: str, row: dict, kind: str, question: str, answer: str, ratio: float, seed: int
) -> Iterator[dict]:
    """The examples of a question and answer: floor(ratio), and one more for a share of ids, drawn by seed."""
    draw = int.from_bytes(hashlib.blake2b(f"{seed}/{id}/{kind}".encode(), digest_size=8).digest()) / 2**64
    for copy in range(int(ratio) + (draw < ratio - int(ratio))):
        yield {
            "id": f"{id}-{kind}-{copy}",
            "instruction_id": row["instruction_id"],
            "kind": kind,
            "category": row["category"],
            "messages": [user(question), assistant(answer)],
        }
