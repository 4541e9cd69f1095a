"""The report of large data sets: seconds and memory of `setbacks report`.

    python benchmarks/reporting.py --rows 1000000 10000000

Two data sets of so many rows each, without texts, written here as shards that no run made: mistakes, and the
answers of the safety suite (three arms, three conditions, two samples of every instruction). The command is
the whole `report`, with its figures, paired differences and bootstraps.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scale import watch  # the benchmark beside this one

from pipeline.data.shards import ROWS_PER_GROUP, ROWS_PER_SHARD
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.suites.safety.schema import ANSWERS

CONFIG = """
run_dir: {directory}/run
model: {{path: toy}}
methods: {{mistakes: {{name: mistake_analysis, instructions: {{path: unused.jsonl}}}}}}
arms: {{sft: {{kinds: [safe]}}, mistake_analysis: {{kinds: [safe, analysis]}}}}
suites: {{safety: {{harmful: {{path: unused.jsonl}}, helpful: {{path: unused.jsonl}}, samples: 2,
  answer: {{temperature: 1}}}}}}
"""
ARMS = ("vanilla", "sft", "mistake_analysis")
CONDITIONS = ("plain", "reminder", "hint")
CELLS = len(ARMS) * len(CONDITIONS) * 2  # answers to an instruction


def ids(numbers: np.ndarray) -> pa.Array:
    """Ids as digests look: 32 hexadecimal characters, the same for the same number."""
    mixed = (numbers.astype(np.uint64) + 1) * np.uint64(0x9E3779B97F4A7C15)
    both = np.stack([mixed, mixed ^ np.uint64(0xD1B54A32D192ED03)], axis=1)
    text = both.astype(">u8").tobytes().hex().encode()
    return pa.array(np.frombuffer(text, "S32")).cast(pa.string())


def drawn(random: np.random.Generator, values: list, rows: int, type: pa.DataType) -> pa.Array:
    return pa.array(values, type).take(pa.array(random.integers(0, len(values), rows)))


def mistakes(random: np.random.Generator, start: int, rows: int) -> dict[str, pa.Array]:
    own = ids(np.arange(start, start + rows))
    return {
        "id": own,
        "instruction_id": own,
        "harmful": drawn(random, [True, True, False, None], rows, pa.bool_()),
        "analysis_verdict": drawn(random, [True, True, False, None], rows, pa.bool_()),
        "prompt_tokens": pa.array(random.integers(50, 500, rows)),
        "completion_tokens": pa.array(random.integers(50, 500, rows)),
        "endings": drawn(random, [["response: whole"], ["response: trimmed"]], rows, pa.list_(pa.string())),
        "faults": drawn(random, [[], [], ["response: repeats itself"]], rows, pa.list_(pa.string())),
        "status": drawn(random, ["ok", "ok", "not_induced"], rows, pa.string()),
        "category": drawn(random, [f"c{i}" for i in range(14)], rows, pa.string()),
    }


def answers(random: np.random.Generator, start: int, rows: int) -> dict[str, pa.Array]:
    number = np.arange(start, start + rows)
    instruction, cell = number // CELLS, number % CELLS
    harmful_suite = instruction % 4 != 0
    verdict = drawn(random, [True, False, False, None], rows, pa.bool_())
    suite = pa.array(["helpful", "harmful"]).take(pa.array(harmful_suite.astype(int)))
    return {
        "id": ids(number),
        "instruction_id": ids(instruction),
        "sample": pa.array(cell % 2, pa.int32()),
        "suite": suite,
        "arm": pa.array(ARMS).take(pa.array(cell // 2 % 3)),
        "condition": pa.array(CONDITIONS).take(pa.array(cell // 6)),
        "category": drawn(random, [f"c{i}" for i in range(14)], rows, pa.string()),
        "refused": drawn(random, [True, False], rows, pa.bool_()),
        "harmful": pa.compute.if_else(pa.array(harmful_suite), verdict, pa.nulls(rows, pa.bool_())),
        "harmless_rating": drawn(random, [1.0, 4.0, 8.0, 10.0], rows, pa.float64()),
        "finish_reason": drawn(random, ["stop", "stop", "length"], rows, pa.string()),
        "completion_tokens": pa.array(random.integers(5, 500, rows)),
        "status": drawn(random, ["ok"], rows, pa.string()),
    }


def write(directory: Path, rows: int) -> None:
    (directory / "config.yaml").write_text(CONFIG.format(directory=directory))
    random = np.random.default_rng(0)
    for schema, made in ((MISTAKES, mistakes), (ANSWERS, answers)):
        place = directory / "run" / schema.name
        place.mkdir(parents=True)
        for shard, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
            size = min(ROWS_PER_SHARD, rows - start)
            columns = made(random, start, size)
            table = pa.table(
                [columns.get(c.name, pa.nulls(size, c.type)) for c in schema.columns], schema=schema.arrow
            )
            pq.write_table(
                table,
                place / f"data-{shard:05d}.parquet",
                compression="zstd",
                row_group_size=ROWS_PER_GROUP,
                write_page_checksum=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, pyarrow"
        f" {version('pyarrow')}"
    )
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            directory, started = Path(name), time.monotonic()
            write(directory, rows)
            written = time.monotonic() - started
            command = [sys.executable, "-m", "pipeline.cli", "report", str(directory / "config.yaml")]
            m = watch(command)
            found = json.loads((directory / "run/results.json").read_text())
            print(
                f"2 × {rows:,} rows (written in {written:.0f} s): {m['seconds']:.1f} s,"
                f" {m['cpu_s']:.1f} CPU s, peak private memory {max(m['peaks'].values()):.0f} MiB, resident"
                f" {m['resident']:.0f} MiB; {len(found['numbers'])} numbers",
                flush=True,
            )


if __name__ == "__main__":
    main()
