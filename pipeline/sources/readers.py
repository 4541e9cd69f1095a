"""The rows of one file: a reader for each format. `READERS` names them."""

import codecs
import io
import json
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.settings.shown import shown
from pipeline.sources.conversations import messages
from pipeline.sources.json_tables import rows_of
from pipeline.sources.rows import MAX_LINE_BYTES, BadRow
from pipeline.sources.separated import check_names, separated

if TYPE_CHECKING:
    from pipeline.sources.files import File

MAX_JSON_BYTES = 128 * 2**20  # of a `.json` file, which is parsed at once
_BATCH = 256  # rows as Python objects at once


def _parquet(file: "File", columns: Container[str] | None) -> Iterator[dict | BadRow]:
    import pyarrow.parquet as pq

    with file.filesystem.open_input_file(file.path) as handle:
        file.check_start(handle.read_at(32, 0))
        parquet = pq.ParquetFile(handle, page_checksum_verification=True)
        schema = parquet.schema_arrow
        check_names(schema.names, file.name)
        wanted = None if columns is None else [name for name in schema.names if name in columns]
        for batch in parquet.iter_batches(_BATCH, columns=wanted):
            yield from _of_batch(batch, _class_names(schema))


def _arrow(file: "File", columns: Container[str] | None) -> Iterator[dict | BadRow]:
    """Arrow's stream format, which `save_to_disk` writes, or its file format."""
    with file.filesystem.open_input_file(file.path) as handle:
        start = handle.read(32)
        handle.seek(0)
        file.check_start(start)
        is_file = start.startswith(b"ARROW1")
        reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(handle)
        check_names(reader.schema.names, file.name)
        names = enumerate(reader.schema.names)
        wanted = [i for i, name in names if columns is None or name in columns]
        read = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        for batch in read:
            batch.validate(full=True)  # a flipped bit in the offsets would crash the process
            for start in range(0, batch.num_rows, _BATCH):
                yield from _of_batch(batch.select(wanted).slice(start, _BATCH), _class_names(reader.schema))


def _of_batch(batch: pa.RecordBatch, classes: dict[str, list[str]]) -> Iterator[dict | BadRow]:
    try:
        rows: list = batch.to_pylist()
    except (ValueError, ArithmeticError):
        rows = [_row_of(batch, i) for i in range(batch.num_rows)]
    for row in rows:
        for name, classes_of_it in classes.items():
            if isinstance(row, dict) and isinstance(number := row.get(name), int):
                row[name] = classes_of_it[number] if 0 <= number < len(classes_of_it) else None
        yield row


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of class labels by column: `datasets` stores numbers, and their names in the metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        return {}


def _row_of(batch: pa.RecordBatch, i: int) -> dict | BadRow:
    """One row of a batch with values that Python cannot represent.

    Undecodable bytes in text become lone surrogates; a date beyond Python's calendar stays an Arrow value.
    """
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[i].as_py()
        except UnicodeDecodeError:
            if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
                return BadRow(f"{name} is not valid UTF-8", b"")
            row[name] = column[i].as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
        except (ValueError, ArithmeticError):
            row[name] = column[i]
    return row


def _jsonl(file: "File", columns: Container[str] | None) -> Iterator[dict | BadRow]:
    """One object per line; an array despite the file name."""
    with file.open() as stream:
        is_array = stream.peek(64).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    yield from (_json if is_array else _json_lines)(file, columns)


def _json_lines(file: "File", _columns: Container[str] | None) -> Iterator[dict | BadRow]:
    with file.open() as stream:
        for line in _lines(stream):
            yield line if isinstance(line, BadRow) else _parse_line(line)


def _lines(stream: io.BufferedReader) -> Iterator[bytes | BadRow]:
    """Non-blank lines.

    A line longer than MAX_LINE_BYTES is skipped to its end without keeping it in memory.
    """
    first = True
    while line := stream.readline(MAX_LINE_BYTES):
        if first:
            line, first = line.removeprefix(codecs.BOM_UTF8), False
        if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
            yield BadRow(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB", line[:1024])
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
        elif line.strip():
            yield line


class _Repeated(dict):
    """A JSON object with a key that is there twice, of which a dict keeps the last value alone."""


def _object(pairs: list[tuple[str, Any]]) -> dict:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeated(found)


def _parse_line(line: bytes) -> dict | BadRow:
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError:
        return BadRow("not valid UTF-8", line)
    except (ValueError, RecursionError):
        return BadRow("not valid JSON", line)
    return _as_row(row, line)


def _as_row(value: Any, raw: bytes = b"") -> dict | BadRow:
    """A row of a JSON value: an object, or the list of messages of a conversation."""
    if isinstance(value, list) and value and messages(value):
        return {"messages": value}
    if isinstance(value, _Repeated):
        return BadRow("a key is there twice", raw)
    return value if isinstance(value, dict) else BadRow("not a JSON object", raw)


def _json(file: "File", columns: Container[str] | None) -> Iterator[dict | BadRow]:
    """An array of objects, a single object, or one object per line despite the file name."""
    with file.open() as stream:
        text = stream.read(MAX_JSON_BYTES + 1)
    try:
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES // 2**20} MiB to parse at once: write it as JSONL")
        # Undecodable bytes become lone surrogates: they invalidate their row, not the file.
        value = (
            json.loads(
                text.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"),
                object_pairs_hook=_object,
            )
            if text.strip()
            else []
        )
    except (ValueError, RecursionError) as e:
        first_line, ended, _ = text[:MAX_LINE_BYTES].lstrip().partition(b"\n")
        is_row = first_line.startswith(b"{") or (ended and first_line.startswith(b"["))
        if not (is_row and isinstance(_parse_line(first_line), dict)):
            raise UserError(
                f"{shown(file.name, 1000)}: not valid JSON ({shown(e)}); check that the file is complete, and"
                " is one array of objects"
            ) from None
        del text
        yield from _json_lines(file, columns)
        return
    yield from map(_as_row, rows_of(value, file.name))


def _separated(delimiters: str, file: "File", _columns: Container[str] | None) -> Iterator[dict | BadRow]:
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from separated(text, file.name, delimiters)


READERS: dict[str, Callable[["File", Container[str] | None], Iterator[dict | BadRow]]] = {
    "Parquet": _parquet,
    "Arrow": _arrow,
    "JSONL": _jsonl,
    "JSON": _json,
    "CSV": partial(_separated, ",;\t|"),
    "TSV": partial(_separated, "\t"),
}
