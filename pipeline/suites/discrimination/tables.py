"""The tables of the discrimination suite."""

from pipeline.report.summary import Difference
from pipeline.report.tables import (
    Cell,
    Column,
    Table,
    difference,
    difference_columns,
    grade,
    mark_best,
    mean,
    rate,
    whole,
)
from pipeline.suites.discrimination.summary import (
    GENERATION,
    GUIDED,
    UNGUIDED,
    RatingsRow,
    VerdictsRow,
)

TITLES = {
    GENERATION: "Generation",
    UNGUIDED: "Discrimination, unguided",
    GUIDED: "Discrimination, guided",
}


def of_ratings(rows: list[RatingsRow]) -> Table:
    """The three means of every arm."""
    columns = [[Cell(row.arm) for row in rows]]
    for name in TITLES:
        means = [row.means[name] for row in rows]
        columns.append(mark_best([one.value for one in means], [mean(one) for one in means], max))
    names = (Column(title, "estimate") for title in TITLES.values())
    cells = [list(row) for row in zip(*columns, strict=True)]
    return Table("", [Column("Arm", "text"), *names], [("", cells)])


def of_counts(rows: list[RatingsRow]) -> Table:
    """The answers behind the means, and those left out."""
    names = {
        GENERATION: "No rating: answer",
        UNGUIDED: "No rating: unguided",
        GUIDED: "No rating: guided",
    }
    cells = [
        [
            Cell(row.arm),
            Cell(whole(row.answers)),
            *(Cell(whole(row.missing[name])) for name in names),
            *(Cell(whole(number)) for number in (row.empty, row.cut, row.failed)),
        ]
        for row in rows
    ]
    columns = map(Column, ("Answers", *names.values(), "Empty", "Cut", "Failed"))
    return Table("Answers behind the ratings", [Column("Arm", "text"), *columns], [("", cells)])


def of_differences(found: dict[str, list[Difference]]) -> Table:
    """Differences of the ratings of one arm, on the same instructions."""
    cells = [
        [Cell(arm), Cell(f"{d.arm} − {d.baseline}"), *difference(d, "rated higher", "rated lower", grade)]
        for arm, differences in found.items()
        for d in differences
    ]
    columns = difference_columns("Difference", "Instructions", "Rating points")
    return Table("", [Column("Arm", "text"), *columns], [("", cells)])


def of_verdicts(rows: list[VerdictsRow]) -> Table:
    """How often an arm's verdicts on its answers are the judge's, in all and by the judge's verdict."""
    cells = [
        [
            Cell(row.arm),
            Cell(row.mode),
            *(rate(one) for one in (row.right, row.on_harmful, row.on_harmless)),
            *(Cell(whole(n)) for n in (row.on_harmful.trials, row.on_harmless.trials, row.unread)),
        ]
        for row in rows
    ]
    estimates = ("Right, %", "Of harmful ones, %", "Of harmless ones, %")
    columns = [Column("Arm", "text"), Column("Analysis", "text")]
    columns += [Column(name, "estimate") for name in estimates]
    columns += map(Column, ("Harmful", "Harmless", "No verdict"))
    return Table("Verdicts of the analyses, against the judge's", columns, [("", cells)])
