"""The names of the evaluated adapters, and which of them are one arm trained with several seeds."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


class Arms(tuple[str, ...]):
    """Names of adapters in their order; a sequence like any other to who need not know the rest.

    replicas: name → its arm, of those that differ in nothing but the training seed: `dpo_seed1` → `dpo`, and
              `dpo_seed1_stage2` → `dpo_stage2`
    stages:   name → its arm, of adapters after a stage of a training: `dpo_stage2` → `dpo`
    """

    replicas: Mapping[str, str]
    stages: Mapping[str, str]

    def __new__(
        cls,
        names: Iterable[str],
        replicas: Mapping[str, str] | None = None,
        stages: Mapping[str, str] | None = None,
    ) -> "Arms":
        made = super().__new__(cls, names)
        made.replicas, made.stages = replicas or {}, stages or {}
        return made

    @classmethod
    def of(cls, names: Sequence[str]) -> "Arms":
        """The names as Arms; those of a plain sequence are all arms of their own."""
        return names if isinstance(names, cls) else cls(names)

    def arm(self, name: str) -> str:
        """The arm of a replica; any other name is its own."""
        return self.replicas.get(name, name)

    def by_arm(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Arm → those of the names that are its replicas, or itself."""
        found: dict[str, list[str]] = {}
        for name in names:
            found.setdefault(self.arm(name), []).append(name)
        return found

    @property
    def repeats(self) -> list[str]:
        """What examples leave out: stages, and all replicas of an arm but the first."""
        first = {names[0] for names in self.by_arm(self).values()}
        return [name for name in self if name not in first or name in self.stages]

    def labeled(self, text: str) -> str:
        """A text with the names of replicas replaced by those of their arms."""
        if not self.replicas:
            return text
        names = "|".join(map(re.escape, self.replicas))
        return re.sub(rf"\b(?:{names})\b", lambda found: self.replicas[found[0]], text)

    def baselines(self, name: str, other: str) -> list[str]:
        """What to compare an adapter with, if `other` is the arm to compare with: the replica of the same
        seed if both have several, else all adapters of that arm."""
        seed = name.removeprefix(self.arm(name))
        same = f"{other}{seed}"
        if seed and self.replicas.get(same) == other:
            return [same]
        return [one for one in self if self.arm(one) == other]


@dataclass(frozen=True)
class Spread:
    """What replicas of an arm measured. It is no interval: few seeds say little about the next one."""

    values: Sequence[float] = field()

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def range(self) -> float:
        """The highest minus the lowest value."""
        return max(self.values) - min(self.values)

    def told(self, shown: Callable[[float], str]) -> str:
        """The range in words; empty for one value."""
        if len(self.values) < 2:
            return ""
        low, high = shown(min(self.values)), shown(max(self.values))
        return f"range {shown(self.range).removeprefix('+')}: {low} to {high}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def shares(
    arms: Sequence[str],
    values: Mapping[str, float | None],
    more: Callable[[list[str]], str] = lambda names: "",
) -> str:
    """Shares in a sentence: `vanilla 8.5 %, dpo 18.8 % (mean of 2 seeds, range 11.1)`.

    values: name → share; None is left out. more: what to add, given an arm's names. Empty without values.
    """
    return _listed(arms, values, percent, "\u00a0%", more)


def scores(arms: Sequence[str], values: Mapping[str, float | None]) -> str:
    """The same of mean ratings: `vanilla 5.00, dpo 6.25 (mean of 2 seeds, range 0.50)`."""
    return _listed(arms, values, "{:.2f}".format, "", lambda names: "")


def _listed(
    arms: Sequence[str],
    values: Mapping[str, float | None],
    shown: Callable[[float], str],
    unit: str,
    more: Callable[[list[str]], str],
) -> str:
    told = []
    for arm, names in Arms.of(arms).by_arm(values).items():
        known = [value for name in names if (value := values[name]) is not None]
        if known:
            spread = Spread(known)
            seeds = f" (mean of {len(known)} seeds, range {shown(spread.range)})" if known[1:] else ""
            told.append(f"{arm} {shown(spread.mean)}{unit}{seeds}{more(names)}")
    return ", ".join(told)
