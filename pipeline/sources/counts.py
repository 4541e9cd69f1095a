"""How a source was read: one accounting for every source, told in the same words everywhere."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.store import reason
from pipeline.settings.shown import shown

_MOST_TOLD = 12  # reasons, notes and columns of one source


@dataclass
class Counts:
    """What became of the rows read: read = ok + duplicates + malformed + excluded. Filled during reading.

    reasons: reason → malformed rows. notes: sentence → rows used without a part, or files not read.
    unused: columns that are not used. source: its path. safe, unsafe: rows used that have such a response.
    seen_same, seen_near: rows of an evaluation that also stand in the methods' instructions (see `overlap`).
    excluded: those of them that are left out.
    """

    read: int = 0
    ok: int = 0
    duplicates: int = 0
    malformed: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unused: list[str] = field(default_factory=list)
    source: str = ""
    safe: int = 0
    unsafe: int = 0
    seen_same: int = 0
    seen_near: int = 0
    excluded: int = 0

    def leave_out(self, row: Mapping[str, Any]) -> None:
        """Count a row that has been used as one that is left out."""
        self.ok -= 1
        self.safe -= row["safe_response"] is not None
        self.unsafe -= row["unsafe_response"] is not None
        self.excluded += 1

    def repeat(self, row: Mapping[str, Any], seen: str | None) -> None:
        """Count a row that has been used as one that repeats an instruction of another source.

        seen: `same` or `near` if it has been counted as such.
        """
        self.leave_out(row)
        self.excluded -= 1
        self.duplicates += 1
        self.seen_same -= seen == "same"
        self.seen_near -= seen == "near"

    def spoil(self, why: str) -> None:
        """Count a malformed row."""
        self.malformed += 1
        self.reasons[shown(reason(why))] += 1

    @property
    def noteworthy(self) -> bool:
        """Whether anything was not used."""
        return bool(
            self.duplicates or self.malformed or self.notes or self.unused or self._some() or self._seen()
        )

    def told(self) -> str:
        """The accounting in one line: `a.jsonl: 4 rows read, 2 used, 1 repeats an instruction, …`."""
        parts = [f"{_rows(self.read)} read", f"{self.ok:,} used{self._some()}"]
        if self.duplicates:
            parts.append(f"{self.duplicates:,} repeat{'s' if self.duplicates == 1 else ''} an instruction")
        if self.malformed:
            parts.append(f"{self.malformed:,} malformed ({self.why()})")
        text = "; ".join([", ".join(parts), *filter(None, [self._seen()]), *self.left_out()])
        return f"{shown(self.source)}: {text}" if self.source else text

    def left_out(self) -> list[str]:
        """What was left out of rows that are used."""
        unused = f"columns not used: {listed(self.unused)}" if self.unused else ""
        return [part for part in (_counted(self.notes), unused) if part]

    def _seen(self) -> str:
        """How many rows also stand in what the methods train on."""
        if not self.seen_same and not self.seen_near:
            return ""
        rows = self.ok + self.excluded
        near = f", {self.seen_near:,} more nearly" if self.seen_near else ""
        done = "left out" if self.excluded else "used all the same"
        return f"{self.seen_same:,} of {rows:,} also stand in the instructions of the methods{near}: {done}"

    def _some(self) -> str:
        """How many rows have a response, if only some of them have."""
        kinds = (("a safe", self.safe), ("an unsafe", self.unsafe))
        told = [f"{count:,} with {kind} response" for kind, count in kinds if 0 < count < self.ok]
        return f" ({', '.join(told)})" if told else ""

    def why(self) -> str:
        """The reasons of malformed rows, most frequent first."""
        hint = ""
        if any("not valid UTF-8" in why for why in self.reasons):
            hint = "; the file may be in Latin-1 or Windows-1252: convert it to UTF-8"
        return _counted(self.reasons) + hint


class Accounts:
    """The counts of several sources, by the field of the configuration that names each."""

    def __init__(self, prefix: str = "", found: dict[str, Counts] | None = None):
        self._prefix, self._found = prefix, {} if found is None else found

    def of(self, name: str) -> Counts:
        """The counts of one source, to be filled."""
        return self._found.setdefault(f"{self._prefix}{name}", Counts())

    def known(self, field: str) -> Counts | None:
        """The counts of a source that has been read."""
        return self._found.get(field)

    def below(self, section: str) -> "Accounts":
        """The same accounts for a section, which names its sources by its own fields."""
        return Accounts(f"{self._prefix}{section}.", self._found)

    def facts(self) -> dict[str, dict[str, Any]]:
        """As JSON holds them; `from_facts` is the inverse."""
        return {field: dict(vars(counts)) for field, counts in self._found.items()}

    @staticmethod
    def from_facts(facts: Mapping[str, Mapping[str, Any]] | None) -> "Accounts":
        counters = ("reasons", "notes")
        return Accounts(
            found={
                field: Counts(**{**one, **{name: Counter(one[name]) for name in counters}})
                for field, one in (facts or {}).items()
            }
        )

    def told(self, all: bool = True) -> list[str]:
        """A line per source; without `all`, only for sources with something unused."""
        return [
            f"{field} = {counts.told()}" for field, counts in self._found.items() if all or counts.noteworthy
        ]


def listed(columns: list[str] | set[str], most: int = _MOST_TOLD) -> str:
    """Names of columns for a message."""
    names = [shown(name, 60) for name in sorted(columns)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _counted(found: Counter[str]) -> str:
    parts = [f"{what}: {count:,}" for what, count in found.most_common(_MOST_TOLD)]
    if len(found) > _MOST_TOLD:
        parts.append(f"and {len(found) - _MOST_TOLD} more")
    return ", ".join(parts)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
