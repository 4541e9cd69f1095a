"""The size of blocks: small enough that all actors have work, without holding all rows to know it."""

import itertools

import pytest

from pipeline.data import work
from pipeline.data.work import shared


@pytest.mark.parametrize(("count", "actors", "size"), [
    (1000, 1, 256), (1000, 8, 16), (3, 8, 1), (0, 8, 1), (8192, 8, 128), (16384, 8, 256),
    (100_000, 8, 256)
])  # fmt: skip
def test_blocks_are_smaller_if_there_would_be_too_few(count, actors, size):
    rows, block_rows = shared(({"id": n} for n in range(count)), 256, actors)
    assert block_rows == size
    assert [row["id"] for row in rows] == list(range(count))


def test_rows_that_are_not_few_are_not_held_to_count_them(monkeypatch):
    monkeypatch.setattr(work, "_MOST_COUNTED", 100)
    read = []
    rows, block_rows = shared(({"id": read.append(n) or n} for n in itertools.count()), 4096, 2000)
    assert (len(read), block_rows) == (100, 4096)
    assert [row["id"] for row in itertools.islice(rows, 103)] == list(range(103))
