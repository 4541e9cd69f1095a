"""Which pairs DPO trains on, and in which stages: Curry-DPO, and stages over all pairs."""

from collections import Counter

import pyarrow.parquet as pq
import pytest
import yaml

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.training import dpo, pairs
from pipeline.training.config import DPO
from pipeline.training.job import write_table
from tests import scripted, tiny

ONE = [(5, 1), (4, 1), (3, 1), (2, 1), (1, 1)]
ALL = [(5, 1), (4, 2), (3, 3), (2, 4), (1, 5)]


@pytest.fixture(scope="module")
def template():
    return tiny.template()


def prepared(template, path, rows=None, **train):
    dataset = tiny.write_preferences(path / "pairs", tiny.preferences(1) if rows is None else rows)
    return DPO(curriculum="staged", **train).prepare(template, dataset, None, 0)


def stages(made) -> list[tuple[int, int]]:
    return [(run.gap, run.items) for run in made.runs]


@pytest.mark.parametrize(("settings", "expected", "dropped"), [
    ({"pairs": "best_only"}, ONE, {"without_the_best_response": 10}),
    ({}, ALL, {}),
    ({"min_gap": 2}, ALL[:-1], {"below_min_gap": 5}),
    ({"pairs": "best_only", "min_gap": 2}, ONE[:-1], {"without_the_best_response": 10, "below_min_gap": 1}),
])  # fmt: skip
def test_six_ranked_responses_in_stages_from_easy_to_hard(template, tmp_path, settings, expected, dropped):
    made = prepared(template, tmp_path, **settings)
    assert stages(made) == expected
    assert made.counts.dropped == dropped and made.counts.kinds.total() == sum(n for _, n in expected)
    assert made.tables["pairs"].num_rows == sum(n for _, n in expected)


def test_curry_dpo_always_prefers_the_best_response(template, tmp_path):
    rows = tiny.preferences(3)
    made = prepared(template, tmp_path, rows, pairs="best_only")
    assert stages(made) == [(gap, 3) for gap, _ in ONE], "stages of equal size"
    ids = made.tables["pairs"]["id"].to_pylist()
    assert sorted(ids) == sorted(row["id"] for row in rows if row["rank_chosen"] == 1)
    responses = made.tables["responses"]["tokens"]
    assert len(responses) == 3 * 6, "every response is there once"
    assert len(set(made.tables["pairs"]["chosen"].to_pylist())) == 3


def test_without_the_first_rank_the_best_one_left_is_preferred(template, tmp_path):
    rows = [row for row in tiny.preferences(1) if row["rank_chosen"] != 1]
    assert stages(prepared(template, tmp_path / "a", rows, pairs="best_only")) == [
        (4, 1), (3, 1), (2, 1), (1, 1),
    ]  # fmt: skip


def test_an_unusable_best_response_is_not_replaced_by_the_second(template, tmp_path):
    """It is the best by its rank; a group whose best response is too long gives no pair."""
    rows = tiny.preferences(2)
    for row in rows[:15]:
        for side in ("chosen", "rejected"):
            if row[f"rank_{side}"] == 1:
                row[side][0]["content"] = "cake " * 600
    made = prepared(template, tmp_path, rows, pairs="best_only", max_length=512)
    assert stages(made) == ONE
    assert made.counts.dropped == {"without_the_best_response": 20, "too_long": 5}


def test_the_selection_holds_for_every_order_of_pairs(template, tmp_path):
    for curriculum in ("shuffled", "ordered"):
        dataset = tiny.write_preferences(tmp_path / curriculum / "pairs", tiny.preferences(2))
        made = DPO(curriculum=curriculum, pairs="best_only").prepare(template, dataset, None, 0)
        assert [(run.gap, run.items) for run in made.runs] == [(None, 10)]
        assert Counter(made.tables["pairs"]["gap"].to_pylist()) == {gap: 2 for gap, _ in ONE}


def test_pairs_of_other_methods_lose_nothing(template, tmp_path):
    """Pairs of ranks 1 and 2, such as revisions or the source's pairs: each has a group of its own."""
    rows = [
        {**row, "group": f"g{i}", "rank_chosen": 1, "rank_rejected": 2}
        for i, row in enumerate(tiny.preferences(1))
    ]
    assert stages(prepared(template, tmp_path, rows, pairs="best_only")) == [(1, 15)]


def test_an_arm_is_trained_on_its_kinds_of_pairs(template, tmp_path):
    rows = [
        {**row, "kind": "source" if row["group"] == "group-0" else "revision"} for row in tiny.preferences(3)
    ]
    dataset = tiny.write_preferences(tmp_path / "pairs", rows)
    for kinds, count in ((["source"], 15), (["revision"], 30), (["source", "revision"], 45), (None, 45)):
        assert pairs.prepare(template, dataset, 512, kinds=kinds)[1].num_rows == count
    assert DPO().prepare(template, dataset, ["source"], 0).tables["pairs"].num_rows == 15
    with pytest.raises(UserError, match="no preference pair of kind correction to train on"):
        pairs.prepare(template, dataset, 512, kinds=["correction"])
    assert DPO().trained_on(["source"]) == "pairs of kind source, shuffled"


def test_a_gap_that_no_pair_has_is_one_sentence(template, tmp_path):
    with pytest.raises(UserError, match=r"all 15 pairs are dropped: lower train.min_gap = 6$"):
        prepared(template, tmp_path, min_gap=6)


@pytest.mark.parametrize("best_only", [True, False])
def test_selection_does_not_depend_on_the_rows_order(template, tmp_path, best_only):
    rows = tiny.preferences(4)
    made = [
        pairs.prepare(
            template,
            tiny.write_preferences(tmp_path / name / "pairs", some),
            512,
            best_only=best_only,
            min_gap=2,
        )
        for name, some in (("a", rows), ("b", rows[::-1]))
    ]
    assert made[0] == made[1]


def test_each_stage_trains_on_its_pairs_against_the_model_it_starts_from(template, tmp_path):
    """The reference is what the policy is before the first step, so its rewards there are zero."""
    model = tiny.save(tmp_path / "model")
    settings = {
        "curriculum": "staged",
        "pairs": "best_only",
        "epochs": 1,
        "batch_size": 4,
        "pairs_per_device": 4,
    }
    config = tiny.config(model, method="dpo", learning_rate=1e-2, workers=1, **settings)
    made = prepared(template, tmp_path, tiny.preferences(4), pairs="best_only")
    for name, table in made.tables.items():
        write_table(table, str(tmp_path / "state" / f"{name}.parquet"))
    start, moved = None, []
    for number, run in enumerate(made.runs[:2], 1):
        job = tiny.job(config, "dpo", str(tmp_path / "state"), number, run, f"run{number}", start=start)
        trainer = dpo.build(job, str(tmp_path / f"scratch{number}"))
        found = pq.read_table(tmp_path / "state" / f"reference-{number}.parquet")
        assert found["gap"].to_pylist() == [run.gap] * 4
        before = trainer.log_probs_of(list(range(4)))
        for (_, chosen, rejected), *reference in zip(
            before, found["ref_chosen"].to_pylist(), found["ref_rejected"].to_pylist(), strict=True
        ):
            assert [chosen, rejected] == pytest.approx(reference, abs=1e-5)
        trainer.start_clock()
        trainer.train()
        after = trainer.log_probs_of(list(range(4)))
        moved.append(max(abs(a[1] - b[1]) for a, b in zip(after, before, strict=True)))
        start = str(tmp_path / f"adapter{number}")
        trainer.model.save_pretrained(start)
    assert min(moved) > 1e-3, "the second stage's reference is not the first one's"


@pytest.mark.parametrize(("settings", "told"), [
    ({}, "shuffled pairs"),
    ({"curriculum": "ordered"}, "ordered pairs"),
    ({"curriculum": "staged"}, "staged pairs (all pairs, not Curry-DPO)"),
    ({"curriculum": "staged", "min_gap": 2}, "staged pairs (all pairs, not Curry-DPO; gap 2 or more)"),
    ({"curriculum": "staged", "pairs": "best_only"}, "staged pairs (Curry-DPO)"),
    ({"pairs": "best_only"}, "shuffled pairs (only those of the best response)"),
])  # fmt: skip
def test_only_curry_dpo_is_called_curry_dpo(settings, told):
    assert DPO(**settings).described() == f"dpo on {told}"
    assert told in DPO(**settings).settings()
    assert DPO(**settings).trained_on(None) == f"pairs, {told.replace(' pairs', '', 1)}"


@pytest.mark.parametrize("field", ["train", "arms.dpo.train"])
def test_the_old_name_is_answered_with_the_new_one(tmp_path, field):
    path = tmp_path / "config.yaml"
    tree = scripted.tree("r", recipe={"name": "course_correction"}, train={"method": "dpo"}, arms={"dpo": {}})
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as e:
        load(path, [f"{field}.curriculum=iterative"])
    assert f"{field}.curriculum = 'iterative': is now called staged" in str(e.value), str(e.value)
    assert "pairs: best_only" in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(("recipe", "most"), [
    ({"name": "course_correction"}, 5), ({"name": "course_correction", "cuts": 2}, 3), ({"name": "critique_revise"}, 1),
    ({"name": "source_preferences"}, 1),
])  # fmt: skip
def test_a_gap_that_no_method_makes_is_refused_before_anything_starts(recipe, most):
    def configured(gap: int):
        return scripted.config(recipe=recipe, train={"method": "dpo", "min_gap": gap}, arms={"one": {}})

    assert configured(most).arms["one"].train.min_gap == most
    with pytest.raises(
        ValueError, match=rf"arms.one.train.min_gap = {most + 1}: .* set it to at most {most} "
    ):
        configured(most + 1)
