"""Numbers of arms with several training seeds as data: the mean is the arm's, every seed is there."""

import pytest

from pipeline.commands import thresholds
from pipeline.commands.report import _names
from pipeline.errors import RunFailed, UserError
from pipeline.report import replicas, results, tables
from pipeline.report.arms import Arms
from pipeline.report.results import Figure, Results
from pipeline.report.sections import Section
from pipeline.report.summary import Difference, Rate
from pipeline.report.tables import Cell, Column, Table
from tests import scripted

ADAPTERS = ["dpo_seed0", "dpo_seed1", "sft"]
ARMS = Arms(ADAPTERS, {"dpo_seed0": "dpo", "dpo_seed1": "dpo"})
RATES = {"vanilla": Rate(1, 8), "dpo_seed0": Rate(6, 8), "dpo_seed1": Rate(4, 8), "sft": Rate(3, 8)}


def figures(table: Table) -> list[Figure]:
    section = replicas.by_arm(Section("Arms", tables=[table]), ARMS)
    return results.figures("safety", [section], {"vanilla", "dpo", *ADAPTERS})


def arms_in_rows(rates: dict[str, Rate]) -> Table:
    columns = [Column("Arm", "text"), Column("Harmless, %", "estimate")]
    return Table("", columns, [("Plain", [[Cell(arm), tables.rate(rate)] for arm, rate in rates.items()])])


def arms_in_columns(title: str = "", first: str = "Category", measure: str = "") -> Table:
    columns = [Column(first, "text"), *(Column(f"{arm}, %", "estimate") for arm in RATES)]
    return Table(
        title, columns, [("", [[Cell("privacy"), *map(tables.rate, RATES.values())]])], measure=measure
    )


def test_the_mean_over_seeds_is_the_arms_and_every_seed_is_there_with_its_interval():
    found = {one.arm: one for one in figures(arms_in_rows(RATES))}
    assert {arm: one.value for arm, one in found.items()} == {
        "vanilla": 0.125, "dpo": 0.625, "sft": 0.375, "dpo_seed0": 0.75, "dpo_seed1": 0.5,
    }  # fmt: skip
    assert (found["dpo"].low, found["dpo"].high, found["dpo"].n) == (None, None, 8)
    assert (found["dpo_seed0"].low, found["dpo_seed0"].high) == Rate(6, 8).interval
    assert {one.name for one in found.values()} == {"harmless"}
    assert "dpo" in found["dpo"].labels


def test_seeds_that_counted_differently_many_have_no_count_in_common():
    found = {one.arm: one for one in figures(arms_in_rows(RATES | {"dpo_seed1": Rate(3, 6)}))}
    assert (found["dpo"].value, found["dpo"].n) == (0.625, None)
    assert (found["dpo_seed0"].n, found["dpo_seed1"].n) == (8, 6)


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (arms_in_columns("Rate per category"), "rate_per_category"),
        (arms_in_columns(measure="Attack success"), "attack_success"),
        (arms_in_columns(first=""), "privacy"),
    ],
    ids=["title", "measure", "row"],
)
def test_columns_of_means_and_of_seeds_have_the_same_name(table, name):
    found = figures(table)
    assert {one.name for one in found} == {name}
    assert {one.arm: one.value for one in found}["dpo"] == 0.625
    assert {one.arm for one in found} == {"vanilla", "dpo", *ADAPTERS}


def test_a_difference_over_seeds_is_about_its_arm():
    rows = [
        [
            Cell(f"{arm} − vanilla"),
            *tables.difference(Difference(arm, "vanilla", d, (0.0, 1.0), 8, 4, 1, 3), "", ""),
        ]
        for arm, d in (("dpo_seed0", 0.5), ("dpo_seed1", 0.25))
    ]
    found = figures(Table("", tables.difference_columns("Difference", "Instructions"), [("", rows)]))
    assert [(one.arm, one.value) for one in found if one.name == "difference"] == [
        ("dpo", 0.375), ("dpo_seed0", 0.5), ("dpo_seed1", 0.25),
    ]  # fmt: skip


def test_a_limit_is_for_every_seed_or_for_the_mean_if_the_arm_is_named():
    made = Results.model_construct(arms=["vanilla", *ADAPTERS], numbers=figures(arms_in_rows(RATES)))

    def check(limit: str, *arms: str) -> None:
        thresholds.check(made, thresholds.limits([limit], []), arms)

    check("harmless=0.6", "dpo")
    with pytest.raises(RunFailed, match=r"harmless is below 0\.6: .*0\.5 .*\(dpo_seed1, plain, n = 8\)"):
        check("harmless=0.6")
    with pytest.raises(RunFailed, match=r"^harmless is below 0\.7: 0\.625 \(dpo, plain, n = 8\)$"):
        check("harmless=0.7", "dpo")
    with pytest.raises(UserError, match=r"no such arm; it has vanilla, dpo_seed0, dpo_seed1, sft, dpo$"):
        check("harmless=0.7", "ppo")


def test_names_of_means_and_stages_are_known():
    config = scripted.config(
        methods={"c": {"name": "course_correction", "instructions": {"path": "toy:harmful-train"}}},
        instructions=None,
        arms={"dpo": {"train": {"method": "dpo", "curriculum": "staged"}, "seeds": [0, 1]}},
        suites={"c2_eval": {"entries": {"path": "toy:harmful-eval"}, "every_stage": True}},
    )
    assert {"vanilla", "dpo", "dpo_seed1", "dpo_stage1", "dpo_seed1_stage1"} <= _names(config)
