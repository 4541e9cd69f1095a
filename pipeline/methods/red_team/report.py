"""The report on red-team requests: what became of every topic, and how much the requests differ."""

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.methods.base import DataReport
from pipeline.methods.red_team.schema import KEPT, RED_TEAM, REQUESTS
from pipeline.report.examples import Example, Text, among, category, first, shown
from pipeline.report.numbers import Rows, batches
from pipeline.report.summary import reasons
from pipeline.report.tables import NOTHING, Cell, Column, Table, thousandths, whole
from pipeline.schema import DROPPED, FAILED, OK

if TYPE_CHECKING:
    from pipeline.methods.red_team import RedTeam

_SHOWN_QUERIES = 8


def data(method: "RedTeam", numbers: Mapping[str, Rows | None]) -> DataReport:
    found, hazards = DataReport(), numbers[RED_TEAM.name]
    if hazards is None:
        found.text.append("This run holds no red-team requests yet: `setbacks generate` writes them.")
        return found
    rows = [row for batch in batches(hazards, hazards.column_names) for row in batch.to_pylist()]
    kept = sum(_outcomes(row)[KEPT] for row in rows)
    found.text.append(
        f"{whole(kept)} queries were kept. A topic that the model refused was asked for once more in another"
        " genre. Near duplicate: Jaccard index of word trigrams at least 0.7 with an earlier query of the"
        " hazard that was kept."
    )
    found.text += [sentence for sentence in _counted(rows) if sentence]
    found.tables += [_of_topics(rows), _of_diversity(rows)]
    requests = numbers.get(REQUESTS.name)
    if requests is None:
        found.text.append("`setbacks mix` writes them as a data set of instructions.")
    else:
        found.text.append(
            f"{whole(len(requests))} requests are in `{REQUESTS.name}`, a source of instructions for another"
            " run. Nothing is trained on them here, and no answer to them was generated."
        )
    found.failures = reasons(hazards, DROPPED, FAILED)
    return found


def _outcomes(row: dict, leaf: str | None = None) -> Counter[str]:
    """Queries of a hazard, or of one of its topics, by outcome."""
    counted: Counter[str] = Counter()
    for one in row["outcomes"] or ():
        if leaf in (None, one["leaf"]):
            counted[one["outcome"]] += one["queries"]
    return counted


def _counted(rows: list[dict]) -> list[str]:
    sums = {
        name: sum(row[name] or 0 for row in rows)
        for name in ("expansions_refused", "topics_dropped", "lines_left", "other_language")
    }
    told = {
        "expansions_refused": "{} times the model refused to name topics.",
        "topics_dropped": "{} topics that it named were like a known one, too long, or more than wanted.",
        "lines_left": "{} lines beside list items were not read.",
        "other_language": "{} kept queries are in another language than the taxonomy.",
    }
    return [told[name].format(whole(count)) for name, count in sums.items() if count]


def _of_topics(rows: list[dict]) -> Table:
    groups = []
    for row in rows:
        cells = []
        for leaf in row["leaves"] or ():
            counted = _outcomes(row, leaf["leaf"])
            dropped = [f"{n} {why}" for why, n in sorted(counted.items()) if why != KEPT]
            numbers = (leaf["texts"], leaf["refused"], leaf["lost"], counted.total(), counted[KEPT])
            name = leaf["leaf"] + (" (added)" if leaf["expanded"] else "")
            cells.append([Cell(name), *map(Cell, map(whole, numbers)), Cell(", ".join(dropped) or NOTHING)])
        groups.append((row["category"], cells))
    names = ("Texts", "Refused", "Texts lost", "Queries", "Kept")
    columns = [Column("Topic", "text"), *map(Column, names), Column("Dropped", "text")]
    return Table("Topics", columns, groups)


def _of_diversity(rows: list[dict]) -> Table:
    cells = [
        [
            Cell(row["category"]),
            Cell(whole(_outcomes(row)[KEPT])),
            *(thousandths(row[name]) for name in ("distinct_1", "distinct_2", "mean_jaccard")),
        ]
        for row in rows
    ]
    names = ("Kept", "Distinct-1", "Distinct-2", "Mean Jaccard")
    return Table(
        "Diversity of the kept queries", [Column("Hazard", "text"), *map(Column, names)], [("", cells)]
    )


def examples(dataset: Dataset, count: int) -> list[Example]:
    """Up to `count` hazards, each with its first queries."""
    ids = first(dataset, "id", pc.field("status") == OK, count)
    rows = dataset.table(where=among("id", ids)).sort_by("id").to_pylist()
    return [
        Example(
            f"{category(row)}: {_outcomes(row)[KEPT]} of {len(row['queries'])} queries kept",
            [
                Text(f"Query, {query['genre']}", query["outcome"], shown(query["text"]))
                for query in row["queries"][:_SHOWN_QUERIES]
            ],
        )
        for row in rows
    ]
