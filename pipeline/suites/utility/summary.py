"""The numbers of the utility suite: each arm's score on every task, and paired differences from vanilla.

A task's number is the mean over its documents, so that the subtasks of a group weigh by their size, as the
harness weighs them. Documents are paired by their hash, because their numbers may differ.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.report.summary import RESAMPLES, Z95, Difference, Rate, arm_order, paired, wilson

# (subtask, hash of the document) → the mean of its values; a document can stand in a task twice.
Values = dict[tuple[str, str], float]


@dataclass(frozen=True)
class Score:
    """One arm's number on one task by one metric.

    value:    the mean over the documents; of a metric that has no number per document, the harness's own
    stderr:   s / √n of the documents, which is also the harness's for means; None if not known
    shares:   all values are within [0, 1], as those of accuracies are
    hits:     documents with the value 1, if every document has 0 or 1; None otherwise
    """

    task: str
    arm: str
    metric: str
    primary: bool
    value: float | None
    stderr: float | None
    documents: int
    shares: bool
    hits: int | None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %: Wilson's if every document is right or wrong, else normal; of shares within [0, 1]."""
        if self.hits is not None:
            return wilson(self.hits, self.documents)
        if self.value is None or self.stderr is None:
            return None
        low, high = self.value - Z95 * self.stderr, self.value + Z95 * self.stderr
        return (max(0.0, low), min(1.0, high)) if self.shares else (low, high)


@dataclass(frozen=True)
class Counts:
    """What is behind one arm's primary number on a task."""

    task: str
    arm: str
    documents: int
    refused: Rate | None  # of documents for which the arm wrote something; None if it wrote nothing
    cut: int


@dataclass(frozen=True)
class Compared:
    """An arm and vanilla on the same documents of a task.

    unmatched: documents of the arm, and of vanilla, that the other does not have
    """

    task: str
    difference: Difference | None
    higher_is_better: bool
    shares: bool
    unmatched: tuple[int, int]


def scores(table: pa.Table, arms: Sequence[str]) -> list[Score]:
    """Every task, metric and arm, in the order of the rows; arms: vanilla, then those given, then others."""
    groups: dict[tuple, list[dict]] = defaultdict(list)
    columns = ["task", "metric", "filter", "primary", "arm", "subtask", "value", "score", "score_stderr"]
    for row in table.select(columns).to_pylist():
        groups[row["task"], row["metric"], row["filter"], row["arm"]].append(row)
    order = arm_order(arms)
    ranks = {key: place for place, key in enumerate(dict.fromkeys(key[:3] for key in groups))}
    found = [_score(key, rows) for key, rows in groups.items()]
    keys = [(ranks[key[:3]], order(key[3])) for key in groups]
    return [score for _, score in sorted(zip(keys, found, strict=True), key=lambda pair: pair[0])]


def _score(key: tuple, rows: list[dict]) -> Score:
    task, metric, name, arm = key
    values = [row["value"] for row in rows if row["value"] is not None]
    whole = {row["subtask"]: (row["score"], row["score_stderr"]) for row in rows}
    value = math.fsum(values) / len(values) if len(values) == len(rows) else None
    stderr = None
    if value is not None and len(values) > 1:
        spread = math.fsum((one - value) ** 2 for one in values) / (len(values) - 1)
        stderr = math.sqrt(spread / len(values))
    if value is None and len(whole) == 1:  # such as BLEU, or a perplexity
        [(value, stderr)] = whole.values()
    shares = len(values) == len(rows) and all(0 <= one <= 1 for one in values)
    hits = sum(map(int, values)) if shares and set(values) <= {0.0, 1.0} else None
    told = metric if name == "none" else f"{metric}, {name}"
    return Score(task, arm, told, bool(rows[0]["primary"]), value, stderr, len(rows), shares, hits)


def counts(table: pa.Table, arms: Sequence[str]) -> list[Counts]:
    """What is behind every task's primary numbers."""
    groups: dict[tuple[str, str], list[dict]] = defaultdict(list)
    for row in table.select(["task", "arm", "primary", "refused", "cut"]).to_pylist():
        if row["primary"]:
            groups[row["task"], row["arm"]].append(row)
    order, tasks = arm_order(arms), list(dict.fromkeys(task for task, _ in groups))
    found = []
    for task, arm in sorted(groups, key=lambda key: (tasks.index(key[0]), order(key[1]))):
        rows = groups[task, arm]
        wrote = [row["refused"] for row in rows if row["refused"] is not None]
        refused = Rate.of(wrote) if wrote else None
        found.append(Counts(task, arm, len(rows), refused, sum(bool(row["cut"]) for row in rows)))
    return found


def compared(
    table: pa.Table,
    task: str,
    arm: str,
    baseline: str,
    *,
    column: str = "value",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Compared | None:
    """The task's primary numbers of an arm minus those of `baseline`, over the documents that both have.

    column: `value`, or `refused` for the share of refusals. None if an arm has no number.
    """
    rows = [row for row in table.to_pylist() if row["primary"] and row["task"] == task]
    ours, theirs = (_values(rows, name, column) for name in (arm, baseline))
    if not ours or not theirs:
        return None
    directions = {row["higher_is_better"] for row in rows}
    found = paired(
        arm,
        baseline,
        {"\n".join(key): value for key, value in ours.items()},
        {"\n".join(key): value for key, value in theirs.items()},
        seed=seed,
        resamples=resamples,
    )
    return Compared(
        task,
        found,
        higher_is_better=directions != {False},
        shares=all(0 <= value <= 1 for value in [*ours.values(), *theirs.values()]),
        unmatched=(len(ours.keys() - theirs.keys()), len(theirs.keys() - ours.keys())),
    )


def _values(rows: list[dict], arm: str, column: str) -> Values:
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["arm"] == arm and row[column] is not None:
            found[row["subtask"], row["doc_hash"]].append(float(row[column]))
    return {key: math.fsum(values) / len(values) for key, values in found.items()}
