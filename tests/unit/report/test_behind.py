"""Of how many numbers are, and who judged, stands beside tables and figures."""

from markupsafe import Markup

from pipeline.report.behind import behind
from pipeline.report.sections import Figure, Section
from pipeline.report.summary import Rate
from pipeline.report.tables import Cell, Column, Table, rate

ARMS = [Column("Arm", "text"), Column("Harmless, %", "estimate"), Column("Over-refusal, %", "estimate")]


def section(table, figures=()):
    return Section("Arms", figures=[*figures], tables=[table])


def table(*rows, columns=ARMS):
    return Table("", columns, [("", [[Cell(name), *cells] for name, *cells in rows])])


def test_one_n_for_all():
    [found] = behind(
        section(table(("sft", rate(Rate(1, 8)), rate(Rate(2, 8))))), ["harm by rating", "help by rating"]
    ).tables
    assert found.note == "n = 8. Judged: harm by rating; help by rating."


def test_an_n_for_each_column():
    rows = ("sft", rate(Rate(1, 105)), rate(Rate(2, 63))), ("dpo", rate(Rate(1, 104)), rate(Rate(2, 63)))
    [found] = behind(section(table(*rows))).tables
    assert found.note == "n: 104 to 105 (Harmless); 63 (Over-refusal)."


def test_rows_that_count_differently_get_a_column():
    rows = [
        (name, rate(Rate(1, n)), rate(Rate(0, n))) for name, n in (("theft", 5), ("fraud", 8), ("spam", 1200))
    ]
    [found] = behind(section(table(*rows)), ["harm by rating", "help by rating"]).tables
    assert found.columns[-1] == Column("n") and found.note == "Judged: harm by rating; help by rating."
    assert [row[-1].text for row in found.groups[0][1]] == ["5", "8", "1\u202f200"]


def test_a_table_that_counts_itself_is_not_counted_again():
    columns = [Column("Judge", "text"), Column("Judged"), Column("Rate, %", "estimate")]
    rows = [(f"j{n}", Cell(str(n)), rate(Rate(1, n))) for n in (5, 8, 9)]
    [found] = behind(section(table(*rows, columns=columns)), ["harm by rating", "help by rating"]).tables
    assert found.columns == columns and found.note == "Judged: harm by rating; help by rating."


def test_what_measures_nothing_stays_as_it_is():
    plain = Section(
        "Time",
        tables=[Table("", [Column("Stage", "text"), Column("Rows")], [("", [[Cell("mix"), Cell("5")]])])],
    )
    assert behind(plain, ["harm by rating", "help by rating"]) == plain
    nothing = section(table(("sft", rate(Rate(0, 0)), rate(Rate(0, 0)))))
    assert behind(nothing, ["harm by rating", "help by rating"]) == nothing


def test_a_figure_says_it_in_its_caption():
    shown = section(
        table(("sft", rate(Rate(1, 8)), rate(Rate(2, 9)))), [Figure(Markup("<svg></svg>"), "Rates.")]
    )
    [figure] = behind(shown, ["harm by rating", "help by rating"]).figures
    assert figure.caption == "Rates. n = 8 per point. Judged: harm by rating."
