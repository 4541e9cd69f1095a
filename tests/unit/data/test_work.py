"""The rows to do, in blocks: every row in one block, every block where it is looked for, whatever the
sizes."""

import pytest

from pipeline.data import storage, work
from pipeline.data.work import WorkList, batches, write_work_list
from pipeline.errors import RunFailed, UserError
from pipeline.schema import INSTRUCTIONS
from tests.scripted import instruction


def rows(n: int) -> list[dict]:
    return [instruction(f"ask {i}", id=f"r{i}", instruction_id=f"r{i}") for i in range(n)]


@pytest.mark.parametrize("rows_per_file", [1, 4, 7, 1000])
@pytest.mark.parametrize(("count", "block_rows"), [(0, 3), (1, 3), (9, 3), (10, 3), (20, 1), (5, 100)])
def test_blocks_are_the_rows_in_order(tmp_path, monkeypatch, count, block_rows, rows_per_file):
    monkeypatch.setattr(work, "_ROWS_PER_FILE", rows_per_file)
    directory = str(tmp_path / "work")
    assert write_work_list(directory, iter(rows(count)), INSTRUCTIONS, block_rows) == count
    listed = WorkList(directory, count, block_rows, "token")
    blocks = [listed.read(number) for number in range(listed.blocks)]
    assert [row for block in blocks for row in block] == rows(count)
    assert all(len(block) == block_rows for block in blocks[:-1])
    assert [table["id"].to_pylist() for table in listed.tables(["id"])] == [
        [row["id"] for row in block] for block in blocks
    ]
    assert listed.rows_of(range(listed.blocks)) == count


def test_files_hold_many_blocks(tmp_path):
    write_work_list(str(tmp_path), iter(rows(1000)), INSTRUCTIONS, 10)
    assert len(storage.sizes(str(tmp_path))) == 1


def test_the_last_block_counts_with_the_rows_it_has():
    listed = WorkList("unused", 10, 4, "token")
    assert (listed.blocks, listed.rows_of([0]), listed.rows_of([0, 2])) == (3, 4, 6)


def test_a_damaged_work_list_is_never_read_as_other_rows(tmp_path):
    directory = str(tmp_path)
    write_work_list(directory, iter(rows(50)), INSTRUCTIONS, 10)
    path = storage.join(directory, "data-00000.parquet")
    content = storage.read_bytes(path)
    storage.write_bytes(path, content[:200] + bytes([content[200] ^ 0xFF]) + content[201:])
    listed = WorkList(directory, 50, 10, "token")
    with pytest.raises(RunFailed, match=r"data-00000.parquet: the rows to do cannot be read .*--overwrite"):
        [listed.read(number) for number in range(5)]


def test_a_strangers_token_names_no_path():
    with pytest.raises(UserError, match=r"did not write its work\.json"):
        WorkList("run", 10, 4, "x/../../outside")


def test_batches_of_nothing_are_none():
    assert list(batches([], 3)) == []
    assert list(batches([{}, {}, {}, {}], 3)) == [[{}, {}, {}], [{}]]
