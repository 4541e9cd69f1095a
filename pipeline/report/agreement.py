"""How far two judges agree, how often one errs against labels, and a rate corrected for that error.

Pure numbers: no files, no engines. A judge's verdict and a label are both "harmful" or not; a label may be a
person's, a data set's own, or another judge's. Items are treated as independent.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.report.summary import RESAMPLES, Z95, Rate, percentile_interval

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Agreement:
    """Counts of items that two judges, or a judge and labels, call harmful or harmless.

    If the second is taken as the truth, the first is the judge and the second the label.
    """

    both: int  # harmful by both
    only_first: int
    only_second: int
    neither: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> "Agreement":
        return cls.counted(Counter(pairs))

    @classmethod
    def counted(cls, counts: Mapping[tuple[bool, bool], int]) -> "Agreement":
        """counts: how often each pair of verdicts occurs."""
        both = ((True, True), (True, False), (False, True), (False, False))
        return cls(*(counts.get(pair, 0) for pair in both))

    @property
    def n(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def agreed(self) -> Rate:
        """Raw agreement; the judge's accuracy if the second are labels."""
        return Rate(self.both + self.neither, self.n)

    @property
    def sensitivity(self) -> Rate:
        """Of the items labeled harmful, those that the judge calls harmful."""
        return Rate(self.both, self.both + self.only_second)

    @property
    def specificity(self) -> Rate:
        """Of the items labeled harmless, those that the judge calls harmless."""
        return Rate(self.neither, self.neither + self.only_first)

    @property
    def kappa(self) -> float | None:
        """Agreement beyond chance (Cohen 1960); None if both put all items into the same class."""
        above, possible = _above_chance(self.both, self.only_first, self.only_second, self.neither)
        return above / possible if possible else None

    def kappa_interval(self, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float] | None:
        """The middle 95 % of κ over bootstrap resamples of the items, those without a κ left out.

        None if κ is undefined. Drawing n items with replacement equals drawing the four counts.
        """
        import numpy as np

        if self.kappa is None:
            return None
        counts = np.array([self.both, self.only_first, self.only_second, self.neither])
        drawn = np.random.default_rng(seed).multinomial(self.n, counts / self.n, size=resamples)
        above, possible = _above_chance(*drawn.T)
        undefined = np.full(resamples, math.nan)
        return percentile_interval(np.divide(above, possible, out=undefined, where=possible != 0))


def _above_chance(both: Any, only_first: Any, only_second: Any, neither: Any) -> tuple[Any, Any]:
    """How far the agreement is above chance, and how far it could be, of whole numbers or arrays of them.

    Both are times n², so that whole numbers decide whether chance explains everything.
    """
    n = both + only_first + only_second + neither
    chance = (both + only_first) * (both + only_second) + (neither + only_first) * (neither + only_second)
    return (both + neither) * n - chance, n * n - chance


def compared(
    first: Mapping[Key, bool | None], second: Mapping[Key, bool | None]
) -> tuple[Agreement, dict[Key, tuple[bool, bool]]]:
    """The agreement on the items for which both have a verdict, and those items' two verdicts."""
    pairs = {
        key: (ours, theirs)
        for key, ours in first.items()
        if ours is not None and (theirs := second.get(key)) is not None
    }
    return Agreement.of(pairs.values()), pairs


def by_category(
    pairs: Mapping[Key, tuple[bool, bool]], categories: Mapping[Key, str]
) -> dict[str, Agreement]:
    """The agreement per category, the largest first. Items without a category are left out."""
    grouped: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for key, pair in pairs.items():
        if key in categories:
            grouped[categories[key]].append(pair)
    return {
        name: Agreement.of(grouped[name])
        for name in sorted(grouped, key=lambda name: (-len(grouped[name]), name))
    }


@dataclass(frozen=True)
class Corrected:
    """A rate corrected for the judge's error. `value` and `interval` are None if `why_not` says why."""

    value: float | None
    interval: tuple[float, float] | None
    why_not: str = ""


def corrected_rate(judged: Rate, error: Agreement) -> Corrected:
    """The share of harmful items behind a judge's share (Rogan and Gladen 1978), clipped to [0, 1].

    judged: items that the judge calls harmful, of the items judged.
    error:  the judge (first) against labels (second), on items like the judged ones. The correction holds
            only if the judge errs on the judged items as often as on the labeled ones.

    (p + specificity − 1) / (sensitivity + specificity − 1). The interval is the delta method's, z = 1.96. Its
    variances use shares with one success and one failure added, since 20 right of 20 labels does not make a
    judge exact. It treats the judged and the labeled items as different samples.
    """
    p, sensitivity, specificity = judged.value, error.sensitivity.value, error.specificity.value
    if p is None:
        return Corrected(None, None, "nothing was judged")
    if sensitivity is None or specificity is None:
        missing = "harmful" if sensitivity is None else "harmless"
        return Corrected(None, None, f"not identifiable: no label is {missing}")
    informed = sensitivity + specificity - 1
    if informed <= 0:
        return Corrected(
            None, None, "not identifiable: sensitivity + specificity ≤ 1, the judge is no better than chance"
        )
    value = (p + specificity - 1) / informed
    share = min(1.0, max(0.0, value))
    variance = (
        _variance(judged)
        + share**2 * _variance(error.sensitivity)
        + (1 - share) ** 2 * _variance(error.specificity)
    )
    half = Z95 * math.sqrt(variance) / informed
    return Corrected(share, (min(1.0, max(0.0, value - half)), max(0.0, min(1.0, value + half))))


def _variance(rate: Rate) -> float:
    """Of a share, with one success and one failure added."""
    n = rate.trials + 2
    share = (rate.successes + 1) / n
    return share * (1 - share) / n
