"""The report of large data sets: seconds and memory of `setbacks report`, and of `setbacks compare`.

    python benchmarks/reporting.py --rows 1000000 10000000
    python benchmarks/reporting.py --rows 1000000 --suite c2_eval
    python benchmarks/reporting.py --rows 100000 --suite c2_eval --more-judges
    python benchmarks/reporting.py --rows 1000000 --suite c2_eval --compare

Data sets of so many rows, without texts, written here as shards that no run made: mistakes, and the answers
of a suite: safety (three arms, three conditions, two samples of every instruction), c2_eval (three arms, 8 k,
20 paths in a row) or jailbreak (three arms, ten attacks, two samples). The command is the whole `report`,
with its figures, paired differences and bootstraps, or with --compare that of two such runs.
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
from pipeline.schema import Schema
from pipeline.suites.c2_eval.schema import CONTINUATIONS, CORRECTION_VERDICTS
from pipeline.suites.jailbreak.schema import ATTACKS
from pipeline.suites.safety.schema import ANSWERS
from pipeline.suites.verdicts import VERDICTS

CONFIG = """
run_dir: {run}
model: {{path: toy}}
methods: {{mistakes: {{name: mistake_analysis, instructions: {{path: unused.jsonl}}}}}}
arms: {{sft: {{kinds: [safe]}}, mistake_analysis: {{kinds: [safe, analysis]}}}}
suites: {{{suite}: {{{settings}, more_judges: {judges}}}}}
"""
SETTINGS = {
    "safety": "harmful: {path: x.jsonl}, helpful: {path: x.jsonl}, samples: 2, answer: {temperature: 1}",
    "c2_eval": "entries: {path: x.jsonl}",
    "jailbreak": "goals: {path: x.jsonl}, samples: 2, answer: {temperature: 1}, harmless: {kind: refusal}",
}
ARMS = ("vanilla", "sft", "mistake_analysis")
CONDITIONS = ("plain", "reminder", "hint")
CELLS = len(ARMS) * len(CONDITIONS) * 2  # answers to an instruction
LENGTHS = tuple(range(10, 90, 10))  # k of c2_eval
PATHS = 20
ATTACKS_TRIED = tuple(f"attack{i}" for i in range(10))


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


def continuations(random: np.random.Generator, start: int, rows: int) -> dict[str, pa.Array]:
    number = np.arange(start, start + rows)
    entry = ids(number // (len(ARMS) * len(LENGTHS)))
    arm = pa.array(ARMS).take(pa.array(number // len(LENGTHS) % len(ARMS)))
    k = pa.array(LENGTHS, pa.int32()).take(pa.array(number % len(LENGTHS)))
    return {
        "id": pa.compute.binary_join_element_wise(entry, arm, k.cast(pa.string()), "-"),
        "instruction_id": entry,
        "arm": arm,
        "k": k,
        "category": drawn(random, [f"c{i}" for i in range(14)], rows, pa.string()),
        "prefills": _lists(drawn(random, [""], rows, pa.string()), rows, 1),
        "paths": _lists(drawn(random, [""], PATHS * rows, pa.string()), rows),
        "corrected": _lists(drawn(random, [True, *[False] * 3, None], PATHS * rows, pa.bool_()), rows),
        "finish_reasons": _lists(drawn(random, ["stop", "length"], PATHS * rows, pa.string()), rows),
        "completion_tokens": pa.array(random.integers(5, 500, rows)),
        "status": drawn(random, ["ok"], rows, pa.string()),
    }


def _lists(flat: pa.Array, rows: int, each: int = PATHS) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * each), flat)


def attacks(random: np.random.Generator, start: int, rows: int) -> dict[str, pa.Array]:
    number = np.arange(start, start + rows)
    cell, goal = number // 2 % (len(ARMS) * len(ATTACKS_TRIED)), number // 2 // len(ARMS) // 10
    return {
        "id": ids(number),
        "instruction_id": ids(goal),
        "sample": pa.array(number % 2, pa.int32()),
        "suite": drawn(random, ["harmful"], rows, pa.string()),
        "arm": pa.array(ARMS).take(pa.array(cell % len(ARMS))),
        "attack": pa.array(ATTACKS_TRIED).take(pa.array(cell // len(ARMS))),
        "empty": drawn(random, [False], rows, pa.bool_()),
        "refused": drawn(random, [True, False], rows, pa.bool_()),
        "harmful": drawn(random, [True, False, False, None], rows, pa.bool_()),
        "finish_reason": drawn(random, ["stop", "stop", "length"], rows, pa.string()),
        "completion_tokens": pa.array(random.integers(5, 500, rows)),
        "status": drawn(random, ["ok"], rows, pa.string()),
    }


DATA = {
    "safety": [(MISTAKES, mistakes), (ANSWERS, answers)],
    "c2_eval": [(CONTINUATIONS, continuations)],
    "jailbreak": [(ATTACKS, attacks)],
}


def write(run: Path, suite: str, rows: int, seed: int, more_judges: bool) -> None:
    """A run directory: its configuration, the data sets of a suite, and the verdicts of one more judge."""
    judges = f"{{other: {{kind: {'phrases' if suite == 'c2_eval' else 'refusal'}}}}}" if more_judges else "{}"
    run.mkdir()
    text = CONFIG.format(run=run, suite=suite, settings=SETTINGS[suite], judges=judges)
    (run / "config.yaml").write_text(text)
    random = np.random.default_rng(seed)
    for schema, made in DATA[suite]:
        _write(run / schema.name, schema, rows, lambda start, size, made=made: made(random, start, size))
    if more_judges:
        verdicts = CORRECTION_VERDICTS if suite == "c2_eval" else VERDICTS
        of = schema.name if suite != "safety" else ""
        name = "_".join(filter(None, ("verdicts", of, "other")))
        per_row = PATHS if suite == "c2_eval" else 1

        def said(start: int, size: int) -> dict[str, pa.Array]:
            number = np.arange(start, start + size)
            of_row = made(np.random.default_rng(0), start // per_row, -(-size // per_row))["id"]
            answer = of_row.take(pa.array(number // per_row - start // per_row))
            if per_row > 1:
                path = pa.array(number % per_row).cast(pa.string())
                answer = pa.compute.binary_join_element_wise(answer, path, "-")
            given = drawn(random, [True, False, None], size, pa.bool_())
            return {"id": answer, "answer_id": answer, "corrects": given, "harmful": given}

        _write(run / name, verdicts, rows * per_row, said)


def _write(place: Path, schema: Schema, rows: int, made) -> None:
    place.mkdir()
    for shard, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
        size = min(ROWS_PER_SHARD, rows - start)
        columns = made(start, size)
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
    parser.add_argument("--suite", choices=list(DATA), default="safety")
    parser.add_argument("--more-judges", action="store_true", help="one more judge of the suite's answers")
    parser.add_argument("--compare", action="store_true", help="measure `compare` of two such runs")
    args = parser.parse_args()
    print(
        f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, pyarrow"
        f" {version('pyarrow')}"
    )
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            runs = [Path(name, one) for one in ("run", "other")[: 1 + args.compare]]
            started = time.monotonic()
            for seed, run in enumerate(runs):
                write(run, args.suite, rows, seed, args.more_judges)
            written = time.monotonic() - started
            command = [sys.executable, "-m", "pipeline.cli"]
            if args.compare:
                m = watch([*command, "compare", *map(str, runs)])
                told = f"compare of two runs, {args.suite}, {rows:,} rows each"
            else:
                m = watch([*command, "report", str(runs[0] / "config.yaml")])
                numbers = json.loads((runs[0] / "results.json").read_text())["numbers"]
                told = f"report, {args.suite}, {rows:,} rows, {len(numbers)} numbers"
            print(
                f"{told} (written in {written:.0f} s): {m['seconds']:.1f} s, {m['cpu_s']:.1f} CPU s, peak"
                f" private memory {max(m['peaks'].values()):.0f} MiB, resident {m['resident']:.0f} MiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
