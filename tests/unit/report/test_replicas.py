"""Arms that are trained with several seeds: mean and range in the report's tables, and every seed."""

from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.report import plots, replicas
from pipeline.report.arms import Arms, Spread, percent, shares
from pipeline.report.examples import one_of_each
from pipeline.report.sections import Section, palette
from pipeline.report.summary import Difference, Rate
from pipeline.report.tables import Cell, Column, Table, difference, difference_columns, mark_best, rate, whole

ARMS = Arms(["dpo_seed0", "dpo_seed1", "sft"], {"dpo_seed0": "dpo", "dpo_seed1": "dpo"})


def texts(rows) -> list[list[str]]:
    return [[f"{cell.text} {cell.interval}".strip() for cell in row] for row in rows]


def arms_in_rows(**rates: int) -> Table:
    """Successes of a thousand, by arm."""
    found = [Rate(n, 1000) for n in rates.values()]
    cells = mark_best([one.value for one in found], list(map(rate, found)), max)
    rows = [[Cell(arm), cell, Cell(whole(1000))] for arm, cell in zip(rates, cells, strict=True)]
    return Table(
        "", [Column("Arm", "text"), Column("Harmless, %", "estimate"), Column("Answers")], [("", rows)]
    )


def test_mean_and_range_of_two_seeds():
    """The figures of the trial: 24.3 and 13.2 of the same arm."""
    spread = Spread([24.3, 13.2])
    assert spread.mean == pytest.approx(18.75) and spread.range == pytest.approx(11.1)
    assert spread.told("{:.1f}".format) == "range 11.1: 13.2 to 24.3"
    assert Spread([24.3]).told("{:.1f}".format) == ""


def test_an_arms_seeds_are_one_row_and_every_seed_stands_below():
    section = Section("Arms", tables=[arms_in_rows(vanilla=85, dpo_seed0=243, dpo_seed1=132, sft=200)])
    made = replicas.by_arm(section, ARMS)
    by_arm, every = made.tables
    assert texts(by_arm.groups[0][1]) == [
        ["vanilla", "8.5 [6.9, 10.4]", "1\u202f000"],
        ["dpo (2 seeds)", "18.8 range 11.1: 13.2 to 24.3", "1\u202f000"],
        ["sft", "20.0 [17.6, 22.6]", "1\u202f000"],
    ]
    assert every.title == "Every seed" and every.folded and not by_arm.folded
    assert [row[0].text for row in every.groups[0][1]] == ["dpo_seed0", "dpo_seed1"]
    assert every.groups[0][1][0][1].interval == "[21.7, 27.1]"
    assert made.notes == [replicas.NOTE]


def test_the_best_is_the_best_mean_and_not_the_luckiest_seed():
    table = arms_in_rows(vanilla=85, dpo_seed0=243, dpo_seed1=132, sft=200)
    assert table.groups[0][1][1][1].best, "of all adapters, dpo_seed0 is the best"
    by_arm, every = replicas.by_arm(Section("", tables=[table]), ARMS).tables
    assert [row[1].best for row in by_arm.groups[0][1]] == [False, False, True]
    assert not any(cell.best for row in every.groups[0][1] for cell in row)


def test_rows_about_different_things_of_an_arm_stay_apart():
    rows = [
        [Cell(arm), Cell(mode), rate(Rate(n, 1000))]
        for arm, mode, n in [
            ("dpo_seed0", "own", 100), ("dpo_seed0", "strong", 500), ("dpo_seed1", "own", 300), ("sft", "own", 9),
        ]
    ]  # fmt: skip
    columns = [Column("Arm", "text"), Column("Mode", "text"), Column("%", "estimate")]
    by_arm, _ = replicas.by_arm(Section("", tables=[Table("", columns, [("", rows)])]), ARMS).tables
    assert [row[:3] for row in texts(by_arm.groups[0][1])][:2] == [
        ["dpo (2 seeds)", "own", "20.0 range 20.0: 10.0 to 30.0"],
        ["dpo (1 seed)", "strong", "50.0 one seed"],
    ]


def test_arms_in_columns_are_put_together_too():
    rates = {"vanilla": 85, "dpo_seed0": 243, "dpo_seed1": 132, "sft": 100}
    cells = [rate(Rate(n, 1000)) for n in rates.values()]
    row = [Cell("Corr@10"), *mark_best([cell.value for cell in cells], cells, max)]
    table = Table("T", [Column("", "text"), *(Column(f"{a}, %", "estimate") for a in rates)], [("", [row])])
    by_arm, every = replicas.by_arm(Section("", tables=[table]), ARMS).tables
    assert [column.name for column in by_arm.columns] == ["", "vanilla, %", "dpo (2 seeds), %", "sft, %"]
    [made] = by_arm.groups[0][1]
    assert [cell.text for cell in made] == ["Corr@10", "8.5", "18.8", "10.0"]
    assert [cell.best for cell in made] == [False, False, True, False]
    assert [column.name for column in every.columns] == ["", "dpo_seed0, %", "dpo_seed1, %"]
    assert every.title == "T: every seed"


def test_a_difference_is_one_row_and_says_in_how_many_seeds_it_is_told_apart():
    found = [
        Difference("dpo_seed0", "vanilla", 0.158, (0.1, 0.2), 24, 20, 2, 2),
        Difference("dpo_seed1", "vanilla", 0.047, (-0.01, 0.1), 24, 9, 5, 10),
        Difference("sft", "vanilla", 0.1, (0.05, 0.2), 24, 20, 2, 2),
    ]
    rows = [[Cell(f"{d.arm} − {d.baseline}"), *difference(d, "more", "less")] for d in found]
    table = Table("", difference_columns("Difference", "Entries"), [("", rows)])
    by_arm, every = replicas.by_arm(Section("", tables=[table]), ARMS).tables
    first, second = by_arm.groups[0][1]
    assert texts([first])[0] == [
        "dpo − vanilla (2 seeds)", "+10.2 range 11.1: +4.7 to +15.8", "24", "20, 9", "2, 5", "2, 10",
        "more (1 of 2), cannot be told apart (1 of 2)",
    ]  # fmt: skip
    assert not first[1].best and second[1].best and every.groups[0][1][0][1].best


def test_two_arms_of_the_same_seeds_are_compared_seed_by_seed():
    arms = Arms(["a_seed0", "a_seed1", "sft_seed0", "sft_seed1"],
                {"a_seed0": "a", "a_seed1": "a", "sft_seed0": "sft", "sft_seed1": "sft"})  # fmt: skip
    assert arms.baselines("a_seed1", "sft") == ["sft_seed1"]
    assert Arms(["a_seed1", "sft"], {"a_seed1": "a"}).baselines("a_seed1", "sft") == ["sft"]
    assert arms.baselines("b", "sft") == ["sft_seed0", "sft_seed1"]
    assert Arms.of(["a", "b"]).baselines("a", "sft") == []
    assert arms.labeled("a_seed1 − sft_seed1, Corr@10") == "a − sft, Corr@10"
    assert arms.labeled("a_seed10 − sft_seed1x") == "a_seed10 − sft_seed1x", "whole names only"


def test_a_seed_that_is_not_measured_yet_is_counted():
    table = Table("", [Column("Arm", "text"), Column("%", "estimate")], [("", [
        [Cell("dpo_seed0"), rate(Rate(243, 1000))], [Cell("dpo_seed1"), rate(Rate(0, 0))],
    ])])  # fmt: skip
    by_arm, _ = replicas.by_arm(Section("", tables=[table]), ARMS).tables
    assert texts(by_arm.groups[0][1]) == [["dpo (2 seeds)", "24.3 one seed"]]


def test_one_seed_changes_nothing():
    section = Section("Arms", tables=[arms_in_rows(vanilla=85, dpo=243)], notes=["a"])
    for arms in (["dpo"], Arms(["dpo"])):
        assert replicas.by_arm(section, arms) is section
    assert shares(["dpo"], {"vanilla": 0.085, "dpo": 0.243}) == "vanilla 8.5\u00a0%, dpo 24.3\u00a0%"


def test_a_table_that_measures_nothing_keeps_a_row_for_every_seed():
    table = Table(
        "Behind it", [Column("Arm", "text"), Column("Failed")], [("", [[Cell("dpo_seed0"), Cell("3")]])]
    )
    made = replicas.by_arm(Section("", tables=[table]), ARMS)
    assert made.tables == [replace(table, folded=True)] and made.notes == []


def test_examples_show_one_seed_of_each_arm_and_no_stage():
    arms = Arms(
        ["dpo_seed0_stage1", "dpo_seed0", "dpo_seed1_stage1", "dpo_seed1", "sft"],
        {
            "dpo_seed0": "dpo",
            "dpo_seed1": "dpo",
            "dpo_seed0_stage1": "dpo_stage1",
            "dpo_seed1_stage1": "dpo_stage1",
        },
        {"dpo_seed0_stage1": "dpo", "dpo_seed1_stage1": "dpo"},
    )
    table = pa.table({"arm": ["vanilla", None, *arms, "older"]})
    assert table.filter(one_of_each(arms))["arm"].to_pylist() == [
        "vanilla",
        None,
        "dpo_seed0",
        "sft",
        "older",
    ]
    assert table.filter(one_of_each(["sft"])) == table


def test_a_sentence_names_mean_and_range():
    values = {"vanilla": 0.085, "dpo_seed0": 0.243, "dpo_seed1": 0.132, "sft": None}
    told = shares(ARMS, values)
    assert told == "vanilla 8.5\u00a0%, dpo 18.8\u00a0% (mean of 2 seeds, range 11.1)"
    assert percent(0.1875) == "18.8"


def test_the_seeds_of_an_arm_share_color_and_legend():
    arms = palette(ARMS, ["vanilla", "dpo_seed0", "dpo_seed1"])
    looks = {arm: plots._look(arm, arms) for arm in arms}
    assert looks["dpo_seed0"] == looks["dpo_seed1"] != looks["sft"] != looks["vanilla"]
    assert plots._look("sft", ["vanilla", "dpo", "sft"]) == looks["sft"]
    assert [handle.get_label() for handle in plots._legend(arms, arms)] == ["vanilla", "dpo", "sft"]
