"""A data set in a run directory: made once, resumed, refused, redone, or written in one go."""

import os

import pyarrow.parquet as pq
import pytest

from pipeline.data import storage
from pipeline.data.card import write_card
from pipeline.data.output import Output, differences
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.origin import origin
from pipeline.schema import INSTRUCTIONS, SFT
from tests import scripted
from tests.unit.data.stores import ids, made, mistake, sft, work

# -- opening


def test_the_same_fingerprint_resumes(store):
    store.open({"seed": 1, "made_from": {}})
    work(store, 2)
    store.open({"seed": 1, "made_from": {}})
    assert store.work()["rows"] == 2


def test_another_configuration_is_refused_with_a_readable_difference(store):
    made(
        store,
        [mistake(0)],
        {"recipe": {"induce": {"temperature": 1.0}}, "seed": 1, "prompts": {"judge": "aa"}},
    )
    with pytest.raises(UserError) as e:
        store.open({"recipe": {"induce": {"temperature": 0.7}}, "seed": 2, "prompts": {"judge": "aa"}})
    assert (
        "recipe.induce.temperature: 1.0 in the run directory, 0.7 in this config; seed: 1 in the run"
        " directory, 2 in this config" in str(e.value)
    )
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


def test_another_configuration_is_refused_even_if_it_was_made_from_something_else(store):
    made(store, [mistake(0)], {"seed": 1, "made_from": {"sft": "aa"}})
    with pytest.raises(UserError, match="seed: 1 in the run directory, 2 in this config"):
        store.open({"seed": 2, "made_from": {"sft": "bb"}})


def test_a_key_that_only_became_known_is_no_difference(store):
    made(store, [mistake(0)], {"seed": 1})
    store.open({"seed": 1, "newer_option": None})
    assert ids(store) == ["r0"]


def test_a_refusal_can_be_known_before_anything_starts(store):
    made(store, [mistake(0)], {"seed": 1, "made_from": {"sft": "aa"}})
    store.check({"seed": 1})
    with pytest.raises(UserError, match="seed: 1 in the run directory, 2 in this config"):
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
        'a.d: null in the run directory, "x" in this config',
        "c: [1] in the run directory, [2] in this config",
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
    counts = {"read": 0}

    def rows():
        counts["read"] = 1
        yield scripted.instruction()

    written = store.write_work(rows(), INSTRUCTIONS, lambda: {"sources": counts}, block_rows=8)
    assert written == {
        "rows": 1,
        "block_rows": 8,
        "token": written["token"],
        "sources": {"read": 1},
    }
    assert store.write_work(iter([]), INSTRUCTIONS, block_rows=4) == written


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


# -- in one go


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
    """As people will load it: the directory, card and all, in `datasets`; several shards, null columns, lists
    of messages."""
    datasets = pytest.importorskip("datasets")
    config = scripted.config(tmp_path)
    mistakes, mixture = Store(str(tmp_path), "mistakes", MISTAKES), Store(str(tmp_path), "sft", SFT)
    made(mistakes, [mistake(0), mistake(1, "failed", "prompt too long: 9")])
    mixture.open({"seed": 1})
    mixture.write_rows(map(sft, range(3)))
    for store in (mistakes, mixture):
        write_card(
            store, origin(config, store.schema), {"judge": "abc"}, {"seconds": 3.5, "tokens_per_s": None}
        )
    loaded = datasets.load_dataset(mistakes.path, cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.column_names == MISTAKES.names
    assert loaded["error"] == [None, "prompt too long: 9"]
    trained_on = datasets.load_dataset(mixture.path, cache_dir=str(tmp_path / "cache"))["train"]
    assert trained_on[0]["messages"] == sft(0)["messages"]
    card = storage.read_text(storage.join(mistakes.path, "README.md"))
    for told in (
        "Content warning",
        "* failed, prompt too long: 1",
        "| `analysis` |",
        "prompts `judge`: abc",
        "seconds: 3.5",
    ):
        assert told in card


def test_an_empty_data_set_is_a_file_with_its_columns(tmp_path):
    store = Store(str(tmp_path), "sft", SFT)
    store.open({"seed": 1})
    assert store.write_rows([])["rows"] == 0
    assert not list(store.dataset.rows())
    assert pq.read_schema(os.path.join(store.path, "data-00000.parquet")).names == SFT.names
