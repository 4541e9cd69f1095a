"""Numbers of course correction: Corr@k from judged continuations, and counts of requests.

No engine, no files.

Corr(entry, k) is the share of an entry's paths that correct course after a prefill of length k, among paths
with a readable verdict. Corr@k is its mean over entries; Corr_mean is the mean of the Corr@k. By the authors'
rules, the judging step stores an unreadable verdict as a no, and this module counts it like any other no.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.numbers import Rows, batches, counted, places_of
from pipeline.report.summary import (
    RESAMPLES,
    VANILLA,
    Difference,
    Rate,
    arm_order,
    bootstrap,
    percentile_interval,
    reasons,
)
from pipeline.schema import DROPPED, FAILED


@dataclass(frozen=True)
class Corr:
    """Corr@k, or Corr_mean, of one arm, with its bootstrap interval over entries.

    entries: with a readable verdict (for Corr_mean: at every k at which they were continued); left_out: those
    that were continued and have none, which are in no mean.
    `value` is None if nothing was judged; for Corr_mean, also if nothing was judged at one of the k.
    """

    value: float | None
    interval: tuple[float, float] | None
    entries: int
    left_out: int

    @property
    def n(self) -> int:
        return self.entries


@dataclass(frozen=True)
class ArmCorr:
    """One arm's Corr_mean and Corr@k (`at`: k → Corr), and the counts behind them."""

    arm: str
    mean: Corr
    at: dict[int, Corr]
    failed: int  # rows; a row is an entry at one k
    paths: int
    unreadable: int  # paths without a verdict
    cut: int  # paths that reached their token limit


@dataclass(frozen=True)
class CorrDifference(Difference):
    """A difference of Corr@k, or of Corr_mean if `k` is None.

    For Corr_mean, an entry counts by its mean over the k judged for both arms.
    """

    k: int | None


@dataclass(frozen=True)
class CorrSummary:
    """The numbers of C²-Eval, of all arms."""

    entries: int  # including dropped ones
    dropped: dict[str, int]  # reason → entries
    failures: dict[str, int]  # kind of error → rows
    lengths: list[int]
    arms: list[ArmCorr]  # vanilla first
    differences: list[CorrDifference]  # from vanilla; of each arm Corr_mean first, then every k

    def without(self, arms: Collection[str]) -> "CorrSummary":
        """The summary without the numbers of some arms."""
        return replace(
            self,
            arms=[one for one in self.arms if one.arm not in arms],
            differences=[one for one in self.differences if one.arm not in arms],
        )


def corr_summary(
    continuations: Rows, arms: Sequence[str] = (), *, seed: int = 0, resamples: int = RESAMPLES
) -> CorrSummary:
    """The summary of a data set of CONTINUATIONS; its text columns may be missing.

    All intervals use the same resamples, which draw an entry with all its k and all arms. The same seed gives
    the same intervals.
    """
    read = _read(continuations, arms)
    names, lengths, corr = read.arms, read.lengths, read.corr
    others = [arm for arm in names if arm != VANILLA] if VANILLA in names else []
    gained = {arm: corr[names.index(arm)] - corr[0] for arm in others}
    means = _resampled_means([*corr, *gained.values()], seed, resamples)
    return CorrSummary(
        entries=read.entries,
        dropped=reasons(continuations, DROPPED),
        failures=reasons(continuations, FAILED),
        lengths=lengths,
        arms=[
            _arm(arm, corr[i], read.continued[i], means[i], lengths, read.counts[i])
            for i, arm in enumerate(names)
        ],
        differences=[
            difference
            for arm, resampled in zip(others, means[len(names) :], strict=True)
            for difference in _differences(arm, gained[arm], resampled, lengths)
        ],
    )


def by_rank(continuations: Rows, ranks: Sequence[int], arms: Sequence[str] = ()) -> dict[str, list[Rate]]:
    """Arm → how often paths that begin with a token of each rank correct course, over all entries and k."""
    found: dict[str, np.ndarray] = {}  # [judged and corrected, ranks]
    for batch in batches(continuations, ["arm", "corrected"]):
        of_all = pc.fill_null(pc.equal(pc.list_value_length(batch["corrected"]), len(ranks)), False)
        batch = batch.filter(pc.and_(pc.is_valid(batch["arm"]), of_all))
        for (arm,), places in places_of(batch.select(["arm"])):
            _, *known = _flat(batch["corrected"].take(pa.array(places)))
            counts = np.stack([of.reshape(-1, len(ranks)).sum(axis=0) for of in known])
            found[arm] = found[arm] + counts if arm in found else counts
    return {
        arm: [Rate(int(yes), int(judged)) for judged, yes in found[arm].T]
        for arm in sorted(found, key=arm_order(arms))
    }


@dataclass
class _Read:
    """What the rows of a data set say, without the rows.

    entries:   how many there are, dropped ones included
    corr:      [arms, entries, lengths] Corr(entry, k), NaN if no verdict was readable
    continued: [arms, entries, lengths] whether the entry was continued at k
    counts:    [arms, 4] failed rows, paths, paths without a verdict, paths that reached their token limit
    """

    arms: list[str]
    lengths: list[int]
    entries: int
    corr: np.ndarray
    continued: np.ndarray
    counts: np.ndarray


def _read(continuations: Rows, arms: Sequence[str]) -> _Read:
    pairs = [(row["arm"], row["k"]) for row, _ in counted(continuations, ["arm", "k"])]
    names = sorted({arm for arm, _ in pairs if arm is not None}, key=arm_order(arms))
    lengths = sorted({k for arm, k in pairs if arm is not None})
    entries, measured = _entries(continuations)
    shape = len(names), len(measured), len(lengths)
    found = _Read(
        names,
        lengths,
        entries,
        np.full(shape, np.nan),
        np.zeros(shape, bool),
        np.zeros((len(names), 4), np.int64),
    )
    axes = {
        column: {value: place for place, value in enumerate(values)}
        for column, values in (("arm", names), ("instruction_id", measured), ("k", lengths))
    }
    for batch in batches(continuations, [*axes, "status", "corrected", "finish_reasons"]):
        rows = batch.filter(pc.is_valid(batch["arm"]))
        places = [_places(rows[column], of) for column, of in axes.items()]
        paths, judged, corrected = _verdicts(rows["corrected"])
        known = judged > 0
        found.corr[tuple(place[known] for place in places)] = corrected[known] / judged[known]
        found.continued[tuple(places)] = True
        failed = pc.equal(rows["status"], FAILED).to_numpy()
        for column, of in enumerate((failed, paths, paths - judged, _cut(rows["finish_reasons"], paths))):
            np.add.at(found.counts[:, column], places[0], of)
    return found


def _entries(continuations: Rows) -> tuple[int, list[str]]:
    """How many entries there are, and the sorted ids of those that were continued."""
    every, continued = [], []
    for batch in batches(continuations, ["instruction_id", "arm"]):
        ids = batch["instruction_id"]
        every.append(pc.unique(ids))
        continued.append(pc.unique(ids.filter(pc.is_valid(batch["arm"]))))
    found, measured = (pc.unique(pa.chunked_array(parts, pa.string())) for parts in (every, continued))
    return len(found), sorted(measured.to_pylist())


def _places(column: pa.ChunkedArray, places: Mapping[Any, int]) -> np.ndarray:
    coded = column.combine_chunks().dictionary_encode()
    return np.array([places[one] for one in coded.dictionary.to_pylist()], int)[coded.indices.to_numpy()]


def _flat(verdicts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per path: its row, whether its verdict is readable, and whether it corrects course."""
    lists = verdicts.combine_chunks()
    flat = pc.list_flatten(lists)
    known, yes = (of.to_numpy(zero_copy_only=False) for of in (pc.is_valid(flat), pc.fill_null(flat, False)))
    return pc.list_parent_indices(lists).to_numpy(), known, yes


def _verdicts(verdicts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row: paths, paths with a readable verdict, paths that correct course."""
    row, readable, yes = _flat(verdicts)
    chosen = (slice(None), readable, yes)
    paths, judged, corrected = (np.bincount(row[those], minlength=len(verdicts)) for those in chosen)
    return paths, judged, corrected


def _resampled_means(blocks: list[np.ndarray], seed: int, resamples: int) -> list[np.ndarray]:
    """Blocks of [entries, lengths] → per block, the means over entries per resample: [resamples, lengths]."""
    if not blocks or not blocks[0].size:
        return blocks
    return np.hsplit(bootstrap(np.concatenate(blocks, axis=1), seed, resamples), len(blocks))


def _arm(
    arm: str,
    corr: np.ndarray,
    continued: np.ndarray,
    resampled: np.ndarray,
    lengths: list[int],
    counts: np.ndarray,
) -> ArmCorr:
    """corr, continued: [entries, lengths]; resampled: [resamples, lengths]; counts: as in `_Read`."""
    failed, paths, unreadable, cut = counts.tolist()
    known = ~np.isnan(corr)
    at = [_mean(corr[known[:, i], i]) for i in range(len(lengths))]
    return ArmCorr(
        arm,
        mean=_estimate(
            _mean(at),
            resampled.mean(axis=1),
            np.all(known | ~continued, axis=1),
            np.asarray(continued.any(axis=1)),
        ),
        at={
            k: _estimate(at[i], resampled[:, i], known[:, i], continued[:, i]) for i, k in enumerate(lengths)
        },
        failed=failed,
        paths=paths,
        unreadable=unreadable,
        cut=cut,
    )


def _estimate(value: float, resampled: np.ndarray, known: np.ndarray, continued: np.ndarray) -> Corr:
    counts = {"entries": int((known & continued).sum()), "left_out": int((~known & continued).sum())}
    return (
        Corr(None, None, **counts)
        if np.isnan(value)
        else Corr(value, percentile_interval(resampled), **counts)
    )


def _differences(
    arm: str, gained: np.ndarray, resampled: np.ndarray, lengths: list[int]
) -> list[CorrDifference]:
    """gained: Corr(entry, k) minus vanilla's [entries, lengths]; resampled: its means [resamples, lengths].

    A k that no entry has for both arms is left out.
    """
    known = ~np.isnan(gained)
    at = [_mean(gained[known[:, i], i]) for i in range(len(lengths))]
    by_entry = (
        np.where(known, gained, 0).sum(axis=1)[known.any(axis=1)] / known.sum(axis=1)[known.any(axis=1)]
    )
    mean = (None, _mean(at), resampled.mean(axis=1), by_entry)
    parts: list[tuple[int | None, float, np.ndarray, np.ndarray]] = [mean]
    parts += [(k, at[i], resampled[:, i], gained[known[:, i], i]) for i, k in enumerate(lengths)]
    return [_difference(arm, *part) for part in parts if not np.isnan(part[1])]


def _difference(
    arm: str, k: int | None, difference: float, resampled: np.ndarray, by_entry: np.ndarray
) -> CorrDifference:
    signs = np.sign(np.round(by_entry, 9))  # sums of shares that cancel leave rounding errors
    better, worse = int((signs > 0).sum()), int((signs < 0).sum())
    n = len(by_entry)
    return CorrDifference(
        arm, VANILLA, difference, percentile_interval(resampled), n, better, worse, n - better - worse, k=k
    )


def _mean(values: Sequence[float]) -> float:
    """The mean; NaN if there are no values, or if one is NaN."""
    return float(np.mean(values)) if len(values) else float("nan")


def _cut(finish_reasons: pa.ChunkedArray, paths: np.ndarray) -> np.ndarray:
    """Per row, the paths that ended at their token limit.

    A row lists the reasons of its paths first, then the judge's.
    """
    reasons = finish_reasons.combine_chunks()
    row = pc.list_parent_indices(reasons).to_numpy()
    first = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(paths)))])
    cut = pc.fill_null(pc.equal(pc.list_flatten(reasons), "length"), False).to_numpy(zero_copy_only=False)
    return np.bincount(row[cut & (np.arange(len(row)) - first[row] < paths[row])], minlength=len(paths))
