"""Numbers of a report as data: read off the sections' tables, whoever made them."""

import pytest

from pipeline.report import results, tables
from pipeline.report.sections import Section
from pipeline.report.summary import Difference, Mean, Rate
from pipeline.report.tables import Cell, Column, Table

ARMS = ["vanilla", "sft"]


def by_arm(*rows: list[Cell], title: str = "") -> Table:
    columns = [Column("Arm", "text"), Column("Calm, %", "estimate"), Column("Answers")]
    return Table(title, columns, [("Plain: as it is", list(rows))])


def figures(*shown: Table, title: str = "A suite of tomorrow") -> list[results.Figure]:
    return results.figures("tomorrow", [Section(title, tables=list(shown))], ARMS, ["tomorrow: calm"])


def test_a_rate_of_an_unknown_suite_is_there_with_interval_count_and_judge():
    found = figures(by_arm([Cell("sft"), tables.rate(Rate(3, 8)), Cell(tables.whole(8))]))
    low, high = Rate(3, 8).interval
    assert found[0].model_dump() == {
        "name": "calm",
        "suite": "tomorrow",
        "group": "Plain: as it is",
        "arm": "sft",
        "value": 0.375,
        "low": low,
        "high": high,
        "n": 8,
        "unit": "share",
        "judges": ["tomorrow: calm"],
        "section": "A suite of tomorrow",
        "table": "",
        "row": {"Arm": "sft"},
        "column": "Calm, %",
        "text": "37.5",
    }


def test_a_count_that_only_has_a_text_is_read_exactly():
    found = figures(by_arm([Cell("sft"), Cell("–"), Cell(tables.whole(1_234_567))]))
    assert [(one.name, one.value, one.unit) for one in found] == [("answers", 1_234_567, "count")]


@pytest.mark.parametrize("text", ["–", "", "3 min 5 s", "1.5", "−3", "unmeasured", "4–8"])
def test_a_text_that_is_no_count_is_no_number(text):
    assert Cell(text).figure is None


def test_a_rate_of_nothing_is_null_and_not_zero():
    (found,) = figures(by_arm([Cell("sft"), tables.rate(Rate(0, 0)), Cell("–")]))
    assert (found.value, found.low, found.high, found.n) == (None, None, None, 0)


def test_marking_the_best_cell_keeps_its_number():
    cells = tables.mark_best([0.2, 0.4], [tables.rate(Rate(1, 5)), tables.rate(Rate(2, 5))], max)
    assert [cell.best for cell in cells] == [False, True]
    assert [cell.number.value for cell in cells] == [0.2, 0.4]


def test_columns_that_are_arms_are_told_apart_from_measures():
    columns = [Column("Attack", "text"), *(Column(f"{arm}, %", "estimate") for arm in ARMS)]
    rows = [[Cell("base64"), tables.rate(Rate(1, 4)), tables.rate(Rate(0, 4))]]
    found = figures(Table("", columns, [("", rows)], measure="Attack success"))
    assert [(one.name, one.arm, one.value) for one in found] == [
        ("attack_success", "vanilla", 0.25),
        ("attack_success", "sft", 0.0),
    ]
    assert "base64" in found[0].labels


def test_a_row_without_another_heading_names_the_measure():
    columns = [Column("", "text"), *(Column(f"{arm}, %", "estimate") for arm in ARMS)]
    rows = [[Cell("Corr_mean"), tables.rate(Rate(1, 4)), tables.rate(Rate(0, 4))]]
    assert {one.name for one in figures(Table("", columns, [("", rows)]))} == {"corr_mean"}


def test_a_difference_is_about_its_first_arm():
    d = Difference("sft", "vanilla", 0.25, (0.1, 0.4), 20, 8, 3, 9)
    row = [Cell("sft − vanilla"), *tables.difference(d, "more", "less")]
    found = figures(Table("", tables.difference_columns("Difference", "Prompts"), [("", [row])]))
    assert [(one.name, one.arm, one.value, one.unit) for one in found][:2] == [
        ("difference", "sft", 0.25, "share_difference"),
        ("prompts", "sft", 20, "count"),
    ]
    assert (found[0].low, found[0].high, found[0].n) == (0.1, 0.4, 20)


def test_a_mean_is_not_rounded():
    (found,) = figures(
        Table(
            "",
            [Column("Arm", "text"), Column("Help", "estimate")],
            [("", [[Cell("sft"), tables.mean(Mean(4.4567, (4.1, 4.8), 9))]])],
        )
    )
    assert (found.value, found.low, found.n, found.text) == (4.4567, 4.1, 9, "4.46")


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Over-refusal, %", "over_refusal"),
        ("Harmless 1–10", "harmless_1_10"),
        ("κ", "κ"),
        ("Safe: full compliance, %", "safe_full_compliance"),
    ],
)
def test_titles_become_names(title, name):
    assert results.slug(title) == name
