"""Numbers of course correction: Corr@k from judged continuations, and counts of requests.

No engine, no files.

Corr(entry, k) is the share of an entry's paths that correct course after a prefill of length k, among paths
with a readable verdict. Corr@k is its mean over entries; Corr_mean is the mean of the Corr@k. By the authors'
rules, the judging step stores an unreadable verdict as a no, and this module counts it like any other no.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    continuations: pa.Table, arms: Sequence[str] = (), *, seed: int = 0, resamples: int = RESAMPLES
) -> CorrSummary:
    """The summary of a data set of CONTINUATIONS; its text columns may be missing.

    All intervals use the same resamples, which draw an entry with all its k and all arms. The same seed gives
    the same intervals.
    """
    measured = continuations.filter(pc.is_valid(continuations["arm"]))
    names = sorted(pc.unique(measured["arm"]).to_pylist(), key=arm_order(arms))
    entries, lengths = (sorted(pc.unique(measured[column]).to_pylist()) for column in ("instruction_id", "k"))
    corr, continued = _corr(measured, names, entries, lengths)
    others = [arm for arm in names if arm != VANILLA] if VANILLA in names else []
    gained = {arm: corr[names.index(arm)] - corr[0] for arm in others}
    means = _resampled_means([*corr, *gained.values()], seed, resamples)
    return CorrSummary(
        entries=len(pc.unique(continuations["instruction_id"])),
        dropped=reasons(continuations, DROPPED),
        failures=reasons(continuations, FAILED),
        lengths=lengths,
        arms=[_arm(arm, corr[i], continued[i], means[i], lengths, measured) for i, arm in enumerate(names)],
        differences=[
            difference
            for arm, resampled in zip(others, means[len(names) :], strict=True)
            for difference in _differences(arm, gained[arm], resampled, lengths)
        ],
    )


def by_rank(continuations: pa.Table, ranks: Sequence[int], arms: Sequence[str] = ()) -> dict[str, list[Rate]]:
    """Arm → how often paths that begin with a token of each rank correct course, over all entries and k."""
    found: dict[str, list[list[bool]]] = {}
    for row in continuations.select(["arm", "corrected"]).to_pylist():
        if row["arm"] is not None and len(row["corrected"] or ()) == len(ranks):
            verdicts = found.setdefault(row["arm"], [[] for _ in ranks])
            for of_rank, verdict in zip(verdicts, row["corrected"], strict=True):
                of_rank += [] if verdict is None else [verdict]
    return {arm: [Rate.of(of) for of in found[arm]] for arm in sorted(found, key=arm_order(arms))}


def _corr(
    measured: pa.Table, names: list[str], entries: list[str], lengths: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Corr(entry, k) of every arm, NaN if no verdict was readable, and whether the entry was continued at k.

    Both are [arms, entries, lengths].
    """
    _, judged, corrected = _verdicts(measured)
    corr = np.full((len(names), len(entries), len(lengths)), np.nan)
    known = judged > 0
    places = [_places(measured[column], values) for column, values in _axes(names, entries, lengths)]
    corr[tuple(place[known] for place in places)] = corrected[known] / judged[known]
    continued = np.zeros(corr.shape, dtype=bool)
    continued[tuple(places)] = True
    return corr, continued


def _axes(names: list[str], entries: list[str], lengths: list[int]):
    return (("arm", names), ("instruction_id", entries), ("k", lengths))


def _places(column: pa.ChunkedArray, values: list) -> np.ndarray:
    return pc.index_in(column, value_set=pa.array(values, column.type)).to_numpy()


def _verdicts(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per row: paths, paths with a readable verdict, paths that correct course."""
    verdicts = rows["corrected"].combine_chunks()
    row = pc.list_parent_indices(verdicts).to_numpy()
    flat = pc.list_flatten(verdicts)
    readable = pc.is_valid(flat).to_numpy(zero_copy_only=False)
    yes = pc.fill_null(flat, False).to_numpy(zero_copy_only=False)
    chosen = (slice(None), readable, yes)
    paths, judged, corrected = (np.bincount(row[those], minlength=len(rows)) for those in chosen)
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
    measured: pa.Table,
) -> ArmCorr:
    """corr, continued: [entries, lengths]; resampled: [resamples, lengths]."""
    rows = measured.filter(pc.equal(measured["arm"], arm))
    paths, judged, _ = _verdicts(rows)
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
        failed=pc.sum(pc.equal(rows["status"], FAILED)).as_py() or 0,
        paths=int(paths.sum()),
        unreadable=int((paths - judged).sum()),
        cut=_cut(rows["finish_reasons"], paths),
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


def _cut(finish_reasons: pa.ChunkedArray, paths: np.ndarray) -> int:
    """Number of paths that ended at their token limit.

    A row lists the reasons of its paths first, then the judge's.
    """
    reasons = finish_reasons.combine_chunks()
    row = pc.list_parent_indices(reasons).to_numpy()
    first = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(paths)))])
    cut = pc.fill_null(pc.equal(pc.list_flatten(reasons), "length"), False).to_numpy(zero_copy_only=False)
    return int((cut & (np.arange(len(row)) - first[row] < paths[row])).sum())
