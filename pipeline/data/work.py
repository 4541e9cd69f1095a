"""The rows to do, in blocks: a block is run, committed and, after a fault, rerun as a unit.

A block has a number, and its results are one file named by that number, written atomically. Progress is
therefore a list of file names: no set of ids is kept or compared, at any number of rows. A block that runs
twice (a retry, a straggler) still has one file.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import storage
from pipeline.errors import RunFailed, UserError
from pipeline.schema import Schema

BLOCKS_PER_ACTOR = 8  # at least, so that actors have equal shares
_MOST_COUNTED = 100_000  # rows held in memory to see whether they are few
_ROWS_PER_FILE = 20_000  # fewer files list faster; few enough row groups for a fast footer read


@dataclass(frozen=True)
class WorkList:
    """Files of row groups, one row group per block: `block_rows` alone locates a block."""

    path: str
    rows: int
    block_rows: int
    token: str  # names the parts directory: stragglers of an abandoned list write to another

    def __post_init__(self):
        if not self.token.isalnum():  # it becomes part of a path
            raise UserError(f"{self.path}: setbacks did not write its work.json; restart with --overwrite")

    @property
    def blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    def rows_of(self, blocks: Iterable[int]) -> int:
        """Number of rows in the blocks; the last block may be shorter."""
        return sum(min(self.block_rows, self.rows - block * self.block_rows) for block in blocks)

    def read(self, block: int) -> list[dict]:
        """The rows of one block. Raises RunFailed if they cannot be read."""
        file, group = divmod(block, _blocks_per_file(self.block_rows))
        with self._open(file) as parquet:
            return parquet.read_row_group(group).to_pylist()

    def tables(self, columns: list[str]) -> Iterator[pa.Table]:
        """Some columns of every block, in order."""
        for file in range(-(-self.blocks // _blocks_per_file(self.block_rows))):
            with self._open(file) as parquet:
                for group in range(parquet.num_row_groups):
                    yield parquet.read_row_group(group, columns=columns)

    @contextmanager
    def _open(self, file: int) -> Iterator[pq.ParquetFile]:
        fs, inner = storage.filesystem(self.path)
        path = f"{inner}/{_name(file)}"
        try:
            with pq.ParquetFile(path, filesystem=fs, page_checksum_verification=True) as parquet:
                yield parquet
        except (OSError, pa.ArrowException) as e:
            reason = " ".join(str(e).split())[:200]
            why = f"the rows to do cannot be read ({reason})"
            raise RunFailed(f"{path}: {why}; if the file is corrupt, restart with --overwrite") from e


def write_work_list(path: str, rows: Iterable[dict], schema: Schema, block_rows: int) -> int:
    """Write rows to do into a directory; returns their number. Holds one block in memory."""
    fs, inner = storage.filesystem(path)
    fs.create_dir(inner, recursive=True)
    written = 0
    writer: pq.ParquetWriter | None = None
    try:
        for number, block in enumerate(batches(rows, block_rows)):
            file, group = divmod(number, _blocks_per_file(block_rows))
            if writer is None or group == 0:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(
                    f"{inner}/{_name(file)}",
                    schema.arrow,
                    filesystem=fs,
                    compression="zstd",
                    write_page_checksum=True,
                )
            writer.write_table(schema.table(block), row_group_size=block_rows)
            written += len(block)
    finally:
        if writer is not None:
            writer.close()
    return written


def shared(rows: Iterable[dict], block_rows: int, actors: int) -> tuple[Iterable[dict], int]:
    """The rows again, and the size of their blocks: smaller if there would be too few blocks for the actors.

    With fewer than BLOCKS_PER_ACTOR for each, one actor more or less with a last block is a large part of
    the time. More than _MOST_COUNTED rows are not few. Reads the rows up to there.
    """
    if actors == 1:
        return rows, block_rows
    rows = iter(rows)
    enough = BLOCKS_PER_ACTOR * actors * block_rows
    first = list(islice(rows, min(enough, _MOST_COUNTED)))
    if len(first) < min(enough, _MOST_COUNTED):
        block_rows = max(1, -(-len(first) // (BLOCKS_PER_ACTOR * actors)))
    return chain(first, rows), block_rows


def batches(rows: Iterable[dict], size: int) -> Iterator[list[dict]]:
    """Lists of `size` rows; the last may be shorter."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch


def _blocks_per_file(block_rows: int) -> int:
    return max(1, _ROWS_PER_FILE // block_rows)


def _name(file: int) -> str:
    return f"data-{file:05d}.parquet"
