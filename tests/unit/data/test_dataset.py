"""The one reader of finished data sets: a damaged shard is refused by every command that reads it, and never
read as other rows."""

import io
import random

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.commands import report as report
from pipeline.commands.show import show
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.methods.mistake_analysis import report as mistakes_report
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.training import examples, pairs
from tests import tiny
from tests.unit.data.stores import made, mistake

FLIPS = 100


@pytest.fixture
def mistakes(store) -> str:
    made(store, [mistake(i) for i in range(40)])
    return store.path


def shown(path: str) -> str:
    out = io.StringIO()
    show(path, 40, True, Console(file=out, width=200))
    return out.getvalue()


READERS = {
    "mix": lambda path: list(Dataset.at(path).rows()),
    "report": lambda path: (
        report._numbers(Dataset.at(path), MISTAKES),
        mistakes_report.examples(Dataset.at(path), 40),
    ),
    "show": shown,
}


def flips(path: str, size: int, seed: str):
    """Changes one bit of the shard at a time; the shard is as it was afterwards."""
    r = random.Random(seed)
    for _ in range(FLIPS):
        place, bit = r.randrange(size), 1 << r.randrange(8)
        with open(path, "r+b") as f:
            f.seek(place)
            byte = f.read(1)[0]
            f.seek(place)
            f.write(bytes([byte ^ bit]))
        yield place, bit
        with open(path, "r+b") as f:
            f.seek(place)
            f.write(bytes([byte]))


def outcomes(directory: str, read, seed: str) -> list[str]:
    path = f"{directory}/data-00000.parquet"
    with open(path, "rb") as f:
        size = len(f.read())
    whole, found = read(directory), []
    for _ in flips(path, size, seed):
        try:
            found.append("equal" if read(directory) == whole else "different")
        except UserError as e:
            assert "is corrupt or has changed since the data set was completed" in str(e)
            found.append("refused")
    assert read(directory) == whole
    return found


@pytest.mark.parametrize("command", READERS)
def test_a_flipped_bit_is_refused(mistakes, command):
    assert set(outcomes(mistakes, READERS[command], command)) <= {"equal", "refused"}


@pytest.mark.parametrize("method, write, rows, read", [
    ("sft", tiny.write, tiny.rows(30), lambda path: examples.part(tiny.template(), Dataset.at(path), ["safe", "analysis"], 0)),
    ("dpo", tiny.write_preferences, tiny.preferences(2), lambda path: Dataset.at(path).table(pairs._COLUMNS).to_pylist()),
])  # fmt: skip
def test_a_flipped_bit_is_refused_before_training(tmp_path, method, write, rows, read):
    dataset = write(tmp_path / method, rows)
    assert set(outcomes(dataset.path, read, method)) <= {"equal", "refused"}


def test_some_columns_of_some_rows(mistakes):
    dataset = Dataset.at(mistakes)
    found = dataset.table(["id", "status"], pc.field("id").isin(["r3", "r5"]))
    assert found.to_pylist() == [{"id": "r3", "status": "ok"}, {"id": "r5", "status": "ok"}]
    assert dataset.table(["status"], pc.field("id") == "nobody").schema.names == ["status"]
    with pytest.raises(UserError, match="has no column weight"):
        dataset.table(["id", "weight"])


def test_a_deleted_shard_is_named(mistakes, tmp_path):
    dataset = Dataset.at(mistakes)
    (tmp_path / "run" / "mistakes" / "data-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"data-00000\.parquet has been deleted since"):
        list(dataset.rows())


def test_a_data_set_that_is_not_finished_is_none(store, tmp_path):
    assert Dataset.at(store.path) is None
    store.open({"seed": 1})
    (tmp_path / "run" / "mistakes").mkdir()
    pq.write_table(store.schema.table([mistake(1)]), f"{store.path}/data-00000.parquet")
    assert Dataset.at(store.path) is None, "a crash came between the shards and the completion mark"


def test_a_foreign_directory_is_read_as_it_is(tmp_path):
    (tmp_path / "own").mkdir()
    pq.write_table(tiny.SFT.table(tiny.rows(3)), tmp_path / "own" / "mine.parquet")
    (tmp_path / "own" / "zz.parquet").write_bytes(b"no Parquet")
    dataset = Dataset.at(str(tmp_path / "own"))
    assert dataset.schema.names == tiny.SFT.names
    with pytest.raises(UserError, match=r"zz\.parquet cannot be read as Parquet"):
        list(dataset.rows())
