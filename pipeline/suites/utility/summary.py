"""The numbers of the utility suite: each arm's score on every task, and paired differences from vanilla.

A task's number is the mean over its documents, so that the subtasks of a group weigh by their size, as the
harness weighs them. Documents are paired by their hash, because their numbers may differ.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.numbers import NO_MEANS, Rows, batches, counted, having, means, places_of
from pipeline.report.summary import RESAMPLES, Z95, Difference, Rate, arm_order, paired, wilson

_GROUP = ("task", "metric", "filter", "arm")


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
    """An arm and a baseline on the same documents of a task.

    unmatched: documents of the arm, and of the baseline, that the other does not have
    """

    task: str
    arm: str
    difference: Difference | None
    higher_is_better: bool
    shares: bool
    unmatched: tuple[int, int]


def scores(rows: Rows, arms: Sequence[str]) -> list[Score]:
    """Every task, metric and arm, in the order of the rows; arms: vanilla, then those given, then others.
    8 bytes a row."""
    groups: dict[tuple, list[tuple[dict, int]]] = defaultdict(list)
    for row, n in counted(rows, [*_GROUP, "primary", "subtask", "score", "score_stderr"]):
        groups[tuple(row[name] for name in _GROUP)].append((row, n))
    values = _values(rows)
    order = arm_order(arms)
    ranks = {key: place for place, key in enumerate(dict.fromkeys(key[:3] for key in groups))}
    in_order = sorted(groups, key=lambda key: (ranks[key[:3]], order(key[3])))
    return [_score(key, groups[key], values[key]) for key in in_order]


def _values(rows: Rows) -> dict[tuple, np.ndarray]:
    """The values of the documents that have one, by task, metric, filter and arm."""
    found: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for batch in batches(rows, [*_GROUP, "value"]):
        values = batch["value"]
        known, there = values.fill_null(0.0).to_numpy(), values.is_valid().to_numpy()
        for key, places in places_of(batch.select(list(_GROUP))):
            found[key].append(known[places[there[places]]])
    return {key: np.concatenate(parts) for key, parts in found.items()}


def _score(key: tuple, rows: list[tuple[dict, int]], values: np.ndarray) -> Score:
    """rows: the group's different rows without values, and how many there are of each."""
    task, metric, name, arm = key
    documents = sum(n for _, n in rows)
    whole = {row["subtask"]: (row["score"], row["score_stderr"]) for row, _ in rows}
    value = math.fsum(values) / len(values) if len(values) == documents else None
    stderr = None
    if value is not None and len(values) > 1:
        spread = math.fsum((values - value) ** 2) / (len(values) - 1)
        stderr = math.sqrt(spread / len(values))
    if value is None and len(whole) == 1:  # such as BLEU, or a perplexity
        [(value, stderr)] = whole.values()
    shares = len(values) == documents and _are_shares(values)
    hits = int(values.sum()) if shares and bool(np.isin(values, (0.0, 1.0)).all()) else None
    told = metric if name == "none" else f"{metric}, {name}"
    return Score(task, arm, told, bool(rows[0][0]["primary"]), value, stderr, documents, shares, hits)


def _are_shares(values: np.ndarray) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


def counts(rows: Rows, arms: Sequence[str]) -> list[Counts]:
    """What is behind every task's primary numbers."""
    groups: dict[tuple[str, str], list[tuple[dict, int]]] = defaultdict(list)
    for row, n in counted(having(rows, primary=True), ["task", "arm", "refused", "cut"]):
        groups[row["task"], row["arm"]].append((row, n))
    order, tasks = arm_order(arms), list(dict.fromkeys(task for task, _ in groups))
    found = []
    for task, arm in sorted(groups, key=lambda key: (tasks.index(key[0]), order(key[1]))):
        of = groups[task, arm]
        wrote = [(row["refused"], n) for row, n in of if row["refused"] is not None]
        refused = Rate.counted(wrote) if wrote else None
        found.append(Counts(task, arm, sum(n for _, n in of), refused, sum(n for row, n in of if row["cut"])))
    return found


def compared(
    rows: Rows,
    arms: Sequence[str],
    baseline: str,
    *,
    column: str = "value",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> list[Compared]:
    """The primary numbers of arms minus those of `baseline`, task by task, over the documents that both have.
    24 bytes a row.

    column: `value`, or `refused` for the share of refusals. Without an arm's number on a task, there is no
    comparison.
    """
    directions: dict[str, set[bool | None]] = defaultdict(set)
    for row, _ in counted(having(rows, primary=True), ["task", "higher_is_better"]):
        directions[row["task"]].add(row["higher_is_better"])
    document = ("subtask", "doc_hash")
    known = means(rows, ["task", "arm"], column, float, of=document, only={"primary": True})
    found = []
    for task, arm in ((task, arm) for task in directions for arm in arms):
        ours, theirs = (known.get((task, name), NO_MEANS) for name in (arm, baseline))
        if not len(ours) or not len(theirs):
            continue
        difference = paired(arm, baseline, ours, theirs, seed=seed, resamples=resamples)
        both = difference.n if difference else 0
        found.append(
            Compared(
                task,
                arm,
                difference,
                higher_is_better=directions[task] != {False},
                shares=_are_shares(ours.values) and _are_shares(theirs.values),
                unmatched=(len(ours) - both, len(theirs) - both),
            )
        )
    return found
