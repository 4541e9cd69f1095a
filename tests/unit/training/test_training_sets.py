"""Training sets are made once, in parts, and are what one pass over all rows would make of them."""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data import storage
from pipeline.data.dataset import Share
from pipeline.errors import UserError
from pipeline.training import examples, identity, pairs, training_sets
from pipeline.training.arm import Places, Training
from pipeline.training.config import DPO, SFT
from pipeline.training.parts import InMemory, gathered, of_lengths
from tests import tiny

KINDS = ["safe", "analysis"]


@pytest.fixture(scope="module")
def template():
    return tiny.template()


def awkward_pairs(groups: int) -> list[dict]:
    """Pairs of which some are dropped, of groups that lie apart, some of which share all their texts."""
    rows = tiny.preferences(groups)
    again = [
        {**row, "id": f"again-{row['id']}", "group": f"again-{row['group']}"}
        for row in tiny.preferences(groups)[: 15 * 3]
    ]
    rows += again
    for row in rows:
        row["instruction_id"] = row["group"].removeprefix("again-")
    for row in rows[::7]:
        row["rejected"] = row["chosen"]
    for row in rows[3::50]:
        row["chosen"] = [{"role": "assistant", "content": " \n"}]
    for row in rows[4::37]:
        row["rejected"] = [{"role": "assistant", "content": "cake " * 90}]
    for row in rows[2::31]:
        row["prompt"] = [
            {"role": "user", "content": "take cake"},
            {"role": "assistant", "content": f"no{tiny.END} é\0"},
            {"role": "user", "content": "why"},
        ]
    return random.Random(5).sample(rows, len(rows))


# -- one pass over all rows, row by row: what the parts have to equal, token by token


@pytest.fixture(scope="module")
def encode(template):
    """The example of one conversation, or why it makes none, made once for all settings."""
    known = {}

    def one(messages):
        key = json.dumps(messages)
        if key not in known:
            [known[key]] = examples.encode(template, [messages])
        return known[key]

    return one


def passed_pairs(encode, rows, max_length, best_only=False, min_gap=1, holdout=0.0):
    rows = sorted(rows, key=lambda row: (row["group"], row["rank_chosen"], row["rank_rejected"], row["id"]))
    counts, best, selected = examples.Counts(), {}, []
    for row in rows:
        if best_only and row["rank_chosen"] != best.setdefault(row["group"], row["rank_chosen"]):
            counts.dropped[pairs.NOT_BEST] += 1
        elif row["rank_rejected"] - row["rank_chosen"] < min_gap:
            counts.dropped[pairs.SMALL_GAP] += 1
        else:
            selected.append(row)
    tokens, made = [], []
    held = [row for row in selected if examples.is_held_out(row["instruction_id"], holdout)]
    for part in (held, [row for row in selected if row not in held]):
        kept = []
        for start in range(0, len(part), 1000):
            numbers = {}
            for row in part[start : start + 1000]:
                sides = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
                better, worse = map(encode, sides)
                if isinstance(better, str) or isinstance(worse, str):
                    counts.dropped[better if isinstance(better, str) else worse] += 1
                    continue
                if max(len(better.tokens), len(worse.tokens)) > max_length:
                    counts.dropped["too_long"] += 1
                    continue
                if better.tokens == worse.tokens:
                    counts.dropped["equal"] += 1
                    continue
                for side, one in zip(sides, (better, worse), strict=True):
                    if json.dumps(side) not in numbers:
                        numbers[json.dumps(side)] = len(tokens)
                        tokens.append(one.tokens)
                gap = row["rank_rejected"] - row["rank_chosen"]
                if part is not held:
                    counts.kinds[f"gap {gap}"] += 1
                places = [numbers[json.dumps(side)] for side in sides]
                shared = pairs.common_prefix(np.array(better.tokens), np.array(worse.tokens))
                values = [row["id"], row["group"], gap, *places, shared]
                kept.append(dict(zip(pairs.PAIRS.names, values, strict=True)))
        made.append(pa.Table.from_pylist(kept, pairs.PAIRS))
    counts.held_out = len(made[0])
    return pa.table({"tokens": tokens}, schema=pairs.RESPONSES), made[1], made[0], counts


def passed_examples(template, rows, kinds, seed, max_length, packing, holdout):
    rows = sorted(
        (row for row in rows if row["kind"] in kinds), key=lambda row: examples.hashed(seed, row["id"])
    )
    counts, kept, held = examples.Counts(), [], []
    for row, one in zip(rows, examples.encoded_rows(template, rows, seed), strict=True):
        if isinstance(one, str):
            counts.dropped[one] += 1
        elif len(one.tokens) > max_length:
            counts.dropped["too_long"] += 1
        elif examples.is_held_out(row["instruction_id"], holdout):
            held.append(one)
        else:
            counts.kinds[row["kind"]] += 1
            kept.append(one)
    counts.held_out = len(held)

    def packed(some):
        bins = examples.pack([len(one.tokens) for one in some], max_length)
        bins = bins if packing else [[i] for i in range(len(some))]
        sequences = [[some[i] for i in members] for members in bins]
        made = {
            "input_ids": [[token for one in sequence for token in one.tokens] for sequence in sequences],
            "labels": [[label for one in sequence for label in one.labels] for sequence in sequences],
            "seq_lengths": [[len(one.tokens) for one in sequence] for sequence in sequences],
        }
        return pa.table(made, schema=examples.SEQUENCES)

    return packed(kept), packed(held), counts


def same(one: dict[str, pa.Table], other: dict[str, pa.Table]) -> bool:
    return one == other and identity.digest("facts", one) == identity.digest("facts", other)


@pytest.mark.parametrize(
    "settings", [{}, {"best_only": True, "holdout": 0.3}, {"min_gap": 3, "best_only": True}, {"holdout": 0.5}]
)
def test_pairs_equal_one_pass_over_all_rows(template, encode, tmp_path, settings):
    rows = awkward_pairs(90)
    dataset = tiny.write_preferences(tmp_path / "pairs", rows)
    *found, counts = pairs.prepare(template, dataset, 80, **settings)
    *wanted, known = passed_pairs(encode, rows, 80, **settings)
    assert counts == known and {"equal", "too_long", "empty_answer"} <= set(counts.dropped)
    assert same(dict(zip("abc", found, strict=True)), dict(zip("abc", wanted, strict=True)))
    assert bool(counts.held_out) == ("holdout" in settings) and found[1].num_rows


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("holdout", [0.0, 0.3])
def test_packed_examples_equal_one_pass_over_all_rows(template, tmp_path, packing, holdout):
    rows = tiny.rows(300)
    for row in rows[::9]:
        row["messages"][-1]["content"] = " "
    for row in rows[1::5]:
        row |= {"prefix": "sure first take", "prefix_tokens": 4}
    dataset = tiny.write(tmp_path / "sft", rows)
    *found, counts = examples.prepare(template, dataset, KINDS, 3, 70, packing, holdout)
    *wanted, known = passed_examples(template, rows, KINDS, 3, 70, packing, holdout)
    assert counts == known and {"empty_answer", "too_long"} <= set(counts.dropped)
    assert same(dict(zip("ab", found, strict=True)), dict(zip("ab", wanted, strict=True)))
    assert bool(counts.held_out) == bool(holdout)


# -- kept sets


def write_in_groups(directory: Path, rows: list[dict], write, monkeypatch):
    """The rows in several shards of several row groups."""
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_GROUP", 40)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_SHARD", 160)
    monkeypatch.setattr("pipeline.data.store._ROWS_AT_ONCE", 40)
    return write(directory, rows)


ARMS = {
    "dpo": (
        DPO(max_length=80, curriculum="staged", holdout=0.2),
        None,
        tiny.write_preferences,
        lambda: awkward_pairs(30),
    ),
    "sft": (SFT(max_length=70), KINDS, tiny.write, lambda: tiny.rows(400)),
}


@pytest.fixture(params=ARMS)
def arm(request, template, tmp_path, monkeypatch):
    """What `training_sets.kept` takes, for a set of many parts."""
    train, kinds, write, rows = ARMS[request.param]
    dataset = write_in_groups(tmp_path / request.param, rows(), write, monkeypatch)
    monkeypatch.setattr(training_sets, "PART_BYTES", 2000)
    assert len(dataset.digests) > 2
    return train, template, dataset, kinds, 7, str(tmp_path / "sets")


def tables(kept: training_sets.Kept) -> dict[str, pa.Table]:
    return {name: training_sets.read_table(f"{kept.path}/{name}.parquet") for name in kept.tables}


def test_a_set_of_many_parts_is_that_of_one(arm):
    train, template, dataset, kinds, seed, _ = arm
    made, alone = training_sets.kept(*arm), train.prepare(template, dataset, kinds, seed)
    assert len(training_sets._shares(dataset)) > 5
    assert same(tables(made), alone.tables)
    assert (made.counts, made.runs) == (alone.counts, alone.runs) and made.counts.dropped
    assert made.digest == identity.digest("", alone.tables)
    assert made.named({"seed": 7}) == identity.digest('{"seed": 7}', alone.tables)
    assert sorted(Path(made.path).glob("**/*.parquet")) == sorted(
        Path(made.path, f"{name}.parquet") for name in made.tables
    )


def test_a_finished_set_is_read_and_not_made_again(arm, monkeypatch):
    made = training_sets.kept(*arm)
    monkeypatch.setattr(type(arm[0]), "part", None)
    assert training_sets.kept(*arm) == made


def test_an_interrupted_preparation_goes_on_with_the_missing_parts(arm, monkeypatch):
    train, template, dataset, kinds, seed, _ = arm
    real, done = type(train).part, []

    def dying(self, *arguments):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(arguments[1].digests.keys() | {arguments[-1]})
        return real(self, *arguments)

    monkeypatch.setattr(type(train), "part", dying)
    with pytest.raises(KeyboardInterrupt):
        training_sets.kept(*arm)
    [left] = Path(arm[-1]).iterdir()
    assert len(list(left.glob("parts/*/done"))) == 3 and not (left / "set.json").exists()
    begun = left / "parts" / "0003"  # a task that was killed between its tables
    begun.mkdir()
    (begun / "rows.parquet").write_bytes(b"half")

    def counted(self, *arguments):
        done.append(arguments[1].digests.keys() | {arguments[-1]})
        return real(self, *arguments)

    monkeypatch.setattr(type(train), "part", counted)
    made = training_sets.kept(*arm)
    assert len(done) == len(training_sets._shares(dataset)) and all(done.count(one) == 1 for one in done)
    monkeypatch.setattr(type(train), "part", real)
    assert same(tables(made), train.prepare(template, dataset, kinds, seed).tables)


@pytest.mark.parametrize("changed", ["rows", "template", "settings", "kinds"])
def test_other_inputs_are_another_set(template, tmp_path, changed):
    rows, sets = tiny.rows(30), str(tmp_path / "sets")
    first = training_sets.kept(SFT(), template, tiny.write(tmp_path / "a", rows), KINDS, 0, sets)
    if changed == "rows":
        rows[0]["messages"][-1]["content"] += " cake"
    other = tiny.template(tiny.CHATML.replace("\n", "\n\n")) if changed == "template" else template
    second = training_sets.kept(
        SFT(packing=changed != "settings"),
        other,
        tiny.write(tmp_path / "b", rows),
        KINDS if changed != "kinds" else KINDS[:1],
        0,
        sets,
    )
    assert first.path != second.path and first.digest != second.digest
    training_sets.forget_others(sets, [second])
    assert storage.directories(sets) == [storage.name(second.path)]


def test_operational_settings_and_seeds_of_pairs_share_a_set(template, tmp_path):
    dataset, sets = tiny.write_preferences(tmp_path / "pairs", tiny.preferences(3)), str(tmp_path / "sets")
    paths = {
        training_sets.kept(train, template, dataset, None, seed, sets).path
        for train in (DPO(), DPO(epochs=2, learning_rate=1e-4), DPO(save_steps=7))
        for seed in (0, 1)
    }
    assert len(paths) == 1


def test_a_call_of_the_tokenizer_leaves_the_templates_identity(template):
    fresh = tiny.template()
    before = fresh.identity()
    fresh.tokenizer("cake", truncation=True, max_length=2, padding="max_length")
    assert fresh.identity() == before == template.identity()
    assert tiny.template(tiny.CHATML + " ").identity() != before


def test_no_usable_row_is_an_error_and_leaves_no_finished_set(template, tmp_path):
    rows = tiny.preferences(1)
    for row in rows:
        row["rejected"] = row["chosen"]
    dataset, sets = tiny.write_preferences(tmp_path / "pairs", rows), str(tmp_path / "sets")
    for _ in range(2):
        with pytest.raises(UserError, match="all 15 pairs are dropped"):
            training_sets.kept(DPO(), template, dataset, None, 0, sets)
    assert not list(Path(sets).glob("*/set.json"))


def test_shares_cover_every_row_group_once():
    for count in range(12):
        for of in range(1, 9):
            groups = [g for number in range(of) for g in Share(number, of).groups(count)]
            assert groups == list(range(count))


def test_gathered_tokens_come_in_the_order_of_their_keys():
    def part(keys, tokens):
        lengths = [len(one) for one in tokens]
        flat = np.array([token for one in tokens for token in one], np.int32)
        columns = {"key": keys, "length": pa.array(lengths, pa.int32()), "tokens": of_lengths(flat, lengths)}
        return InMemory({"of": pa.table(columns)})

    parts = [part(["a", "b"], [[1, 2], []]), part(["c", "a"], [[3], [9]]), part(["d"], [[4, 5, 6]])]
    found = gathered(parts, "of", pa.array(["d", "a", "c", "b", "a"]))
    assert found.to_pylist() == [[4, 5, 6], [1, 2], [3], [], [1, 2]]


def test_more_tokens_than_a_column_holds_are_refused():
    with pytest.raises(UserError, match="2,147,483,648 tokens"):
        of_lengths(np.empty(0, np.int32), [2**30, 2**30])


def test_a_digest_is_of_the_rows_and_not_of_the_memory_that_they_lie_in():
    rows = [
        {"id": f"row {n}", "group": "g", "gap": n, "chosen": n, "rejected": 9, "shared": 2} for n in range(40)
    ]
    whole = pa.Table.from_pylist(rows, pairs.PAIRS)
    lists = pa.table({"tokens": [[n] * (n % 5) for n in range(40)]}, schema=pairs.RESPONSES)
    for begin in (0, 3):
        for end in range(begin + 1, 20):
            part = {"a": whole.slice(begin, end - begin), "b": lists.slice(begin, end - begin)}
            alone = {
                name: pa.Table.from_pylist(table.to_pylist(), table.schema) for name, table in part.items()
            }
            assert identity.digest("", part) == identity.digest("", alone)


def test_the_jobs_of_a_run_read_the_kept_set_and_a_resumed_one_is_the_same(template, tmp_path, monkeypatch):
    made = tiny.config(tiny.save(tmp_path / "model"))
    dataset = tiny.write(tmp_path / "sft", tiny.rows(40))
    places = [
        (tiny.spec(made, arm), Places(dataset, str(tmp_path / arm), str(tmp_path / "state" / arm)))
        for arm in ("sft", "mistake_analysis")
    ]
    began = Training(places, str(tmp_path / "train"))
    monkeypatch.setattr(SFT, "part", None)
    resumed = Training(places, str(tmp_path / "train"))
    for arm, prepared in began._arms.items():
        [job], [again] = prepared.jobs, resumed._arms[arm].jobs
        assert (job.tables, job.name, job.run) == (again.tables, again.name, again.run)
        assert job.table("sequences").num_rows == job.run.items
        assert storage.name(job.tables) in storage.directories(str(tmp_path / "train_sets"))
    assert len(storage.directories(str(tmp_path / "train_sets"))) == 2
    with resumed:
        pass
    assert not (tmp_path / "train_sets").exists()
