"""How evenly engines that start late share a run, and how near its time is to the best possible.

    python -m benchmarks.scheduling [--engines 8] [--blocks 12 28 48 400] [--apart 60] [--speed 5]
        [--no-before]

Real Ray Data pools of actors with the model-free engine, each ready at its own time: the first at once, the
last after `--apart` seconds. A block is 64 rows, and an engine answers 5 rows a second, 64 at a time: a
request takes 6 to 19 s. `--speed` divides all times, so that the run is short. The seconds that a process
takes to start are left out: engines count as ready when the last process is there.

Spread: the most rows of an engine minus the fewest, over the mean. The best possible spread, in brackets, is
above 0 too, since an engine that starts late has less time. The best possible time: all engines busy from
their start to the end. Idle: the time from an engine's last row to the end, on average and of the engine that
ended first. `before`: an actor is given twice as many blocks as it runs at a time, and blocks are not cut.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from pipeline.data.store import Store
from pipeline.data.work import shared
from pipeline.inference import pool
from pipeline.inference.dummy import Dummy, DummyModel
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.runtime import session
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model

BLOCK_ROWS, BATCH, ROWS_PER_S = 64, 64, 5


class Late(Dummy):
    """The model-free engine, ready at its own time. directory: where engines say that they are there."""

    directory: str
    processes: int
    apart_s: float

    def open(self, model, model_dir, adapters):
        place = Path(self.directory)
        number = 0
        while True:
            try:
                (place / f"engine-{number}").touch(exist_ok=False)
                break
            except FileExistsError:
                number += 1
        while len(list(place.glob("engine-*"))) < self.processes:
            time.sleep(0.05)
        time.sleep(self.apart_s * number / max(1, self.processes - 1))
        (place / f"ready-{number}").write_text(str(time.time()))
        return Counted(self, place / f"rows-{number}")


class Counted(DummyModel):
    def __init__(self, settings, file: Path):
        super().__init__(settings)
        self._file, self._rows = file, 0

    async def complete(self, *arguments, **more):
        found = await super().complete(*arguments, **more)
        self._rows += 1
        self._file.write_text(json.dumps([self._rows, time.time()]))
        return found


class One:
    """A recipe of one request."""

    async def __call__(self, row, chat):
        from pipeline.chat import Sampling, user

        await chat([user(row["instruction"])], Sampling(4), step="induce")
        return {"response": "x", "status": "ok"}


def run(blocks: int, engines: int, apart_s: float, speed: float, *, before: bool) -> dict:
    rows = [
        {"id": f"r{n}", "instruction_id": f"r{n}", "instruction": "x"} for n in range(blocks * BLOCK_ROWS)
    ]
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "engines"
        place.mkdir()
        engine = Late.model_construct(
            **Dummy(actors=engines, max_num_seqs=BATCH, latency_s=BATCH / ROWS_PER_S / speed).model_dump(),
            directory=str(place),
            processes=engines,
            apart_s=apart_s / speed,
        )
        store = Store(f"{directory}/run", MISTAKES.name, MISTAKES)
        store.open({})
        listed, block_rows = (rows, BLOCK_ROWS) if before else shared(rows, BLOCK_ROWS, engines)
        store.write_work(listed, INSTRUCTIONS, block_rows=block_rows)
        spec = pool.ModelSpec(Model(path="dummy"), "", engine)
        shares = pool.in_flight
        if before:
            pool.in_flight = lambda fitting, *_counts: (fitting, 2 * fitting)
        try:
            list(pool.run_recipes([pool.Job(One(), store)], spec, seed=0, label="scheduling"))
        finally:
            pool.in_flight = shares
        ready = sorted(float(file.read_text()) for file in place.glob("ready-*"))
        done = [json.loads(file.read_text()) for file in place.glob("rows-*")]
    counts = sorted([count for count, _ in done] + [0] * (engines - len(done)))
    ended = max(at for _, at in done)
    starts = [at - ready[0] for at in ready]
    fluid = best(len(rows), starts, speed)
    shares = [max(0.0, fluid - at * speed) * ROWS_PER_S for at in starts]
    idle = [(ended - at) * speed for _, at in done]
    return {
        "rows": counts,
        "spread": spread(counts),
        "best_spread": spread(shares),
        "took_s": (ended - ready[0]) * speed,
        "best_s": fluid,
        "idle_s": sum(idle) / len(idle),
        "idle_most_s": max(idle),
    }


def spread(counts: list) -> float:
    return (max(counts) - min(counts)) / (sum(counts) / len(counts))


def best(rows: int, ready: list[float], speed: float) -> float:
    """The time until all rows are answered if every engine is busy from its start, in unscaled seconds."""
    low, high = 0.0, 1e6
    while high - low > 0.01:
        middle = (low + high) / 2
        if sum(max(0.0, middle - at * speed) * ROWS_PER_S for at in ready) >= rows:
            high = middle
        else:
            low = middle
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--blocks", type=int, nargs="+", default=[12, 28, 48, 400])
    parser.add_argument("--apart", type=float, default=60)
    parser.add_argument("--speed", type=float, default=5)
    parser.add_argument("--before", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    session.LEAST_LOGICAL_CPUS = max(session.LEAST_LOGICAL_CPUS, 2 * given.engines)
    with tempfile.TemporaryDirectory() as directory, session.ray_session(directory):
        for blocks in given.blocks:
            for before in (True, False) if given.before else (False,):
                found = run(blocks, given.engines, given.apart, given.speed, before=before)
                shown = found["rows"] if given.engines <= 8 else f"{found['rows'][0]} to {found['rows'][-1]}"
                print(
                    f"{blocks} blocks, {'before' if before else 'now'}: rows per engine {shown},"
                    f" spread {found['spread']:.2f} ({found['best_spread']:.2f}); {found['took_s']:.0f} s,"
                    f" {found['took_s'] / found['best_s']:.2f} × the best; idle {found['idle_s']:.0f} s, at"
                    f" most {found['idle_most_s']:.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
