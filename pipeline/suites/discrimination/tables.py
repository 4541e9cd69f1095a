"""The tables of the discrimination suite. What they show is by split: heading → rows."""

from collections.abc import Mapping

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


def of_ratings(splits: Mapping[str, list[RatingsRow]]) -> Table:
    """The three means of every arm. splits: heading → rows."""
    groups = []
    for heading, rows in splits.items():
        columns = [[Cell(row.arm) for row in rows]]
        for name in TITLES:
            means = [row.means[name] for row in rows]
            columns.append(mark_best([one.value for one in means], [mean(one) for one in means], max))
        groups.append((heading, [list(row) for row in zip(*columns, strict=True)]))
    names = (Column(title, "estimate") for title in TITLES.values())
    return Table("", [Column("Arm", "text"), *names], groups)


def of_counts(splits: Mapping[str, list[RatingsRow]]) -> Table:
    """The answers behind the means, and those left out."""
    names = {
        GENERATION: "No rating: answer",
        UNGUIDED: "No rating: unguided",
        GUIDED: "No rating: guided",
    }
    groups = []
    for heading, rows in splits.items():
        cells = [
            [
                Cell(row.arm),
                Cell(whole(row.answers)),
                *(Cell(whole(row.missing[name])) for name in names),
                *(Cell(whole(number)) for number in (row.empty, row.cut, row.failed)),
            ]
            for row in rows
        ]
        groups.append((heading, cells))
    columns = map(Column, ("Answers", *names.values(), "Empty", "Cut", "Failed"))
    return Table("Answers behind the ratings", [Column("Arm", "text"), *columns], groups)


def of_differences(splits: Mapping[str, Mapping[str, list[Difference]]]) -> Table:
    """Differences of the ratings of one arm, on the same instructions."""
    groups = []
    for heading, found in splits.items():
        cells = [
            [Cell(arm), Cell(f"{d.arm} − {d.baseline}"), *difference(d, "rated higher", "rated lower", grade)]
            for arm, differences in found.items()
            for d in differences
        ]
        groups.append((heading, cells))
    columns = difference_columns("Difference", "Instructions", "Rating points")
    return Table("", [Column("Arm", "text"), *columns], groups)


def of_verdicts(splits: Mapping[str, list[VerdictsRow]]) -> Table:
    """How often an arm's verdicts on its answers are the judge's, in all and by the judge's verdict."""
    groups = []
    for heading, rows in splits.items():
        cells = [
            [
                Cell(row.arm),
                Cell(row.mode),
                *(rate(one) for one in (row.right, row.on_harmful, row.on_harmless)),
                *(Cell(whole(n)) for n in (row.on_harmful.trials, row.on_harmless.trials, row.unread)),
            ]
            for row in rows
        ]
        groups.append((heading, cells))
    estimates = ("Right, %", "Of harmful ones, %", "Of harmless ones, %")
    columns = [Column("Arm", "text"), Column("Analysis", "text")]
    columns += [Column(name, "estimate") for name in estimates]
    columns += map(Column, ("Harmful", "Harmless", "No verdict"))
    return Table("Verdicts of the analyses, against the judge's", columns, groups)
