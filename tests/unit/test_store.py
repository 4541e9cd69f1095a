"""A data set in a run directory: made once, resumed, refused, redone; and whole or not there at all, wherever a crash falls."""

import itertools
import json
import os
from contextlib import suppress
from hashlib import blake2b

import pyarrow.parquet as pq
import pytest

from pipeline.data import storage
from pipeline.data.card import write_card
from pipeline.data.ids import IdSet
from pipeline.data.instructions import Counts
from pipeline.data.output import Output, differences
from pipeline.data.schema import INSTRUCTIONS, MISTAKES, SFT
from pipeline.data.shards import Digest, Shards
from pipeline.data.store import Store, reason
from pipeline.errors import RunFailed, UserError
from tests import scripted


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"), "mistakes", MISTAKES)


def mistake(i: int, status: str = "ok", error: str | None = None) -> dict:
    row = {"id": f"r{i}", "instruction_id": f"r{i}", "instruction": f"ask {i}", "response": "bad", "analysis": "because", "status": status}
    return row | {"error": error}


def work(store: Store, n: int, block_rows: int = 100) -> None:
    rows = [scripted.instruction(f"ask {i}", id=f"r{i}", instruction_id=f"r{i}") for i in range(n)]
    store.write_work(rows, INSTRUCTIONS, Counts(read=n, ok=n), block_rows=block_rows)


def block(store: Store, number: int = 0):
    return store.block(store.work_list, number)


def commit(store: Store, rows: list[dict], number: int = 0) -> None:
    block(store, number).commit(rows)


def committed(store: Store) -> int:
    return store.work_list.rows_of(store.committed())


def made(store: Store, rows: list[dict], fingerprint: dict | None = None) -> dict:
    store.open(fingerprint or {"seed": 1})
    work(store, len(rows))
    commit(store, rows)
    return store.finish()


def ids(store: Store) -> list[str]:
    return sorted(row["id"] for row in store.rows(["id"]))


# -- opening


def test_the_same_fingerprint_resumes(store):
    store.open({"seed": 1, "made_from": {}})
    work(store, 2)
    store.open({"seed": 1, "made_from": {}})
    assert store.work()["rows"] == 2


def test_another_configuration_is_refused_with_a_readable_difference(store):
    made(store, [mistake(0)], {"recipe": {"induce": {"temperature": 1.0}}, "seed": 1, "prompts": {"judge": "aa"}})
    with pytest.raises(UserError) as e:
        store.open({"recipe": {"induce": {"temperature": 0.7}}, "seed": 2, "prompts": {"judge": "aa"}})
    assert "recipe.induce.temperature: 1.0 there, 0.7 now; seed: 1 there, 2 now" in str(e.value)
    assert "--overwrite" in str(e.value)
    assert ids(store) == ["r0"]


def test_overwrite_forgets_everything(store):
    made(store, [mistake(0)])
    store.open({"seed": 2}, overwrite=True)
    assert store.complete is None and store.work() is None and not store.committed()
    assert not storage.exists(store.path)


def test_what_was_made_from_something_else_is_made_again(store):
    made(store, [mistake(0)], {"seed": 1, "made_from": {"sft": "aa"}})
    store.open({"seed": 1, "made_from": {"sft": "bb"}})
    assert store.complete is None and store.work() is None


def test_another_configuration_is_refused_even_where_it_was_made_from_something_else(store):
    made(store, [mistake(0)], {"seed": 1, "made_from": {"sft": "aa"}})
    with pytest.raises(UserError, match="seed: 1 there, 2 now"):
        store.open({"seed": 2, "made_from": {"sft": "bb"}})


def test_a_key_that_only_became_known_is_no_difference(store):
    made(store, [mistake(0)], {"seed": 1})
    store.open({"seed": 1, "newer_option": None})
    assert ids(store) == ["r0"]


def test_a_refusal_can_be_known_before_anything_starts(store):
    made(store, [mistake(0)], {"seed": 1, "made_from": {"sft": "aa"}})
    store.check({"seed": 1})
    with pytest.raises(UserError, match="seed: 1 there, 2 now"):
        store.check({"seed": 2})


def test_foreign_data_in_the_way_is_left_alone(store, tmp_path):
    foreign = tmp_path / "run" / "mistakes" / "precious.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine")
    with pytest.raises(UserError, match="another run_dir"):
        store.open({"seed": 1})
    assert foreign.read_bytes() == b"mine"


def test_differences_name_added_and_removed_keys():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1, "d": "x"}, "c": [2]}) == [
        'a.d: null there, "x" now',
        "c: [1] there, [2] now",
    ]


def test_an_adapter_that_has_been_deleted_is_not_complete(tmp_path):
    output = Output(str(tmp_path), "adapter/sft")
    output.open({"seed": 1})
    storage.write_text(storage.join(output.path, "adapter_config.json"), "{}")
    output.mark_complete({"steps": 3})
    assert output.complete == {"steps": 3}
    storage.remove(output.path)
    assert output.complete is None


# -- the rows to do


def test_the_work_list_is_read_once(store):
    store.open({"seed": 1})
    counts = Counts()

    def rows():
        counts.read = counts.ok = 1
        yield scripted.instruction()

    written = store.write_work(rows(), INSTRUCTIONS, counts, block_rows=8)
    assert written == {"rows": 1, "block_rows": 8, "token": written["token"], "read": 1, "ok": 1, "duplicates": 0, "malformed": 0}
    assert store.write_work(iter([]), INSTRUCTIONS, Counts(), block_rows=4) == written


def test_an_interrupted_work_list_is_written_anew(store):
    def broken():
        yield scripted.instruction()
        raise OSError("the disk has gone")

    store.open({"seed": 1})
    with pytest.raises(OSError):
        store.write_work(broken(), INSTRUCTIONS, block_rows=1)
    assert store.work() is None
    work(store, 3)
    assert sum(pq.read_metadata(f).num_rows for f in storage.files(store.state("work"))) == 3


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
    """What an actor does with every block that is not committed; every row is ok. Returns the ids that were run."""
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
    with pytest.raises(RunFailed, match="the same command runs them again"):
        store.finish()
    assert store.complete is None and not storage.exists(store.path)
    assert run_undone(store) == ["r0", "r1", "r2"]  # the whole block
    store.finish()


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-40], lambda content: b"", lambda content: content[:30] + b"xxxx" + content[34:]]
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
        with pytest.raises(UserError, match=r"data-00000.parquet has changed or is damaged.*--overwrite"):
            list(store.rows())
    storage.write_bytes(path, content[:-1])
    with pytest.raises(UserError, match="it was cut or changed"):
        list(store.rows())


def test_rows_keep_the_order_of_the_work_list(store):
    store.open({"seed": 1})
    work(store, 5, block_rows=2)
    for number, rows in reversed(list(enumerate(([mistake(0), mistake(1)], [mistake(2), mistake(3)], [mistake(4)])))):
        commit(store, rows, number)
    store.finish()
    assert [row["id"] for row in store.rows(["id"])] == [f"r{i}" for i in range(5)]


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


def test_nothing_is_reopened_where_nothing_failed(store):
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


# -- in one go


def sft(n: int) -> dict:
    return {
        "id": f"e{n}",
        "instruction_id": f"i{n}",
        "kind": "safe",
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }


def test_rows_written_in_one_go(tmp_path):
    store = Store(str(tmp_path), "sft", SFT)
    store.open({"seed": 1})
    assert store.write_rows(map(sft, range(3))) == store.complete
    assert ids(store) == ["e0", "e1", "e2"]


def test_rows_written_in_one_go_are_all_or_nothing(tmp_path):
    def broken():
        yield sft(0)
        raise OSError("the disk has gone")

    store = Store(str(tmp_path), "sft", SFT)
    store.open({"seed": 1})
    with pytest.raises(OSError):
        store.write_rows(broken())
    assert store.complete is None and not storage.exists(store.path)
    assert store.write_rows(map(sft, range(2)))["rows"] == 2


def test_a_run_directory_may_be_written_in_many_ways(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = tmp_path / "a run"
    for path in (str(plain), f"{plain}/", "~/a run", "~/a run/"):
        store = Store(storage.absolute(path), "sft", SFT)
        store.open({"seed": 1})
        if store.complete is None:
            store.write_rows(map(sft, range(2)))
        assert store.path == str(plain / "sft")


def test_a_data_set_loads_with_its_card(tmp_path):
    """As people will load it: the directory, card and all, in `datasets`; several shards, null columns, lists of messages."""
    datasets = pytest.importorskip("datasets")
    config = scripted.config(tmp_path)
    mistakes, mixture = Store(str(tmp_path), "mistakes", MISTAKES), Store(str(tmp_path), "sft", SFT)
    made(mistakes, [mistake(0), mistake(1, "failed", "prompt too long: 9")])
    mixture.open({"seed": 1})
    mixture.write_rows(map(sft, range(3)))
    for store in (mistakes, mixture):
        write_card(store, config, {"judge": "abc"}, {"seconds": 3.5, "tokens_per_s": None})
    loaded = datasets.load_dataset(mistakes.path, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == MISTAKES.names
    assert loaded["error"] == [None, "prompt too long: 9"]
    trained_on = datasets.load_dataset(mixture.path, cache_dir=str(tmp_path / "cache"))["train"]
    assert trained_on[0]["messages"] == sft(0)["messages"]
    card = storage.read_text(storage.join(mistakes.path, "README.md"))
    for told in ("Content warning", "* failed, prompt too long: 1", "| `analysis` |", "prompts `judge`: abc", "seconds: 3.5"):
        assert told in card


def test_an_empty_data_set_is_a_file_with_its_columns(tmp_path):
    store = Store(str(tmp_path), "sft", SFT)
    store.open({"seed": 1})
    assert store.write_rows([])["rows"] == 0
    assert not list(store.rows())
    assert pq.read_schema(os.path.join(store.path, "data-00000.parquet")).names == SFT.names


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
        assert facts == {"rows": 2, "bytes": len(content), "digest": blake2b(content, digest_size=16).hexdigest()}


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
