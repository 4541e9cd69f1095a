"""Preference pairs: what is dropped, in which order they come, how a micro-batch lies in one row."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.training import pairs
from pipeline.training.config import DPO
from tests import tiny


@pytest.fixture(scope="module")
def template():
    return tiny.template()


@pytest.fixture(scope="module")
def table(template, tmp_path_factory):
    return pairs.prepare(
        template, tiny.write_preferences(tmp_path_factory.mktemp("run") / "pairs", tiny.preferences(8)), 512
    )[1]


def test_each_response_is_kept_once_and_pairs_know_what_they_share(template, tmp_path):
    rows = tiny.preferences(4)
    responses, found, _, counts = pairs.prepare(
        template, tiny.write_preferences(tmp_path / "pairs", rows), 512
    )
    assert responses.num_rows == 4 * 6 and found.num_rows == 60
    assert (
        counts.kinds == {"gap 1": 20, "gap 2": 16, "gap 3": 12, "gap 4": 8, "gap 5": 4} and not counts.dropped
    )
    texts = [template.tokenizer.decode(tokens) for tokens in responses["tokens"].to_pylist()]
    by_id = {row["id"]: row for row in rows}
    for pair in found.to_pylist():
        sides = [responses["tokens"][pair[side]].as_py() for side in ("chosen", "rejected")]
        for side, tokens in zip(("chosen", "rejected"), sides, strict=True):
            row = by_id[pair["id"]]
            assert texts[pair[side]].endswith(f"assistant\n{row[side][0]['content']}{tiny.END}")
            assert f"user\n{row['prompt'][0]['content']}{tiny.END}" in texts[pair[side]]
            assert tokens[: pair["shared"]] == sides[0][: pair["shared"]]
        assert sides[0][pair["shared"]] != sides[1][pair["shared"]]


def test_pairs_are_independent_of_the_rows_order(template, tmp_path):
    rows = tiny.preferences(8)
    shuffled = random.Random(3).sample(rows, len(rows))
    made = [
        pairs.prepare(template, tiny.write_preferences(tmp_path / name, r), 512)
        for name, r in (("a", rows), ("b", shuffled))
    ]
    assert made[0] == made[1]


def test_unusable_pairs_are_dropped_and_counted(template, tmp_path):
    rows = tiny.preferences(1)[:4]
    rows[0]["rejected"][0]["content"] = "cake " * 100
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[2]["chosen"][0]["content"] = " \n"
    _, found, _, counts = pairs.prepare(template, tiny.write_preferences(tmp_path / "some", rows), 90)
    assert found["id"].to_pylist() == [rows[3]["id"]]
    assert counts.dropped == {"too_long": 1, "equal": 1, "empty_answer": 1}
    for row, sentence in zip(
        rows,
        [r"raise train.max_length = 90", "nothing to prefer", "the answers are empty"],
        strict=False,
    ):
        with pytest.raises(UserError, match=f"all 1 pairs are dropped: .*{sentence}"):
            pairs.prepare(template, tiny.write_preferences(tmp_path / row["id"], [row]), 90)
    with pytest.raises(UserError, match="no preference pair"):
        pairs.prepare(template, tiny.write_preferences(tmp_path / "none", []), 90)


def test_shuffled_keeps_groups_together_and_differs_by_epoch_and_seed(table):
    order = pairs.epoch_order(table, "shuffled", 0)
    orders = [order(0), order(1), pairs.epoch_order(table, "shuffled", 1)(0)]
    assert orders[0] == pairs.epoch_order(table, "shuffled", 0)(0)
    groups = table["group"].to_pylist()
    for one in orders:
        assert sorted(one) == list(range(120))
        assert all(len({groups[i] for i in one[at : at + 15]}) == 1 for at in range(0, 120, 15))
    assert len({tuple(one) for one in orders}) == 3


def test_ordered_goes_by_falling_gap_with_groups_together(table):
    one = pairs.epoch_order(table, "ordered", 0)(0)
    gaps = [table["gap"][i].as_py() for i in one]
    assert gaps == sorted(gaps, reverse=True) and sorted(one) == list(range(120))
    places = [(gap, table["group"][i].as_py()) for gap, i in zip(gaps, one, strict=True)]
    assert sum(a != b for a, b in itertools.pairwise(places)) == 8 * 5 - 1


@given(st.lists(st.integers(0, 6), min_size=1, max_size=64), st.integers(1, 8))
def test_micro_batches_are_the_step_and_split_no_group_without_need(groups, number):
    number = min(number, len(groups))
    step = random.Random(0).sample(range(len(groups)), len(groups))
    batches = pairs.micro_batches(step, groups, number)
    assert len(batches) == number and all(batches)
    assert sorted(i for b in batches for i in b) == list(range(len(groups)))
    split = sum(len({groups[i] for i in b}) for b in batches) - len(set(groups))
    assert split == 0 if len(set(groups)) >= number else split <= number - len(set(groups))
    sizes = sorted(map(len, batches))
    assert sizes[-1] - sizes[0] <= max(Counter(groups).values())


@pytest.mark.parametrize(
    ("per_device", "responses", "changes"),
    [
        (15, 6, {}),
        (30, 12, {}),
        (4, 8, {"curriculum": "ordered"}),
        (10, 12, {"pairs": "best_only"}),
        (20, 12, {"min_gap": 2}),
    ],
)
def test_memory_is_estimated_for_as_many_responses_as_come(
    template, tmp_path, per_device, responses, changes
):
    trainer = DPO(pairs_per_device=per_device, batch_size=2 * per_device, max_length=10, **changes)
    assert trainer.micro_batch(widest_gap=5).tokens == 10 * responses
    place = tiny.write_preferences(tmp_path / "pairs", tiny.preferences(8))
    options = {"best_only": trainer.pairs == "best_only", "min_gap": trainer.min_gap}
    found = pairs.prepare(template, place, 512, **options)[1]
    order = pairs.epoch_order(found, trainer.curriculum, 0)(0)
    step, rows = order[: trainer.batch_size], found.to_pylist()
    micro = pairs.micro_batches(step, found["group"].to_pylist(), 2)
    assert responses == max(
        len({rows[pair][side] for pair in batch for side in ("chosen", "rejected")}) for batch in micro
    )


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
@settings(max_examples=100)
def test_a_row_holds_every_sequence_and_each_prefix_once(sequences):
    row = pairs.lay_out(sequences)
    of = [places.tolist() for places in row.of]
    for sequence, places in zip(sequences, of, strict=True):
        assert [row.tokens[p] for p in places] == sequence
        assert [row.positions[p] for p in places] == list(range(len(sequence)))
        assert [row.previous[p] for p in places] == [-1, *places[:-1]]
    assert len(row.tokens) == len({tuple(s[: i + 1]) for s in sequences for i in range(len(s))})
    assert sum(row.own) == len(row.tokens)
    start = 0
    for own, path in zip(row.own, row.paths, strict=True):
        assert path[-own:].tolist() == list(range(start, start + own)) and path.tolist() in of
        start += own
