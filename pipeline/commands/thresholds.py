"""`setbacks report --fail-under harmless=0.9`: the exit code of a report, for continuous integration.

A number is named as in `results.json`: `harmless`, or with words that tell it from others of its name, as
`plain.harmless` or `safety.plain.harmless`: the suite, the condition or other heading, texts of its row. A
name alone is a limit for every number of that name, under every condition.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import RunFailed, UserError
from pipeline.report.replicas import without_seeds
from pipeline.report.results import Figure, Results, slug
from pipeline.settings.shown import shown
from pipeline.suites import VANILLA


@dataclass(frozen=True)
class Limit:
    """option: as the user wrote it. words: that the number's labels must have. under: it may not be below."""

    option: str
    words: tuple[str, ...]
    name: str
    value: float
    under: bool

    @classmethod
    def of(cls, text: str, *, under: bool) -> "Limit":
        """`plain.harmless=0.9`. Raises UserError."""
        option = f"--fail-{'under' if under else 'over'} {shown(text, 80)}"
        address, equals, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        *words, name = (slug(word) for word in address.split("."))
        if not equals or not name or not math.isfinite(value):
            raise UserError(f"{option}: write it as NAME=NUMBER, such as harmless=0.9 or plain.harmless=0.9")
        return cls(option, tuple(words), name, value, under)

    def numbers(self, found: Sequence[Figure]) -> list[Figure]:
        return [one for one in found if one.name == self.name and one.labels.issuperset(self.words)]

    def fails(self, value: float) -> bool:
        return value < self.value if self.under else value > self.value


def limits(under: Sequence[str], over: Sequence[str]) -> list[Limit]:
    """The limits of the command line. Raises UserError."""
    return [Limit.of(text, under=True) for text in under] + [Limit.of(text, under=False) for text in over]


def check(results: Results, limits: Sequence[Limit], arms: Sequence[str]) -> None:
    """Raises RunFailed, one sentence, if a number is on the wrong side of its limit, or unknown.

    Every number of the name counts, of every given arm; without arms, of all adapters but the base model. An
    arm with several seeds stands for the mean over them. Raises UserError if there is no such number.
    """
    known = list(dict.fromkeys([*results.arms, *(one.arm for one in results.numbers if one.arm)]))
    if unknown := [arm for arm in arms if arm not in known]:
        raise UserError(f"--arm {shown(unknown[0], 60)}: the run has no such arm; it has {_list(known)}")
    if arms and not limits:
        raise UserError("--arm: says whose numbers a limit is for; give --fail-under or --fail-over")
    wanted = list(arms) or [arm for arm in results.arms if arm != VANILLA] or [VANILLA]
    failed = [told for limit in limits if (told := _failure(results, limit, wanted))]
    if failed:
        raise RunFailed("; ".join(failed))


def _failure(results: Results, limit: Limit, arms: list[str]) -> str | None:
    found = limit.numbers(results.numbers)
    if not found:
        names = sorted({one.name for one in results.numbers if one.arm and one.unit in ("share", "score")})
        told = f"it has {_list(names)}" if names else "it has none: is `evaluate` done?"
        raise UserError(f"{limit.option}: the report has no such number of an arm; {told}")
    shares = [one for one in found if one.unit == "share"]
    if shares and not 0 <= limit.value <= 1:
        raise UserError(f"{limit.option}: {limit.name} is a share, from 0 to 1, and not a percentage")
    wrong, unknown = [], []
    for arm in arms:
        known = [one for one in found if one.arm == arm and one.value is not None]
        wrong += [one for one in known if one.value is not None and limit.fails(one.value)]
        unknown += [] if known else [arm]
    side = "below" if limit.under else "above"
    parts = []
    if wrong:
        parts.append(f"{limit.name} is {side} {limit.value:g}: {', '.join(map(_told, wrong))}")
    if unknown:
        parts.append(f"{limit.name} of {', '.join(unknown)} is unknown, nothing was counted")
    if parts and (one := _one_condition(limit, found)):
        parts.append(f"{limit.name} alone is a limit for every condition, {one} for one")
    return "; ".join(parts) or None


def _told(one: Figure) -> str:
    others = [text for text in one.row.values() if text and without_seeds(text) != one.arm]
    where = [str(one.arm), *([_condition(one)] if one.group else []), *others]
    interval = "" if one.low is None or one.high is None else f" [{one.low:.3g}, {one.high:.3g}]"
    counted = [] if one.n is None else [f"n = {one.n}"]
    return f"{one.value:.4g}{interval} ({', '.join([*where, *counted])})"


def _condition(one: Figure) -> str:
    """The heading above a number, without what explains it."""
    return one.group.partition(":")[0].lower()


def _one_condition(limit: Limit, found: Sequence[Figure]) -> str | None:
    """How a limit for one condition is written, the first as an example; None if the user's is for one."""
    groups = [slug(_condition(one)) for one in found if one.group]
    if len(set(groups)) < 2 or set(groups) & set(limit.words):
        return None
    return ".".join([*limit.words, groups[0], limit.name])


def _list(names: Sequence[str]) -> str:
    return shown(", ".join(names), 300)
