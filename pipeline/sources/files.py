"""Reads rows one at a time from Parquet, JSONL, JSON or CSV, on a local disk or an object store."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.settings.shown import shown

FORMATS = {".parquet": "Parquet", ".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSON", ".csv": "CSV"}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4")

# A longer line cannot hold a usable row, and a file without line ends must not fill the memory.
MAX_LINE_BYTES = 16 * 2**20
MAX_JSON_BYTES = 128 * 2**20  # of a `.json` file, which is parsed at once
MAX_ENTRIES = 100_000  # files and directories below a local directory; more means a wrong root
_PARQUET_BATCH = 256


@dataclass(frozen=True)
class BadRow:
    """A row without columns: the reason, and the content as read."""

    reason: str
    raw: bytes


@dataclass(frozen=True)
class File:
    filesystem: fs.FileSystem
    path: str  # within `filesystem`
    name: str  # as the user would write it
    key: str  # relative to the source's path, so it does not change if the source moves
    format: str  # a value of FORMATS

    def rows(self, columns: Collection[str] | None = None) -> Iterator[dict | BadRow]:
        """Every row in order; an unreadable row becomes a BadRow. Parquet reads only `columns`.

        Streams, except `.json`, which is parsed at once. Raises UserError if the file itself is unreadable.
        """
        try:
            yield from _READERS[self.format](self, columns)
        except UserError:
            raise
        except _errors(self.name) as e:
            raise UserError(
                f"{shown(self.name, 1000)}: cannot be read as {self.format} ({shown(e)}); check that the file"
                " is complete"
            ) from None

    def open(self) -> io.BufferedReader:
        """The bytes, decompressed if the name has such an extension."""
        return io.BufferedReader(
            self.filesystem.open_input_stream(self.path, compression="detect", buffer_size=2**20), 2**20
        )


def find(path: str) -> list[File]:
    """The files of a path, directory (with sub-directories) or glob, in order of their names.

    Raises UserError if there is no file, if a format is unknown, or if a directory mixes formats.
    """
    try:
        files = _find(path)
    except UserError:
        raise
    except _errors(path) as e:
        raise UserError(f"{path}: cannot be opened ({shown(e)})") from None
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        raise UserError(
            f"{path}: holds {' and '.join(formats)} files; name one kind with a glob such as"
            f" {path.rstrip('/')}/*.jsonl"
        )
    return files


def _errors(path: str) -> tuple[type[Exception], ...]:
    """Exceptions of reading.

    Clients of object stores raise a dozen kinds of their own, such as network errors.
    """
    return (
        (OSError, EOFError, ValueError, ArithmeticError, RecursionError, ImportError, pa.ArrowException)
        if storage.is_local(path)
        else (Exception,)
    )


def _find(path: str) -> list[File]:
    literal = storage.is_local(path) and os.path.exists(storage.absolute(path))
    if _first_wildcard(path) < len(path) and not literal:
        return _matching(path)
    filesystem, root = storage.filesystem(path)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.Unknown:
        raise UserError(f"{path}: is a pipe or a device; name a file or directory")
    if info.is_file:
        if (format := _format(root)) is None:
            raise UserError(
                f"{path}: unknown kind of file; known are {', '.join(FORMATS)}, all but .parquet also with"
                f" {', '.join(COMPRESSIONS)}"
            )
        return [File(filesystem, root, path, root.rpartition("/")[2], format)]
    if info.type == fs.FileType.NotFound:
        raise UserError(f"{path}: no such file or directory")
    if files := _of_known_format(filesystem, _below(filesystem, root), root, path):
        return files
    raise UserError(f"{path}: the directory holds no {', '.join(FORMATS)} file")


def _matching(pattern: str) -> list[File]:
    """The files that match a glob; its root is the directories before the first wildcard."""
    from fsspec.implementations.arrow import ArrowFSWrapper
    from fsspec.utils import glob_translate

    head, slash, _ = pattern[: _first_wildcard(pattern)].rpartition("/")
    shown_root = head or slash or "."
    filesystem, root = storage.filesystem(shown_root)
    below = pattern[len(head + slash) :]
    if isinstance(filesystem, fs.LocalFileSystem):
        matches = re.compile(glob_translate(below)).match
        levels = None if "**" in below else below.count("/")
        found = [path for path in _walk(root, levels) if matches(path.removeprefix(root).lstrip("/"))]
    else:
        found = [
            path
            for path in ArrowFSWrapper(filesystem).glob(f"{root.rstrip('/')}/{below}")
            if filesystem.get_file_info(path).is_file
        ]
    if files := _of_known_format(filesystem, found, root, shown_root):
        return files
    raise UserError(f"{pattern}: matches no {', '.join(FORMATS)} file")


def _below(filesystem: fs.FileSystem, root: str) -> list[str]:
    if isinstance(filesystem, fs.LocalFileSystem):
        return _walk(root)
    return [
        info.path for info in filesystem.get_file_info(fs.FileSelector(root, recursive=True)) if info.is_file
    ]


def _walk(root: str, levels: int | None = None) -> list[str]:
    """The regular files below a local directory, `levels` deep.

    Links are followed, but no directory is entered twice, because links can form loops. Raises UserError if
    there are too many files for a data set, OSError if a directory cannot be read.
    """
    found, seen, entries = [], set(), 0
    waiting = [(root, 0)] if os.path.isdir(root) else []
    while waiting:
        directory, level = waiting.pop()
        about = os.stat(directory)
        if (about.st_dev, about.st_ino) in seen:
            continue
        seen.add((about.st_dev, about.st_ino))
        for entry in os.scandir(directory):
            entries += 1
            if entries > MAX_ENTRIES:
                raise UserError(
                    f"{root}: holds more than {MAX_ENTRIES} files and directories; name the directory of the"
                    " data alone"
                )
            path = f"{directory.rstrip('/')}/{entry.name}"
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_dir() and (levels is None or level < levels):
                waiting.append((path, level + 1))
            elif entry.is_file():
                found.append(path)
    return found


def _first_wildcard(path: str) -> int:
    wildcards = "*[?" if storage.is_local(path) else "*["  # in a URI, `?` starts the options
    return min((i for i in map(path.find, wildcards) if i >= 0), default=len(path))


def _of_known_format(filesystem: fs.FileSystem, paths: list[str], root: str, shown_root: str) -> list[File]:
    """Files below a root, except other formats (a README) and hidden names (`_SUCCESS`, `.crc`)."""
    files = []
    for path in sorted(paths):
        key = path.removeprefix(root).lstrip("/")
        hidden = any(part.startswith((".", "_")) for part in key.split("/"))
        if not hidden and (format := _format(path)):
            files.append(File(filesystem, path, f"{shown_root.rstrip('/')}/{key}", key, format))
    return files


def _format(path: str) -> str | None:
    name = path.rpartition("/")[2].lower()
    uncompressed = next((name.removesuffix(c) for c in COMPRESSIONS if name.endswith(c)), name)
    format = next((f for extension, f in FORMATS.items() if uncompressed.endswith(extension)), None)
    return None if format == "Parquet" and uncompressed != name else format


def _parquet(file: File, columns: Collection[str] | None) -> Iterator[dict | BadRow]:
    import pyarrow.parquet as pq

    with file.filesystem.open_input_file(file.path) as handle:
        parquet = pq.ParquetFile(handle, page_checksum_verification=True)
        wanted = None if columns is None else [name for name in parquet.schema_arrow.names if name in columns]
        for batch in parquet.iter_batches(_PARQUET_BATCH, columns=wanted):
            try:
                yield from batch.to_pylist()
            except (ValueError, ArithmeticError):
                yield from (_row_of(batch, i) for i in range(batch.num_rows))


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


def _jsonl(file: File, _columns: Collection[str] | None) -> Iterator[dict | BadRow]:
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


def _parse_line(line: bytes) -> dict | BadRow:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return BadRow("not valid UTF-8", line)
    except (ValueError, RecursionError):
        return BadRow("not valid JSON", line)
    return row if isinstance(row, dict) else BadRow("not a JSON object", line)


def _json(file: File, columns: Collection[str] | None) -> Iterator[dict | BadRow]:
    """An array of objects, a single object, or one object per line despite the file name."""
    with file.open() as stream:
        text = stream.read(MAX_JSON_BYTES + 1)
    try:
        if len(text) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES // 2**20} MiB to parse at once: write it as JSONL")
        # Undecodable bytes become lone surrogates: they invalidate their row, not the file.
        value = (
            json.loads(text.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape"))
            if text.strip()
            else []
        )
    except (ValueError, RecursionError) as e:
        first_line = text[:MAX_LINE_BYTES].lstrip().partition(b"\n")[0]
        if not (first_line.startswith(b"{") and isinstance(_parse_line(first_line), dict)):
            raise UserError(f"{shown(file.name, 1000)}: not valid JSON ({shown(e)})") from None
        del text
        yield from _jsonl(file, columns)
        return
    for row in value if isinstance(value, list) else [value]:
        yield row if isinstance(row, dict) else BadRow("not a JSON object", b"")


def _csv(file: File, _columns: Collection[str] | None) -> Iterator[dict | BadRow]:
    # The limit is global to the interpreter, and its default is too short for real texts. Over-long
    # instructions are rejected later.
    csv.field_size_limit(MAX_LINE_BYTES)
    with io.TextIOWrapper(file.open(), encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.DictReader(_ShortLines(text), restkey="")
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as e:
                yield BadRow(f"not valid CSV ({shown(e)})", b"")
                continue
            yield (
                BadRow("more fields than the header has", b"")
                if "" in row and isinstance(row[""], list)
                else row
            )


class _ShortLines:
    """The lines of a text.

    A line longer than MAX_LINE_BYTES raises csv.Error; the next call continues after that line.
    """

    def __init__(self, text: io.TextIOWrapper):
        self._text = text

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._text.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        if not _cut(line):
            return line
        while _cut(self._text.readline(MAX_LINE_BYTES)):
            pass
        raise csv.Error(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")


def _cut(line: str) -> bool:
    return len(line) >= MAX_LINE_BYTES and not line.endswith(("\n", "\r"))


_READERS = {"Parquet": _parquet, "JSONL": _jsonl, "JSON": _json, "CSV": _csv}
