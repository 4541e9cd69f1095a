"""Writes Parquet shards of a sensible size, and digests of their rows."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import storage

ROWS_PER_SHARD = 100_000
BYTES_PER_SHARD = 256 * 2**20  # of Arrow memory; zstd shrinks it to about a third on disk
ROWS_PER_GROUP = 10_000  # small enough for little reader memory, large enough to compress well
BYTES_PER_GROUP = 32 * 2**20


class Digest:
    """An order-independent hash of rows: the sum of the rows' hashes, 128 bits."""

    def __init__(self):
        self.rows = 0
        self._sum = 0

    @classmethod
    def of(cls, table: pa.Table) -> "Digest":
        digest = cls()
        for batch in table.to_batches(max_chunksize=1000):
            for row in batch.to_pylist():
                content = json.dumps(row, sort_keys=True, default=str).encode()
                digest._sum += int.from_bytes(hashlib.blake2b(content, digest_size=16).digest())
        digest.rows = table.num_rows
        return digest

    def add(self, rows: int, hex: str) -> None:
        """Add the digest of other rows."""
        self.rows += rows
        self._sum += int(hex, 16)

    def hex(self) -> str:
        return f"{self._sum % 2**128:032x}"


class Shards:
    """zstd Parquet files of a sensible size in one directory: data-00000.parquet, …"""

    def __init__(self, path: str, schema: pa.Schema):
        self.path = path
        self.fs, self.inner = storage.filesystem(path)
        self.schema = schema
        self.written: dict[
            str, dict
        ] = {}  # name → rows, bytes, digest: what a reader can check the file against
        self.rows = 0
        self._writer: pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []
        self._rows_waiting = self._bytes_waiting = 0
        self._rows_here = self._bytes_here = 0

    def write(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        self._waiting.append(table)
        self._rows_waiting += table.num_rows
        self._bytes_waiting += table.nbytes
        full = (
            self._rows_here + self._rows_waiting >= ROWS_PER_SHARD
            or self._bytes_here + self._bytes_waiting >= BYTES_PER_SHARD
        )
        if full or self._rows_waiting >= ROWS_PER_GROUP or self._bytes_waiting >= BYTES_PER_GROUP:
            writer = self._write_group()
            if full:
                self._roll(writer)

    def close(self) -> dict[str, dict]:
        """Returns rows, bytes and digest of each file by name.

        An empty data set has one file, so it loads with its schema.
        """
        if self._rows_waiting or not self.rows:
            self._write_group()
        if self._writer is not None:
            self._roll(self._writer)
        return self.written

    def _write_group(self) -> pq.ParquetWriter:
        if self._writer is None:
            self.fs.create_dir(self.inner, recursive=True)
            self._writer = pq.ParquetWriter(
                f"{self.inner}/{self._name()}",
                self.schema,
                filesystem=self.fs,
                compression="zstd",
                write_page_checksum=True,
            )
        if self._rows_waiting:
            group = pa.concat_tables(self._waiting)
            self._writer.write_table(group, row_group_size=group.num_rows)
        self._rows_here += self._rows_waiting
        self._bytes_here += self._bytes_waiting
        self._waiting, self._rows_waiting, self._bytes_waiting = [], 0, 0
        return self._writer

    def _roll(self, writer: pq.ParquetWriter) -> None:
        writer.close()
        name, path = self._name(), storage.join(self.path, self._name())
        self.written[name] = {
            "rows": self._rows_here,
            "bytes": storage.sizes(self.path)[name],
            "digest": storage.digest(path),
        }
        self._writer, self._rows_here, self._bytes_here = None, 0, 0

    def _name(self) -> str:
        return f"data-{len(self.written):05d}.parquet"
