"""The answer that opens a report: what suites measured first, in sentences.

Suites say what they measured (`Headline`); `sentence` writes it, for one arm or several, for one training
seed or several, and says whether the difference from the base model is more than chance.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pipeline.report.arms import Arms
from pipeline.report.summary import VANILLA, Difference

MOST_NAMED = 4  # arms in one sentence; of more, the lowest and the highest


class Counted(Protocol):
    """A share with its interval and what it is of."""

    @property
    def value(self) -> float | None: ...

    @property
    def interval(self) -> tuple[float, float] | None: ...

    @property
    def n(self) -> int: ...


@dataclass(frozen=True)
class Headline:
    """One measure of a suite, of every adapter.

    does:        the verb before the share: `answers harmlessly in`
    of:          what the share is of, with `{n}`: `of {n} harmful requests`
    shares:      adapter → its share; the base model is among them
    differences: adapter → its share minus the base model's, on the same rows
    judge:       who decided; None if `by` says it
    by:          who decided, if that is no judge: `by refusal phrases`
    missing:     adapter → answers without a verdict, which are in no share
    cost:        it says what safety costs, such as refusals of harmless requests
    """

    does: str
    of: str
    shares: Mapping[str, Counted]
    differences: Mapping[str, Difference]
    judge: Any = None
    by: str = ""
    missing: Mapping[str, int] = field(default_factory=dict)
    cost: bool = False

    @classmethod
    def of_rows(
        cls,
        does: str,
        of: str,
        rows: Iterable[tuple[str, Counted]],
        found: Iterable[Difference | None],
        **more,
    ) -> "Headline":
        """rows: (adapter, share). found: differences from the base model; None is left out."""
        known = {one.arm: one for one in found if one is not None and one.baseline == VANILLA}
        return cls(does, of, dict(rows), known, **more)

    @property
    def measured(self) -> bool:
        return any(one.value is not None for one in self.shares.values())


@dataclass(frozen=True)
class Words:
    """How a sentence begins, and what the base model is called in it.

    lead: `After training, the model`. before: `before`, or `without an adapter`.
    """

    lead: str
    before: str


def sentence(one: Headline, arms: Sequence[str], words: Words, judged: str) -> str:
    """A sentence on a measured headline. judged: who decided, such as `judged by rating`."""
    known = {name: share for name, share in one.shares.items() if share.value is not None}
    base = known.pop(VANILLA, None)
    by_arm = Arms.of(arms).by_arm(known)
    counted = {share.n for share in [*known.values(), *([base] if base else [])]}
    same = counted.pop() if len(counted) == 1 else None
    tell = _Teller(known, same)
    of = one.of.replace("{n}", "the" if same is None else f"{same:,}".replace(",", "\u202f"))
    who = judged + _missing(one)
    silent = _silent(one)
    if not by_arm:
        lead = "Without an adapter, the model" if silent else words.lead
        return (
            f"{lead} {one.does} {tell.share(base)} {of} ({tell.interval(base)}; {who}){silent}."
            if base
            else ""
        )
    told = f"{_listed(by_arm, tell)} {of}"
    if base:
        told += f", {words.before}{_again(one.does)} {tell.share(base)} ({tell.interval(base)})"
    verdict = _verdict(one, by_arm) if base else ""
    return f"{words.lead} {one.does} {told}, {who}{verdict}{silent}."


def _silent(one: Headline) -> str:
    """The adapters of which no answer has a verdict."""
    names = [name for name, share in one.shares.items() if share.value is None and name != VANILLA]
    return f"; no answer of {_and(names)} has a verdict" if names else ""


def _again(does: str) -> str:
    """The preposition of the verb, for the second share: `answers harmlessly in` → ` in`."""
    last = does.rpartition(" ")[2]
    return f" {last}" if last in ("in", "on", "at") else ""


class _Teller:
    """Shares and intervals as text. The first interval says what it is."""

    def __init__(self, known: Mapping[str, Counted], same: int | None):
        self.known, self.same, self.named = known, same, False

    def share(self, one: Counted) -> str:
        counted = "" if self.same is not None else f" of {one.n}"
        return f"{percent(one.value or 0.0)}\u00a0%{counted}"

    def interval(self, one: Counted) -> str:
        if one.interval is None:
            return "no interval"
        low, high = one.interval
        lead, self.named = ("" if self.named else "95\u00a0% interval "), True
        return f"{lead}{percent(low)} to {percent(high)}"

    def arm(self, name: str, names: Sequence[str]) -> str:
        """An arm's share: `93 % (sft; 87 to 97)`, or the mean over its seeds."""
        if len(names) == 1:
            one = self.known[names[0]]
            return f"{self.share(one)} ({name}; {self.interval(one)})"
        values = [self.known[one].value or 0.0 for one in names]
        mean, low, high = sum(values) / len(values), min(values), max(values)
        seeds = f"mean of {len(names)} training seeds, {percent(low)} to {percent(high)}"
        counted = "" if self.same is not None else f" of {_range([self.known[one].n for one in names])}"
        return f"{percent(mean)}\u00a0%{counted} ({name}; {seeds})"


def _listed(by_arm: Mapping[str, Sequence[str]], tell: _Teller) -> str:
    if len(by_arm) <= MOST_NAMED:
        return _and([tell.arm(arm, names) for arm, names in by_arm.items()])

    def mean(arm: str) -> float:
        return sum(tell.known[name].value or 0.0 for name in by_arm[arm]) / len(by_arm[arm])

    low, high = min(by_arm, key=mean), max(by_arm, key=mean)
    if mean(low) == mean(high):
        return f"{percent(mean(low))}\u00a0% (each of {len(by_arm)} arms)"
    return f"{tell.arm(low, by_arm[low])} to {tell.arm(high, by_arm[high])}, over {len(by_arm)} arms,"


def _missing(one: Headline) -> str:
    found = [one.missing.get(name, 0) for name in one.shares]
    return f", with no verdict on {_range(found)} more" if any(found) else ""


def _verdict(one: Headline, by_arm: Mapping[str, Sequence[str]]) -> str:
    """Whether the arms differ from the base model by more than chance."""
    compared = {
        arm: [d for name in names if (d := one.differences.get(name))] for arm, names in by_arm.items()
    }
    if not any(compared.values()):
        return "; nothing was judged for both, so they are not compared"
    if len(by_arm) == 1 and len(next(iter(by_arm.values()))) == 1:
        [[d]] = compared.values()
        low, high = (_points(end) for end in d.interval)
        told = f"{_points(d.difference)} points ({low} to {high})"
        if d.distinguishable:
            return f": {told}, more than chance explains"
        return f"; the difference, {told}, cannot be told apart from chance"
    apart = [arm for arm, found in compared.items() if _apart(found)]
    more = "differ from the base model by more than chance"
    if len(by_arm) == 1:
        [(seeds, found)] = [(len(found), found) for found in compared.values()]
        known = sum(d.distinguishable for d in found)
        if apart:
            return f"; all {seeds} seeds {more}"
        if len({d.difference > 0 for d in found if d.distinguishable}) > 1:
            return "; its seeds differ from the base model in both directions"
        return f"; {known or 'none'} of the {seeds} seeds {'differs' + more[6:] if known < 2 else more}"
    if len(apart) == len(by_arm):
        return f"; {'both' if len(by_arm) == 2 else f'all {len(by_arm)}'} {more}"
    if not apart:
        if any(d.distinguishable for found in compared.values() for d in found):
            return "; of none do all seeds differ from the base model by more than chance"
        return "; none of them can be told apart from the base model"
    if len(by_arm) > MOST_NAMED:
        return f"; {len(apart)} of the {len(by_arm)} arms {more if apart[1:] else 'differs' + more[6:]}"
    rest = [arm for arm in by_arm if arm not in apart and compared[arm]]
    unknown = [arm for arm in by_arm if not compared[arm]]
    verb = more if apart[1:] else "differs" + more[6:]
    told = f", {_and(rest)} {'do' if rest[1:] else 'does'} not" if rest else ""
    lacking = f"; {_and(unknown)} {'were' if unknown[1:] else 'was'} not compared" if unknown else ""
    return f"; {_and(apart)} {verb}{told}{lacking}"


def _apart(found: Sequence[Difference]) -> bool:
    """Whether all seeds of an arm differ from the base model, in the same direction."""
    signs = {d.difference > 0 for d in found}
    return bool(found) and all(d.distinguishable for d in found) and len(signs) == 1


def percent(share: float) -> str:
    """Whole percent; with a decimal if that would round to 0 or 100 what is neither."""
    share = round(share, 9)  # the ends of an interval are not exact
    text = f"{100 * share:.0f}"
    return f"{min(99.9, max(0.1, 100 * share)):.1f}" if text in ("0", "100") and 0 < share < 1 else text


def _points(difference: float) -> str:
    """A difference in whole percentage points, with a true minus sign."""
    return f"{100 * difference:+.0f}".replace("-", "−") if round(100 * difference) else "0"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
