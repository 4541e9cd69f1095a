"""Engines that become ready one after the other have even shares of a run, by a model of Ray Data's pool.

Ray Data gives each waiting task to the actor with the fewest, if it has fewer than it may have, and takes none
back. `benchmarks/scheduling.py` measures the same with real pools.
"""

from dataclasses import dataclass, field

import pytest

from pipeline.data.work import shared
from pipeline.inference.pool import in_flight

ROWS_PER_S, BLOCK_ROWS, IN_FLIGHT = 40, 512, 768


@dataclass
class Engine:
    """Works off its tasks in turn. Times in seconds."""

    ready: float
    free: float = 0.0  # when its last task so far is done
    ends: list[float] = field(default_factory=list)
    rows: int = 0

    def has(self, now: float) -> int:
        return sum(end > now for end in self.ends)

    def take(self, rows: int, now: float) -> None:
        self.free = max(self.free, now) + rows / ROWS_PER_S
        self.ends.append(self.free)
        self.rows += rows


def pool(blocks: int, engines: int, apart_s: float, *, old: bool = False) -> list[Engine]:
    """Engines, the last of which is ready `apart_s` after the first, when all blocks are done."""
    rows = blocks * BLOCK_ROWS
    cut = BLOCK_ROWS if old else shared(({} for _ in range(rows)), BLOCK_ROWS, engines)[1]
    fitting = -(-IN_FLIGHT // cut) + 1
    tasks = [min(cut, rows - begin) for begin in range(0, rows, cut)]
    _, given = (0, 2 * fitting) if old else in_flight(fitting, len(tasks), engines, engines)
    found = [Engine(apart_s * number / max(1, engines - 1)) for number in range(engines)]
    now = 0.0
    for task in tasks:
        while not (free := [one for one in found if one.ready <= now and one.has(now) < given]):
            later = [end for one in found for end in one.ends if end > now]
            now = min(later + [one.ready for one in found if one.ready > now])
        min(free, key=lambda one: one.has(now)).take(task, now)
    return found


def spread(engines: list[Engine]) -> float:
    rows = [one.rows for one in engines]
    return (max(rows) - min(rows)) / (sum(rows) / len(rows))


@pytest.mark.parametrize(
    ("blocks", "engines", "apart_s"),
    [(12, 8, 5), (28, 8, 10), (400, 8, 10), (96, 64, 5), (224, 64, 10), (3200, 64, 10)],
)
def test_engines_seconds_apart_have_even_shares(blocks, engines, apart_s):
    assert spread(pool(blocks, engines, apart_s)) <= 1.25


@pytest.mark.parametrize(("blocks", "engines"), [(40, 8), (48, 8), (64, 8), (400, 8), (384, 64)])
def test_engines_a_minute_apart_have_even_shares_of_runs_that_last_longer(blocks, engines):
    assert spread(pool(blocks, engines, 60)) <= 1.25


@pytest.mark.parametrize(
    ("blocks", "engines", "apart_s"), [(12, 8, 5), (28, 8, 10), (40, 8, 60), (48, 8, 60), (224, 64, 10)]
)
def test_before_blocks_were_shared_the_first_engines_took_them(blocks, engines, apart_s):
    assert spread(pool(blocks, engines, apart_s, old=True)) > 1.25


@pytest.mark.parametrize("apart_s", [0, 10, 60])
def test_no_engine_ends_long_before_the_last(apart_s):
    engines = pool(400, 8, apart_s)
    ended = [one.free for one in engines]
    assert max(ended) - min(ended) <= 3 * BLOCK_ROWS / ROWS_PER_S
    assert max(ended) <= 1.05 * (400 * BLOCK_ROWS / ROWS_PER_S + sum(one.ready for one in engines)) / 8
