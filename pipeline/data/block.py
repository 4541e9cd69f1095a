"""A block of a work list: an actor reads, runs and commits it, as one file named by the block's number.

Commits are atomic and idempotent: a block's file is complete or absent, and
writing it again produces the same content.
"""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import storage
from pipeline.data.shards import Digest
from pipeline.data.work import WorkList
from pipeline.schema import Schema

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


def parts_dir(state: str, token: str) -> str:
    """Directory of the committed blocks of the work list with this token."""
    return storage.join(state, f"parts-{token}")


def kept_dir(state: str, token: str) -> str:
    """Directory of the rows that are not rerun, for the work list with this token."""
    return storage.join(state, f"kept-{token}")


def write_part(path: str, table: pa.Table) -> None:
    """Write rows of a block with their digest, atomically. Raises OSError."""
    sink = pa.BufferOutputStream()
    digest = Digest.of(table).hex()
    # twice, because no checksum covers a file's metadata
    marked = table.replace_schema_metadata({_DIGEST: f"{digest} {digest}"})
    pq.write_table(marked, sink, compression="zstd", write_page_checksum=True)
    storage.write_bytes(path, sink.getvalue())
