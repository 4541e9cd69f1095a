"""How `generate` grows: rows/s, memory, files and resume at several sizes, with the model-free engine at zero
latency.

Peer: the same recipe and engine in Ray Data's own resumable pipeline (read_parquet → map_batches →
      write_parquet with row-level checkpoints).
Measured is everything but a model: reading, removing duplicates, two calls per row, committing, compacting,
and the start of it all. Rows/s and memory early and late are those of the first and the last fifth of the
rows that the pool committed.

    python benchmarks/scale.py --sizes 10000 100000 1000000
    python benchmarks/scale.py --sizes 10000000 --without-peer --rows-per-commit 4096
    python benchmarks/scale.py --sizes 10000000 --without-peer --for 1200  # stop the pool after 20 minutes
"""

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import psutil

WORDS = [
    "how",
    "can",
    "i",
    "bake",
    "cake",
    "forge",
    "ticket",
    "sorry",
    "this",
    "because",
    "hurts",
    "people",
    "sure",
    "first",
    "take",
    "then",
    "mix",
    "steal",
    "quietly",
    "neighbour",
    "noticing",
]
CONFIG = """
run_dir: {directory}/run
model: {{path: toy}}
engine: {{kind: dummy, rows_per_commit: {rows_per_commit}}}
methods: {{mistakes: {{name: mistake_analysis, instructions: {{path: {directory}/instructions.jsonl}}}}}}
"""
SAMPLED_EVERY_S = 0.5
KINDS = ("driver", "engine actor", "other worker", "Ray Data's statistics", "gcs", "raylet")


def write_source(directory: Path, rows: int, rows_per_commit: int = 256) -> None:
    r = random.Random(0)
    with open(directory / "instructions.jsonl", "w") as f:
        for i in range(rows):
            f.write(
                json.dumps(
                    {
                        "instruction": f"Request {i}: {' '.join(r.choices(WORDS, k=15))}?",
                        "category": f"c{i % 7}",
                    }
                )
                + "\n"
            )
    (directory / "config.yaml").write_text(
        CONFIG.format(directory=directory, rows_per_commit=rows_per_commit)
    )


def setbacks(directory: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", "generate", str(directory / "config.yaml")]


def peer(directory: Path) -> list[str]:
    return [sys.executable, __file__, "--peer", str(directory)]


def run_peer(directory: Path) -> None:
    """The same rows through Ray Data's checkpoints; 256 rows a commit, as ours."""
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    from pipeline.config import load
    from pipeline.data.store import Store
    from pipeline.runtime.session import ray_session
    from pipeline.schema import INSTRUCTIONS
    from pipeline.sources import instructions

    config = load(directory / "config.yaml")
    method = config.methods["mistakes"]
    store = Store(str(directory / "peer"), method.generated.name, method.generated)
    with ray_session(store.run_dir):
        store.write_work(instructions.read(method.instructions), INSTRUCTIONS, block_rows=256)
        ray.data.DataContext.get_current().checkpoint_config = CheckpointConfig(
            "id", store.state("checkpoint"), delete_checkpoint_on_success=False
        )
        rows = ray.data.read_parquet(store.state("work")).repartition(target_num_rows_per_block=256)
        rows.map_batches(
            PeerActor,
            fn_constructor_args=(config,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=1, max_tasks_in_flight_per_actor=6, max_concurrent_calls_per_actor=3
            ),
            num_cpus=1,
        ).write_parquet(store.state("parts"), compression="zstd")


class PeerActor:
    def __init__(self, config):
        from pipeline.inference.dummy import Dummy, DummyModel
        from pipeline.methods.mistake_analysis.schema import MISTAKES

        self.schema, self.recipe, self.model = (
            MISTAKES,
            config.methods["mistakes"].recipe(config.seed),
            DummyModel(Dummy()),
        )

    async def __call__(self, block):
        rows = await asyncio.gather(*(self.run(row) for row in block.to_pylist()))
        yield self.schema.table(rows)

    async def run(self, row: dict) -> dict:
        from pipeline.inference.row_chat import RowChat

        kept = {name: row[name] for name in self.schema.names if name in row}
        chat = RowChat(self.model, 0, row["id"])
        result = kept | await self.recipe(row, chat)
        return result | {
            "prompt_tokens": chat.prompt_tokens,
            "completion_tokens": chat.completion_tokens,
            "finish_reasons": chat.finish_reasons,
        }


def watch(command: list[str], run: Path | None = None, for_s: float | None = None) -> dict:
    """Run a command to its end, or until the attempt on the directory `run` has committed rows for `for_s`.

    Returns seconds, CPU seconds of all its processes, by kind of process the peak private memory of the
    largest one, and the peak resident memory of the largest of all, MiB. With `run`, also `samples`: seconds,
    rows committed so far, and private memory by kind of process.
    """
    samples: list[tuple[float, int, dict]] = []
    started, peaks, used, resident = time.monotonic(), {}, {}, 0.0
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        now: dict[str, float] = {}
        for each in _tree(root):
            try:
                memory = each.memory_info()
                resident = max(resident, memory.rss / 2**20)
                used[each.pid] = sum(each.cpu_times()[:2])  # as last seen
                kind = _kind(each, process.pid)
                now[kind] = max(now.get(kind, 0), (memory.rss - memory.shared) / 2**20)
                peaks[kind] = max(peaks.get(kind, 0), now[kind])
            except psutil.Error:
                continue
        if run is not None and (rows := _committed(run)):
            samples.append((time.monotonic() - started, rows, now))
            if for_s is not None and samples[-1][0] - samples[0][0] > for_s:
                process.send_signal(signal.SIGINT)
                process.wait()
                break
        time.sleep(SAMPLED_EVERY_S)
    if process.returncode and not for_s:
        sys.exit(f"{' '.join(command)} failed:\n{process.stdout.read()[-3000:]}")
    seconds = time.monotonic() - started
    measured = {"seconds": seconds, "cpu_s": sum(used.values()), "peaks": peaks, "resident": resident}
    return measured | ({"samples": samples} if run is not None else {})


def _committed(run: Path) -> int:
    """The rows that the newest attempt has committed, as `setbacks status` reads them."""
    attempts = sorted((run / ".state" / "attempts").glob("*.json"))
    try:
        return json.loads(attempts[-1].read_text())["rows"] if attempts else 0
    except (OSError, ValueError):
        return 0


def slope(samples: list[tuple[float, int, dict]], kinds: tuple) -> str:
    """Rows/s and memory in the first and in the last fifth of the committed rows, in words."""
    (begin, first, _), (_, last, _) = samples[0], samples[-1]
    told = []
    for name, low, high in (("early", 0.0, 0.2), ("late", 0.8, 1.0)):
        part = [s for s in samples if first + low * (last - first) <= s[1] <= first + high * (last - first)]
        if len(part) < 2 or part[-1][1] == part[0][1]:
            return "too few samples for a slope"
        # The count stands still at the end, while rows are compacted.
        ends = next(s for s in part if s[1] == part[-1][1])
        speed = (ends[1] - part[0][1]) / max(ends[0] - part[0][0], 1e-9)
        memory = ", ".join(
            f"{kind} {max(s[2].get(kind, 0) for s in part if s[0] <= ends[0]):.0f}" for kind in kinds
        )
        told.append(f"{name} {speed:.0f} rows/s, MiB: {memory}")
    return f"{last:,} rows in the pool, from {begin:.0f} s on; " + "; ".join(told)


def _tree(root: psutil.Process) -> list[psutil.Process]:
    try:
        return [root, *root.children(recursive=True)]
    except psutil.Error:
        return []


def _kind(process: psutil.Process, driver: int) -> str:
    if process.pid == driver:
        return "driver"
    line = " ".join(process.cmdline())
    if "ray::" in line:
        if "_StatsActor" in line:
            return (  # Ray's own: one a cluster, told by every data set of what its tasks cost
                "Ray Data's statistics"
            )
        return "engine actor" if "Actor" in line and "MapBatches" in line else "other worker"
    return "gcs" if "gcs_server" in line else "raylet" if process.name() == "raylet" else "agents"


def files_of(run: Path) -> dict:
    shards = list((run / "mistakes").glob("*.parquet"))
    return {
        "shards": len(shards),
        "bytes": sum(file.stat().st_size for file in shards),
        "left": sum(1 for f in run.rglob("*") if f.is_file()),
    }


def measure(rows: int, with_peer: bool, rows_per_commit: int, for_s: float | None) -> dict | None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source(directory, rows, rows_per_commit)
        first = watch(setbacks(directory), directory / "run", for_s)
        told = f"{rows:,} rows of the source: {slope(first['samples'], KINDS)}; {first['cpu_s']:.0f} CPU s"
        print(told, flush=True)
        if for_s is not None:
            return None
        again = watch(setbacks(directory))  # finished: only looked at
        figures = json.loads((directory / "run/metrics.jsonl").read_text().splitlines()[-1])
        measured = {
            "rows": rows,
            "resume_s": again["seconds"],
            "pool_s": figures["seconds"],
            **first,
            **files_of(directory / "run"),
        }
        if with_peer:
            measured["peer"] = watch(peer(directory))
        return measured


def report(measured: list[dict]) -> None:
    kinds = KINDS
    print(
        f"{'rows':>9} {'s':>7} {'rows/s':>7} {'MB/s':>6} {'shards':>6} {'files':>6} {'resume s':>8}  peak"
        f" MiB: {', '.join(kinds)}"
    )
    for m in measured:
        print(_line(m, kinds) + f" {m['shards']:6} {m['left']:6} {m['resume_s']:8.1f}  {_peaks(m, kinds)}")
        if "peer" in m:
            print(
                _line({**m, **m["peer"]}, kinds)
                + f" {'Ray Data checkpoints':>22}  {_peaks(m['peer'], kinds)}"
            )
            print(
                f"{'':9} rows/s against Ray Data's checkpoints: {m['peer']['seconds'] / m['seconds']:.2f} ×"
            )
    for small, large in itertools.pairwise(measured):
        slope = (large["seconds"] - small["seconds"]) / (large["rows"] - small["rows"])
        grown = ", ".join(
            f"{kind} {large['peaks'][kind] / small['peaks'][kind]:.2f} ×"
            for kind in kinds
            if kind in small["peaks"]
        )
        per_row = [m["pool_s"] / m["rows"] * 1e6 for m in (small, large)]
        print(
            f"{small['rows']:,} → {large['rows']:,} rows: {slope * 1e6:.0f} µs for each more, start-up apart;"
            f" peak memory {grown};"
        )
        print(f"  in the pool {per_row[0]:.0f} → {per_row[1]:.0f} µs a row ({per_row[1] / per_row[0]:.2f} ×)")


def _line(m: dict, kinds: tuple) -> str:
    return (
        f"{m['rows']:9,} {m['seconds']:7.1f} {m['rows'] / m['seconds']:7.0f}"
        f" {m['bytes'] / m['seconds'] / 1e6:6.2f}"
    )


def _peaks(m: dict, kinds: tuple) -> str:
    return ", ".join(f"{m['peaks'].get(kind, 0):.0f}" for kind in kinds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--without-peer", action="store_true")
    parser.add_argument("--rows-per-commit", type=int, default=256)
    parser.add_argument("--for", type=float, dest="for_s", metavar="SECONDS", help="stop the pool after that")
    parser.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return run_peer(args.peer)
    print(
        f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, ray"
        f" {version('ray')}, pyarrow {version('pyarrow')}"
    )
    options = (not args.without_peer, args.rows_per_commit, args.for_s)
    report([m for rows in args.sizes if (m := measure(rows, *options)) is not None])


if __name__ == "__main__":
    main()
