"""Reading a finished data set: the one reader, for `mix`, `train`, `report` and `show`.

When a data set is finished, its completion mark keeps a digest of every shard (`Store.finish`). The reader
compares each shard's bytes with that digest before it parses them, so a damaged shard is refused and never
read as other rows. A directory that no run made has no digests, so its files are read unchecked.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import records, storage
from pipeline.errors import UserError


class Share(NamedTuple):
    """The `number`-th of `of` equal shares of every shard's row groups, from 0."""

    number: int
    of: int

    def groups(self, count: int) -> range:
        return range(count * self.number // self.of, count * (self.number + 1) // self.of)


ALL = Share(0, 1)


@dataclass(frozen=True)
class Dataset:
    """Parquet shards in one directory.

    digests: file name → BLAKE2b digest of the shard (16 bytes, hexadecimal), in the order of the rows; None
             if no run made it.
    """

    path: str
    digests: dict[str, str | None]

    @classmethod
    def at(cls, path: str) -> "Dataset | None":
        """The data set in a directory.

        None if the directory holds no shard, or if a run has not finished it. Raises UserError if the
        completion mark is damaged.
        """
        run_dir, _, name = path.rstrip("/").rpartition("/")
        state = storage.join(run_dir or ".", ".state", name)
        if (done := records.read(storage.join(state, "complete.json"))) is not None:
            return cls(path, {name: shard["digest"] for name, shard in done["shards"].items()})
        if storage.exists(storage.join(state, "fingerprint.json")):
            return None  # started, not finished
        shards = sorted(name for name in storage.sizes(path) if name.endswith(".parquet"))
        return cls(path, dict.fromkeys(shards)) if shards else None

    @property
    def digest(self) -> str:
        """What identifies the rows: a digest of the shards' own. Raises OSError if a shard cannot be read."""
        shards = (
            known or storage.digest(storage.join(self.path, name)) for name, known in self.digests.items()
        )
        return blake2b(" ".join(shards).encode(), digest_size=16).hexdigest()

    @property
    def schema(self) -> pa.Schema:
        """Of the first shard. Raises UserError if it cannot be read."""
        return self._open(next(iter(self.digests)))[0].schema_arrow

    def tables(
        self,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
        share: Share = ALL,
        checked: set[str] | None = None,
    ) -> Iterator[pa.Table]:
        """The rows, a row group at a time, in the order they were written.

        columns: None is all. where: only rows that match this condition. share: only this share of the rows;
        not together with `where`. checked: names of shards whose bytes this process has compared already, of
        which it reads no more than the columns; the others are added.
        Holds one shard in memory. Raises UserError if a shard is not what was written, cannot be read, or
        lacks a column.
        """
        for name in self.digests:
            known = checked is not None and name in checked and where is None
            parquet, content = (self._checked(name), None) if known else self._open(name)
            if checked is not None:
                checked.add(name)
            if missing := set(columns or ()) - set(parquet.schema_arrow.names):
                raise UserError(
                    f"{self.path}: {name} has no column {min(missing)}; it was not made by this version of"
                    " setbacks"
                )
            try:
                if where is not None and content is not None:  # decodes other columns for matching rows only
                    yield _matching(content, columns, where)
                    continue
                for group in share.groups(parquet.num_row_groups):
                    yield parquet.read_row_group(group, columns=columns and list(columns))
            except (OSError, pa.ArrowException) as e:
                raise self._unreadable(name, e) from None

    def table(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """The same rows as one table. Raises UserError as `tables` does."""
        tables = list(self.tables(columns, where))
        if tables:
            return pa.concat_tables(tables)
        schema = self.schema
        return (
            schema if columns is None else pa.schema([schema.field(name) for name in columns])
        ).empty_table()

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict]:
        """The same rows as dicts. Raises UserError as `tables` does."""
        for table in self.tables(columns):
            for batch in table.to_batches(max_chunksize=1000):
                with decoding(self.path):
                    rows = batch.to_pylist()
                yield from rows

    def _open(self, name: str) -> tuple[pq.ParquetFile, pa.Buffer]:
        try:
            content = storage.read_bytes(storage.join(self.path, name))
        except FileNotFoundError:
            raise changed(self.path, name, "has been deleted") from None
        except OSError as e:
            raise self._unreadable(name, e) from None
        digest = self.digests[name]
        if digest is not None and blake2b(content, digest_size=16).hexdigest() != digest:
            raise changed(self.path, name, "is corrupt or has changed")
        try:
            buffer = pa.py_buffer(content)
            return pq.ParquetFile(buffer, page_checksum_verification=True), buffer
        except (OSError, pa.ArrowException) as e:
            raise self._unreadable(name, e) from None

    def _checked(self, name: str) -> pq.ParquetFile:
        """A shard whose bytes were compared before: checksums of the pages that are read tell of changes."""
        fs, inner = storage.filesystem(storage.join(self.path, name))
        try:
            return pq.ParquetFile(fs.open_input_file(inner), page_checksum_verification=True)
        except FileNotFoundError:
            raise changed(self.path, name, "has been deleted") from None
        except (OSError, pa.ArrowException) as e:
            raise self._unreadable(name, e) from None

    def _unreadable(self, name: str, error: Exception) -> UserError:
        return UserError(
            f"{self.path}: {name} cannot be read as Parquet ({' '.join(str(error).split())[:200]})"
        )


def _matching(parquet: pa.Buffer, columns: Sequence[str] | None, where: pc.Expression) -> pa.Table:
    import pyarrow.dataset as pads  # slow import, and `setbacks status` reads no row

    options = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    fragment = pads.ParquetFileFormat(default_fragment_scan_options=options).make_fragment(parquet)
    return fragment.to_table(columns=columns and list(columns), filter=where)


def changed(path: str, name: str, what: str) -> UserError:
    """The error for a shard that is not what the completion mark says."""
    remedy = "restore it, or rebuild the data set with --overwrite"
    return UserError(f"{path}: {name} {what} since the data set was completed; {remedy}")


@contextmanager
def decoding(path: str) -> Iterator[None]:
    """While texts of a data set become Python's: raises UserError if one is not UTF-8."""
    try:
        yield
    except UnicodeDecodeError:
        raise UserError(f"{path}: a text is not valid UTF-8; write the column anew") from None
