"""A data set that is finished: complete or absent, wherever a crash falls; and the pieces this
takes."""

import itertools
import json
import os
from contextlib import suppress
from hashlib import blake2b

import pyarrow.parquet as pq
import pytest

from pipeline.data import storage
from pipeline.data.ids import IdSet
from pipeline.data.shards import Digest, Shards
from pipeline.data.store import Store, reason
from pipeline.errors import RunFailed, UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import SFT
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.data.stores import block, commit, ids, made, mistake, sft, work


def committed(store: Store) -> int:
    return store.work_list.rows_of(store.committed())


# -- completion


def test_a_finished_data_set_tells_what_became_of_every_row(store):
    rows = [
        mistake(0),
        mistake(1, "not_induced"),
        mistake(2, "failed", "prompt too long: 99 tokens"),
        mistake(3, "failed", "prompt too long: 7 tokens"),
    ]
    done = made(store, rows)
    assert done["status"] == {"ok": 1, "not_induced": 1, "failed": 2}
    assert done["reasons"] == {"prompt too long": 2}
    assert store.complete == done
    assert ids(store) == ["r0", "r1", "r2", "r3"]
    assert not any("parts" in name for name in os.listdir(store.state()))


def test_blocks_of_an_older_version_have_no_value_for_newer_columns(store):
    store.open({})
    work(store, 2)
    commit(store, [mistake(0), mistake(1)])
    for number in store.committed():
        path = block(store, number).path
        old = pq.read_table(path)  # its digest, of all columns, stands in the metadata
        pq.write_table(old.drop_columns(["thoughts", "thought_tokens"]), path, write_page_checksum=True)
    assert store.finish()["rows"] == 2
    assert [row["thoughts"] for row in store.dataset.rows()] == [None, None]


def test_what_a_killed_process_left_half_written_of_failed_rows_goes_and_what_is_whole_stays(store):
    store.open({})
    work(store, 1)
    commit(store, [mistake(0)])
    place = store.state(f"failed-{store.work_list.token}")
    os.makedirs(place)
    for name in ("00000000.calls", "00000000.calls.7-9.tmp"):
        storage.write_text(storage.join(place, name), "{}")
    store.finish()
    assert os.listdir(place) == ["00000000.calls"]


class Crash(BaseException):
    pass


CHANGES = ("remove", "move", "write_bytes")


def crashing_at(monkeypatch, step: int):
    """The step-th call that changes something on disk raises instead; returns the count of calls made."""
    calls = itertools.count()

    def wrapped(change):
        def call(*arguments):
            if next(calls) == step:
                raise Crash
            return change(*arguments)

        return call

    for name in CHANGES:
        monkeypatch.setattr(storage, name, wrapped(getattr(storage, name)))
    return calls


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_SHARD", 2)


@pytest.mark.parametrize("step", range(12))
def test_a_crash_while_finishing_loses_nothing(store, monkeypatch, small_shards, step):
    store.open({"seed": 1})
    work(store, 6, block_rows=2)
    for n in range(3):
        commit(store, [mistake(2 * n), mistake(2 * n + 1)], n)
    with monkeypatch.context() as patch:
        crashing_at(patch, step)
        with suppress(Crash):
            store.finish()
    if store.complete is None:  # what a resumed run does: nothing is left to compute, so it finishes
        assert committed(store) == 6
        store.finish()
    assert ids(store) == [f"r{i}" for i in range(6)]
    assert len(store.complete["shards"]) == 3
    assert store.complete["rows"] == 6


def run_undone(store: Store) -> list[str]:
    """What an actor does with every block that is not committed; every row is ok.

    Returns the ids that were run.
    """
    ran = []
    for number in set(range(store.work_list.blocks)) - store.committed():
        todo, kept = block(store, number).read()
        ran += [row["id"] for row in todo if row["id"] not in kept]
        commit(store, [kept.get(row["id"]) or {**mistake(0), "id": row["id"]} for row in todo], number)
    return ran


@pytest.mark.parametrize("step", range(6))
def test_a_crash_while_failed_rows_are_reopened_loses_nothing(store, monkeypatch, step):
    made(store, [mistake(0), mistake(1, "failed", "no answer")])
    with monkeypatch.context() as patch:
        crashing_at(patch, step)
        with suppress(Crash):
            store.reopen_failed()
    if store.complete is not None:
        assert ids(store) == ["r0", "r1"]
        assert store.reopen_failed() == 1
    run_undone(store)
    assert store.finish()["status"] == {"ok": 2}
    assert ids(store) == ["r0", "r1"]


@pytest.mark.parametrize("step", range(4))
def test_a_half_cleared_data_set_never_looks_whole(store, monkeypatch, step):
    made(store, [mistake(0)])
    with monkeypatch.context() as patch:
        crashing_at(patch, step)
        with suppress(Crash):
            store.open({"seed": 2}, overwrite=True)
    if step > 0:
        assert store.complete is None
    store.open({"seed": 2}, overwrite=True)
    assert store.complete is None and store.work() is None


def test_repeated_ids_are_not_published(store):
    store.open({"seed": 1})
    work(store, 2)
    commit(store, [mistake(0), mistake(0)])
    with pytest.raises(RunFailed, match="cannot be read as the rows of its block"):
        store.finish()
    assert store.complete is None and not storage.exists(store.path)


def test_missing_rows_are_not_published(store):
    store.open({"seed": 1})
    work(store, 3)
    commit(store, [mistake(0), mistake(1)])
    with pytest.raises(RunFailed, match="rerun the same command to redo them"):
        store.finish()
    assert store.complete is None and not storage.exists(store.path)
    assert run_undone(store) == ["r0", "r1", "r2"]  # the whole block
    store.finish()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-40],
        lambda content: b"",
        lambda content: content[:30] + b"xxxx" + content[34:],
    ],
)
def test_a_damaged_part_is_run_again(store, spoil):
    store.open({"seed": 1})
    work(store, 3, block_rows=2)
    commit(store, [mistake(0), mistake(1)])
    commit(store, [mistake(2)], 1)
    content = storage.read_bytes(block(store, 0).path)
    storage.write_bytes(block(store, 0).path, spoil(content))
    with pytest.raises(RunFailed, match=r"00000000.parquet: cannot be read"):
        store.finish()
    assert run_undone(store) == ["r0", "r1"]
    store.finish()
    assert ids(store) == ["r0", "r1", "r2"]


def test_a_changed_shard_is_noticed(store):
    """Whatever byte of it changes: reading says so, and never gives other rows."""
    made(store, [mistake(i) for i in range(20)])
    path = storage.join(store.path, "data-00000.parquet")
    content = storage.read_bytes(path)
    for place in range(0, len(content), 97):
        storage.write_bytes(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(UserError, match=r"data-00000.parquet is corrupt or has changed.*--overwrite"):
            list(store.dataset.rows())
    storage.write_bytes(path, content[:-1])
    with pytest.raises(UserError, match="it was cut or changed"):
        list(store.dataset.rows())


def test_rows_keep_the_order_of_the_work_list(store):
    store.open({"seed": 1})
    work(store, 5, block_rows=2)
    for number, rows in reversed(
        list(enumerate(([mistake(0), mistake(1)], [mistake(2), mistake(3)], [mistake(4)])))
    ):
        commit(store, rows, number)
    store.finish()
    assert [row["id"] for row in store.dataset.rows(["id"])] == [f"r{i}" for i in range(5)]


def test_a_deleted_shard_is_missed(store):
    made(store, [mistake(0)])
    storage.remove(storage.join(store.path, "data-00000.parquet"))
    with pytest.raises(UserError, match=r"data-00000.parquet has been deleted.*--overwrite"):
        _ = store.complete


def test_overwrite_is_the_way_out_of_a_deleted_shard(store):
    made(store, [mistake(0)])
    storage.remove(store.path)
    store.open({"seed": 1}, overwrite=True)
    assert store.complete is None


def test_only_failed_rows_are_reopened(store):
    made(store, [mistake(0), mistake(1, "failed", "no answer"), mistake(2, "not_induced")])
    assert store.reopen_failed() == 1
    assert store.complete is None
    assert run_undone(store) == ["r1"]
    assert store.finish()["status"] == {"ok": 2, "not_induced": 1}


def test_rows_that_begin_without_a_status_are_reopened_too(tmp_path):
    """Those of `evaluate`; only sources have malformed rows."""
    store = Store(str(tmp_path / "run"), ANSWERS.name, ANSWERS)
    store.open({})
    store.write_work([{"id": f"r{i}"} for i in range(4)], ANSWERS, block_rows=2)
    for number, status in enumerate(("ok", "failed")):
        rows = [{"id": f"r{2 * number}", "status": "ok"}, {"id": f"r{2 * number + 1}", "status": status}]
        commit(store, rows, number)
    store.finish()
    assert store.reopen_failed() == 1
    assert store.committed() == {0} and list(block(store, 1).read()[1]) == ["r2"]


def test_blocks_without_failed_rows_are_not_run_again(store):
    store.open({"seed": 1})
    work(store, 6, block_rows=2)
    rows = [mistake(i, *(("failed", "no answer") if i == 3 else ())) for i in range(6)]
    for number in range(3):
        commit(store, rows[2 * number : 2 * number + 2], number)
    before = store.finish()
    assert store.reopen_failed() == 1
    assert store.committed() == {0, 2}
    assert run_undone(store) == ["r3"]
    after = store.finish()
    assert after["status"] == {"ok": 6} and after["digest"] != before["digest"]


def test_nothing_is_reopened_if_nothing_failed(store):
    done = made(store, [mistake(0)])
    assert store.reopen_failed() == 0
    assert store.complete == done


def test_a_write_that_was_cut_short_is_not_committed(store, monkeypatch):
    store.open({"seed": 1})
    work(store, 2, block_rows=1)
    commit(store, [mistake(0)])
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        commit(store, [mistake(1)], 1)
    assert store.committed() == {0}


def test_a_straggler_of_an_abandoned_list_writes_where_nobody_looks(store):
    store.open({"seed": 1})
    work(store, 2)
    straggler = block(store)
    store.open({"seed": 2}, overwrite=True)
    work(store, 2)
    straggler.commit([mistake(0), mistake(1)])
    assert not store.committed()
    commit(store, [mistake(0, "not_induced"), mistake(1, "not_induced")])
    assert store.finish()["status"] == {"not_induced": 2}


# -- pieces


def test_the_digest_does_not_depend_on_order_or_shards():
    rows = [mistake(i) for i in range(5)]
    one, other = Digest.of(MISTAKES.table(rows)), Digest()
    for row in reversed(rows):
        other.add(1, Digest.of(MISTAKES.table([row])).hex())
    assert one.hex() == other.hex() and one.rows == other.rows == 5
    other.add(1, Digest.of(MISTAKES.table([mistake(5)])).hex())
    assert one.hex() != other.hex()


def test_an_id_set_knows_what_it_has_seen():
    digests = [blake2b(f"{i}".encode(), digest_size=16).digest() for i in range(20_000)]
    seen = IdSet()
    assert all(seen.add(digest) for digest in digests)
    assert not any(seen.add(digest) for digest in digests)
    assert len(seen) == 20_000


def test_shards_are_rolled(tmp_path, small_shards):
    shards = Shards(str(tmp_path), SFT.arrow)
    for i in range(3):
        shards.write(SFT.table([sft(2 * i), sft(2 * i + 1)]))
    written = shards.close()
    assert list(written) == ["data-00000.parquet", "data-00001.parquet", "data-00002.parquet"]
    for name, facts in written.items():
        content = (tmp_path / name).read_bytes()
        assert facts == {
            "rows": 2,
            "bytes": len(content),
            "digest": blake2b(content, digest_size=16).hexdigest(),
        }


def test_an_unknown_column_is_an_error():
    with pytest.raises(KeyError, match="no column surprise"):
        SFT.table([{"surprise": 1}])


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("prompt too long: 120 tokens + 3 new ones exceed the model's 100", "prompt too long"),
        ("engine returned 1 of 16 samples", "engine returned n of n samples"),
        ("endpoint refused the request: HTTP 400", "endpoint refused the request"),
        ("the adapter cannot be loaded", "the adapter cannot be loaded"),
    ],
)
def test_reasons_are_kinds_of_errors(error, kind):
    assert reason(error) == kind


def test_writes_are_atomic(tmp_path, monkeypatch):
    path = str(tmp_path / "facts.json")
    storage.write_text(path, json.dumps({"n": 1}))
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        storage.write_text(path, json.dumps({"n": 2}))
    assert json.loads(storage.read_text(path)) == {"n": 1}
