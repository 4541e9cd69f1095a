"""Files of a source, on a disk or an object store: which a path names, and how one is opened.

`readers.py` reads their rows one at a time from Parquet, Arrow, JSONL, JSON, CSV or TSV.
"""

import codecs
import io
import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from pipeline.data import storage
from pipeline.errors import OutOfReach, UserError
from pipeline.settings.shown import shown
from pipeline.sources import layout
from pipeline.sources.network import is_unreachable
from pipeline.sources.readers import READERS
from pipeline.sources.rows import BadRow

FORMATS = {
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".jsonlines": "JSONL",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
}
_OTHER_DATA = {  # endings of files that hold data and cannot be read
    *(".xlsx", ".xls", ".ods", ".orc", ".avro", ".feather", ".pkl", ".pickle", ".npz", ".h5"),
    *(".zip", ".tar", ".tgz", ".7z", ".db", ".sqlite", ".xml", ".gz", ".zst", ".bz2", ".lz4", ".xz"),
}
_DISGUISED = (  # first bytes, the format that begins so, and what else such a file is
    (
        b"version https://git-lfs",
        None,
        "is a pointer of Git LFS, not the file; fetch it by `git lfs pull`",
    ),
    (b"<!DOCTYPE", None, "is a web page and not the file; download the file itself"),
    (b"<!doctype", None, "is a web page and not the file; download the file itself"),
    (b"<html", None, "is a web page and not the file; download the file itself"),
    (b"PK\x03\x04", None, "is a zip archive; unpack it"),
    (b"\x1f\x8b", None, "is compressed by gzip; add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", None, "is compressed by Zstandard; add .zst to its name"),
    (b"BZh", None, "is compressed by bzip2; add .bz2 to its name"),
    (b"PAR1", "Parquet", "is a Parquet file; end its name in .parquet"),
    (b"ARROW1", "Arrow", "is an Arrow file; end its name in .arrow"),
)
_BINARY = ("Parquet", "Arrow")
COMPRESSIONS = (".gz", ".zst", ".bz2", ".lz4")
MAX_ENTRIES = 100_000  # files and directories below a local directory; more means a wrong root


@dataclass(frozen=True)
class File:
    filesystem: fs.FileSystem
    path: str  # within `filesystem`
    name: str  # as the user would write it
    key: str  # relative to the source's path, so it does not change if the source moves
    format: str  # a value of FORMATS

    def rows(self, columns: Container[str] | None = None) -> Iterator[dict | BadRow]:
        """Every row in order; an unreadable row becomes a BadRow. Parquet and Arrow read only `columns`.

        A row also has the columns that the path names, as in `category=theft/a.parquet`. Streams, except
        `.json`, which is parsed at once. Raises UserError if the file itself is unreadable.
        """
        partitions = self._partitions()
        try:
            for row in READERS[self.format](self, columns):
                if isinstance(row, dict):
                    row.update((name, value) for name, value in partitions.items() if row.get(name) is None)
                yield row
        except UserError:
            raise
        except _errors(self.name) as e:
            kind = OutOfReach if is_unreachable(e) and not storage.is_local(self.name) else UserError
            raise kind(
                f"{shown(self.name, 1000)}: cannot be read as {self.format} ({shown(e)}); check that the file"
                " is complete"
            ) from None

    def open(self) -> io.BufferedReader:
        """The bytes, decompressed if the name has such an extension, and in UTF-8 if they begin with a mark
        of UTF-16 or UTF-32."""
        stream = io.BufferedReader(
            self.filesystem.open_input_stream(self.path, compression="detect", buffer_size=2**20), 2**20
        )
        self.check_start(stream.peek(32)[:32])
        start = stream.peek(4)[:4]
        encoding = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        if encoding is not None:
            return io.BufferedReader(_AsUtf8(io.TextIOWrapper(stream, encoding, newline="")), 2**20)
        if len(start) == 4 and [byte == 0 for byte in start] in ([False, True] * 2, [True, False] * 2):
            raise UserError(
                f"{shown(self.name, 1000)}: seems to be in UTF-16 without a byte order mark; convert it to"
                " UTF-8"
            )
        return stream

    def check_start(self, start: bytes) -> None:
        """Raises UserError if the first bytes are those of another kind of file."""
        for mark, format, what in _DISGUISED:
            if start.startswith(mark) and self.format != format:
                raise UserError(f"{shown(self.name, 1000)}: {what}")

    def _partitions(self) -> dict[str, str]:
        """Columns that the directories of the path name, as Hive and Spark write them."""
        named = [part.split("=", 1) for part in self.path.split("/")[:-1] if "=" in part.strip("=")]
        values = {name: unquote(value) for name, value in named}
        return {name: value for name, value in values.items() if value != "__HIVE_DEFAULT_PARTITION__"}


class _AsUtf8(io.RawIOBase):
    """The bytes of a text in UTF-8."""

    def __init__(self, text: io.TextIOWrapper):
        self._text, self._waiting = text, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        if not self._waiting:
            self._waiting = self._text.read(2**16).encode("utf-8", "surrogatepass")
        count = min(len(buffer), len(self._waiting))
        buffer[:count], self._waiting = self._waiting[:count], self._waiting[count:]
        return count


# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def find(
    path: str, split: str = "train", config: str | None = None, notes: Counter[str] | None = None
) -> list[File]:
    """The files of a path, directory (with sub-directories) or glob, in order of their names.

    split, config: of a directory that holds several (see `layout`). notes: filled with what is left out.
    Raises UserError if there is no file, if a format is unknown, or if a directory mixes formats; OutOfReach
    if its server does not answer.
    """
    try:
        files = _find(path, split, config, notes if notes is not None else Counter())
    except UserError:
        raise
    except _errors(path) as e:
        kind = OutOfReach if is_unreachable(e) and not storage.is_local(path) else UserError
        raise kind(f"{path}: cannot be opened ({shown(e)})") from None
    formats = sorted({file.format for file in files})
    if len(formats) > 1:
        below = "**/" if any("/" in file.key for file in files) else ""
        endings = [ending + packed for ending in FORMATS for packed in ("", *COMPRESSIONS)]
        ending = next(e for e in endings if any(file.key.lower().endswith(e) for file in files))
        remedy = "name one kind with a glob"
        if _first_wildcard(path) == len(path):
            remedy += f" such as {path.rstrip('/')}/{below}*{ending}"
        raise UserError(f"{path}: holds {' and '.join(formats)} files; {remedy}")
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


def _find(path: str, split: str, config: str | None, notes: Counter[str]) -> list[File]:
    literal = storage.is_local(path) and os.path.exists(storage.absolute(path))
    if _first_wildcard(path) < len(path) and not literal:
        check_whole(path, split, config, notes)
        return _matching(path)
    filesystem, root = storage.filesystem(path)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.Unknown:
        raise UserError(f"{path}: is a pipe or a device; name a file or directory")
    if info.is_file:
        if (format := _format(root)) is None:
            raise UserError(
                f"{path}: unknown kind of file; known are {', '.join(FORMATS)}, all but .parquet and .arrow"
                f" also with {', '.join(COMPRESSIONS)}"
            )
        check_whole(path, split, config, notes)
        return [File(filesystem, root, path, root.rpartition("/")[2], format)]
    if info.type == fs.FileType.NotFound:
        _check_answers(filesystem, root)
        raise UserError(f"{path}: no such file or directory")
    below = _below(filesystem, root)
    if files := _of_known_format(filesystem, below, root, path):
        directory = layout.Directory(path, filesystem, root)
        notes.update(f"a {kind} file is not read" for kind in map(_unreadable, below) if kind)
        kept = set(directory.select([file.key for file in files], split, config, notes))
        return [file for file in files if file.key in kept]
    raise UserError(f"{path}: the directory holds no {', '.join(FORMATS)} file")


def _check_answers(filesystem: fs.FileSystem, path: str) -> None:
    """Raises FileNotFoundError if a path is not found because its server does not answer, as fsspec has it
    for http://."""
    if isinstance(filesystem, fs.PyFileSystem):
        try:
            filesystem.handler.fs.info(path)
        except FileNotFoundError as e:
            if is_unreachable(e):
                raise


def check_whole(path: str, split: str, config: str | None, notes: Counter[str]) -> None:
    """Notes a split that is named of a source that is read as it is. Raises UserError for a configuration."""
    if config is not None:
        raise UserError(f"{path}: config = {config}: only hub sets and directories have one; leave it out")
    if split != "train":
        notes[
            f"split = {shown(split, 60)} is not looked at, because files and globs are read as they are"
        ] += 1


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


def _unreadable(path: str) -> str | None:
    """The ending of a file that holds data in a format that is not known."""
    ending = os.path.splitext(path.lower())[1]
    return ending if ending in _OTHER_DATA and _format(path) is None else None


def _format(path: str) -> str | None:
    name = path.rpartition("/")[2].lower()
    uncompressed = next((name.removesuffix(c) for c in COMPRESSIONS if name.endswith(c)), name)
    format = next((f for extension, f in FORMATS.items() if uncompressed.endswith(extension)), None)
    return None if format in _BINARY and uncompressed != name else format
