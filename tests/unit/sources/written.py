"""Instruction sources as tests need them: three rows, ways to write them, and what is read of them."""

import json

import pyarrow as pa
import pyarrow.csv

from pipeline.settings.base import Source
from pipeline.sources.counts import Counts
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


def counted(path, **options):
    """All rows of a source, and how it was read."""
    counts = Counts()
    return list(read(Source(path=str(path), **options), counts)), counts


def of_row(tmp_path, row, **options):
    """What one row of JSONL becomes: instruction, safe and unsafe response, or the reason against it."""
    [made] = rows_of(write_jsonl(tmp_path / "one.jsonl", [row]), **options)
    return made["error"] or (made["instruction"], made["safe_response"], made["unsafe_response"])
