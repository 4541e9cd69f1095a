"""Instruction sources as tests need them: three rows, ways to write them, and what is read of them."""

import json

import pyarrow as pa
import pyarrow.csv

from pipeline.settings.base import Source
from pipeline.sources.instructions import read

THREE = [{"instruction": f"Tell me about {what}", "output": f"{what}!"} for what in ("tea", "rain", "moss")]
TABLE = pa.Table.from_pylist(THREE)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path):
    pyarrow.csv.write_csv(TABLE, path)


def rows_of(path, **options):
    return list(read(Source(path=str(path), **options)))


def only(path, **options):
    [row] = rows_of(path, **options)
    return row
