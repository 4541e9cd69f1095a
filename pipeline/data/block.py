"""A block of a work list: an actor reads, runs and commits it, as one file named by the block's number.

Commits are atomic and idempotent: a block's file is complete or absent, and
writing it again produces the same content.
"""

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import storage
from pipeline.data.shards import Digest
from pipeline.data.work import WorkList
from pipeline.schema import Schema

_CALLS = ".calls"
FAILED_CALLS = "failed"  # the directory of a work list's failed rows
_DIGEST = b"digest"  # in a part's metadata: actors compute the digests, and the driver only adds them up


@dataclass(frozen=True)
class Block:
    """`state` is the directory of the data set's state; `schema` is that of the results."""

    state: str
    schema: Schema
    work: WorkList
    number: int

    @property
    def path(self) -> str:
        return storage.join(parts_dir(self.state, self.work.token), f"{self.number:08d}.parquet")

    @property
    def kept_path(self) -> str:
        return storage.join(kept_dir(self.state, self.work.token), f"{self.number:08d}.parquet")

    @property
    def committed(self) -> bool:
        return storage.exists(self.path)

    def read(self) -> tuple[list[dict], dict[str, dict]]:
        """The rows of the block, in order, and the results to keep, by id: these rows are not rerun."""
        kept: list[dict] = []
        if storage.exists(self.kept_path):
            kept = pq.read_table(pa.BufferReader(storage.read_bytes(self.kept_path))).to_pylist()
        return self.work.read(self.number), {row["id"]: row for row in kept}

    def keep(self, rows: list[dict]) -> None:
        """Write results of some of the block's rows, so these rows are not rerun. Raises OSError."""
        write_part(self.kept_path, self.schema.table(rows))

    def waiting(self, names: Iterable[str]) -> dict[str, dict]:
        """The rows that wait for a model, by id: {"for": names, "calls": answered calls, by step}.

        names: all models that rows may wait for. A file that cannot be read counts as none: its calls are
        made again.
        """
        found = max((self._calls(name) for name in names), key=lambda calls: calls["turn"])
        return found["rows"]

    def suspend(self, done: list[dict], waiting: dict[str, dict], names: Iterable[str]) -> None:
        """Write that rows wait for models that are not open, so that a later pass goes on from here.

        done: results of the block's other rows. waiting, names: as of `waiting`. Raises OSError.
        """
        if done:
            self.keep(done)
        turn = 1 + max(self._calls(name)["turn"] for name in names)
        first = min(name for row in waiting.values() for name in row["for"])
        _write_calls(self._calls_path(first), turn, waiting)
        for name in names:
            if name != first:
                storage.remove(self._calls_path(name))

    def failed(self) -> dict[str, dict]:
        """The rows that failed because a call did, by id, as in `waiting`: for the model of that call, with
        the calls that were answered."""
        return _read_calls(self._failed_path)["rows"]

    def fail(self, rows: dict[str, dict]) -> None:
        """Remember rows that failed because a call did, for a retry to go on from there. Raises OSError."""
        if rows:
            _write_calls(self._failed_path, 0, self.failed() | rows)

    def retry(self, rows: dict[str, dict]) -> None:
        """Write the rows to run again, of a block that has not been run, as `failed` returned them."""
        if rows:
            first = min(name for row in rows.values() for name in row["for"])
            _write_calls(self._calls_path(first), 1, rows)

    @property
    def _failed_path(self) -> str:
        return storage.join(self.state, f"{FAILED_CALLS}-{self.work.token}", f"{self.number:08d}{_CALLS}")

    def _calls_path(self, name: str) -> str:
        return storage.join(calls_dir(self.state, self.work.token, name), f"{self.number:08d}{_CALLS}")

    def _calls(self, name: str) -> dict:
        return _read_calls(self._calls_path(name))

    def commit(self, rows: list[dict]) -> None:
        """Write the block's results atomically; a second commit replaces the first. Raises OSError."""
        write_part(self.path, self.schema.table(rows))

    def result(self) -> tuple[pa.Table, str] | None:
        """The committed rows and their digest; None if they are missing or cannot be read."""
        try:
            parquet = pq.ParquetFile(
                pa.BufferReader(storage.read_bytes(self.path)), page_checksum_verification=True
            )
            first, second = parquet.schema_arrow.metadata[_DIGEST].decode().split()
            return (self._completed(parquet.read()), first) if first == second else None
        except (OSError, ValueError, pa.ArrowException, LookupError, TypeError):
            return None

    def _completed(self, table: pa.Table) -> pa.Table:
        """The table with the columns of the schema; those that an older version did not write are null.

        Raises LookupError for an unknown column: its name, which no checksum covers, may be damaged.
        """
        if unknown := set(table.column_names) - set(self.schema.names):
            raise LookupError(f"{len(unknown)} unknown columns")
        for column in self.schema.columns:
            if column.name not in table.column_names:
                table = table.append_column(column.field, pa.nulls(table.num_rows, column.type))
        return table.select(self.schema.names).cast(self.schema.arrow)


def _read_calls(path: str) -> dict:
    """What `_write_calls` wrote. A file that is missing or cannot be read counts as one without rows."""
    try:
        return json.loads(zlib.decompress(storage.read_bytes(path)))
    except (OSError, ValueError, zlib.error):
        return {"turn": 0, "rows": {}}


def _write_calls(path: str, turn: int, rows: dict[str, dict]) -> None:
    storage.write_bytes(path, zlib.compress(json.dumps({"turn": turn, "rows": rows}).encode()))


def parts_dir(state: str, token: str) -> str:
    """Directory of the committed blocks of the work list with this token."""
    return storage.join(state, f"parts-{token}")


def kept_dir(state: str, token: str) -> str:
    """Directory of the rows that are not rerun, for the work list with this token."""
    return storage.join(state, f"kept-{token}")


def calls_dir(state: str, token: str, model: str) -> str:
    """Directory of the blocks with rows that wait for a model, for the work list with this token."""
    return storage.join(state, f"calls-{token}", model)


def suspended(state: str, token: str, model: str) -> set[int]:
    """Numbers of the blocks with rows that wait for a model, read from file names only."""
    names = storage.sizes(calls_dir(state, token, model))
    return {int(name.removesuffix(_CALLS)) for name in names if name.endswith(_CALLS)}


def write_part(path: str, table: pa.Table) -> None:
    """Write rows of a block with their digest, atomically. Raises OSError."""
    sink = pa.BufferOutputStream()
    digest = Digest.of(table).hex()
    # twice, because no checksum covers a file's metadata
    marked = table.replace_schema_metadata({_DIGEST: f"{digest} {digest}"})
    pq.write_table(marked, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(path, sink.getvalue())
