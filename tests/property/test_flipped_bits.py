"""One flipped bit in a finished data set or in its state: what reads it finds the same or refuses it in one
sentence, and never reads anything else."""

import random
from pathlib import Path

import pytest

from pipeline.commands.status import status
from pipeline.data import records
from pipeline.data.dataset import Dataset
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from tests.unit.data.stores import made, mistake

FLIPS = 150
FINGERPRINT = {"stage": "generate", "seed": 1}


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store(str(tmp_path / "run"), "mistakes", MISTAKES)
    made(store, [mistake(i) for i in range(20)], FINGERPRINT)
    return store


def resumed(store: Store):
    store.open(FINGERPRINT)
    return store.complete, store.work()


def told(store: Store):
    [output] = status(store.run_dir)["outputs"]
    if output["state"] == "corrupt":
        raise UserError(output["note"])
    return output


READERS = {
    "rows": lambda store: list(store.dataset.rows()),
    "rows from outside": lambda store: list(Dataset.at(store.path).rows()),
    "resume": resumed,
    "status": told,
}


def outcome(path: Path, place: int, bit: int, read, whole) -> str:
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)
    try:
        return "equal" if read() == whole else "different"
    except UserError as e:
        assert "\n" not in str(e)
        return "refused"
    finally:
        content[place] ^= bit
        path.write_bytes(content)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("file", ["complete.json", "fingerprint.json", "work.json", "data-00000.parquet"])
def test_a_flipped_bit_changes_nothing_that_is_read(store, reader, file):
    path = Path(store.path if file.endswith(".parquet") else store.state()) / file
    read, r = lambda: READERS[reader](store), random.Random(f"{reader} {file}")
    whole, size = read(), path.stat().st_size
    found = [outcome(path, r.randrange(size), 1 << r.randrange(8), read, whole) for _ in range(FLIPS)]
    assert set(found) <= {"equal", "refused"}
    assert read() == whole


def test_every_bit_of_a_record_counts(tmp_path):
    path, facts = tmp_path / "a.json", {"rows": 3, "share": 0.1, "of": ["é", None], "digest": "0f"}
    records.write(str(path), facts)
    places = [(place, 1 << bit) for place in range(path.stat().st_size) for bit in range(8)]
    found = {outcome(path, *place, lambda: records.read(str(path)), facts) for place in places}
    assert found <= {"equal", "refused"}


def test_a_record_of_an_older_version_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"rows": 3}')
    assert records.read(str(tmp_path / "a.json")) == {"rows": 3}
    assert records.read(str(tmp_path / "none.json")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff{}", b"[" * 100_000])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json: is corrupt or was changed; restore it"):
        records.read(str(tmp_path / "a.json"))


def test_keys_that_are_numbers_and_tuples_are_read_back(tmp_path):
    records.write(str(tmp_path / "a.json"), {"counts": {1: 2}, "span": (1, 2), "none": float("inf")})
    assert records.read(str(tmp_path / "a.json")) == {
        "counts": {"1": 2},
        "span": [1, 2],
        "none": float("inf"),
    }


def test_a_damaged_line_of_a_log_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n\n{"a": 2}\n')
    assert records.lines(str(path)) == [{"a": 1}, {"a": 2}]
    for damaged in (b'{"a": 1}\n{"a" 2}\n', b'{"a": 1}\n[2]\n', b'{"a": 1}\n{"a\xff": 2}\n'):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is corrupt"):
            records.lines(str(path))
    assert records.lines(str(tmp_path / "none.jsonl")) == []
