"""Durability of an arm with several training seeds: the adapter of every seed is trained further."""

from pipeline import fingerprints
from pipeline.commands import report
from pipeline.config import Config
from pipeline.report import replicas
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted
from tests.unit.experiment.test_durability import answer

DURABILITY = {"data": {"path": "toy:helpful-train"}, "steps": [0, 5], "arms": ["sft"]}


def config(**arm) -> Config:
    return scripted.config(
        mix={"helpful": {"path": "toy:helpful-train"}},
        arms={"sft": {"kinds": ["safe", "helpful"], **arm}},
        durability=DURABILITY,
    )


def test_every_seed_is_trained_further_from_its_own_adapter():
    found = config(seeds=[0, 1])
    assert {name: one.arm for name, one in found.further.items()} == {
        "sft_seed0_after_5": "sft_seed0",
        "sft_seed1_after_5": "sft_seed1",
    }
    assert found.arm_names == ["vanilla", "sft_seed0", "sft_seed1", *found.further]
    marks = fingerprints.fingerprints(found)
    begun = [marks[f"adapter/{name}"]["durability"]["begins_from"] for name in found.further]
    assert begun == ["sft_seed0", "sft_seed1"]


def test_an_arm_with_a_text_of_its_own_keeps_it():
    found = config(seeds=[0, 1], ask="Say: {{ instruction }}")
    assert {"sft_seed0_after_5", "sft_seed1_after_5"} < found.asks.keys()
    assert "vanilla" not in found.asks


def test_the_table_of_the_steps_has_one_line_for_the_seeds_and_one_for_each():
    """Step 0: 4 and 2 of 4 harmless; after 5 steps: 2 and 0."""
    given = config(seeds=[0, 1])
    harmless = {"sft_seed0": 4, "sft_seed1": 2, "sft_seed0_after_5": 2, "sft_seed1_after_5": 0}
    table = ANSWERS.table([answer(arm, n, n >= of) for arm, of in harmless.items() for n in range(4)])
    arms = report._arms(given)
    [section] = report._durability(given, given.suites.safety, table, arms)
    merged, every = replicas.by_arm(section, arms).tables
    assert [[cell.text for cell in row] for _, rows in merged.groups for row in rows] == [
        ["sft (2 seeds)", "75.0", "25.0"]
    ]
    assert [[cell.text for cell in row] for _, rows in every.groups for row in rows] == [
        ["sft_seed0", "100.0", "50.0"],
        ["sft_seed1", "50.0", "0.0"],
    ]
    assert arms.arm("sft_seed1_after_5") == "sft_after_5"
