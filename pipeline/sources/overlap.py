"""Instructions of an evaluation that also stand in what the methods train on.

Two instructions are the same if their words are: lower case, without punctuation and white space. They are
nearly the same if their sets of word trigrams have a Jaccard index of at least 0.7. The comparison is exact.
It does not look at all pairs: sets that are so alike share one of their rarest trigrams (prefix filtering,
Chaudhuri, Ganti and Kaushik, ICDE 2006).
"""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator

from pipeline.data.ids import IdSet
from pipeline.settings.base import Source
from pipeline.sources import instructions
from pipeline.sources.counts import Counts

NEAR = 0.7
MOST_ROWS = 50_000  # of the methods' instructions; if there are more, only the same ones are found
_WORDS = re.compile(r"\w+")
_ROUNDING = 1e-9  # 0.7 is no binary fraction

Trigrams = frozenset[tuple[str, ...]]


class Seen:
    """The instructions of the methods, to ask whether one of an evaluation is among them.

    Takes about 30 bytes an instruction, and a kilobyte if there are few enough to look for near duplicates.
    """

    def __init__(self, texts: Iterable[str]):
        self._ids, few = IdSet(), []
        for text in texts:
            words = _normal(text)
            if self._ids.add(_digest(words)) and len(self._ids) <= MOST_ROWS:
                few.append(words)
        self.finds_near = len(self._ids) <= MOST_ROWS
        sets = [_trigrams(words) for words in few] if self.finds_near else []
        self._frequency: Counter[tuple[str, ...]] = Counter(gram for one in sets for gram in one)
        self._with: dict[tuple[str, ...], list[Trigrams]] = {}
        for one in sets:
            for gram in self._rarest(one):
                self._with.setdefault(gram, []).append(one)

    @classmethod
    def of(cls, sources: Iterable[Source]) -> "Seen":
        """The instructions of these sources. Raises UserError if one cannot be read."""
        return cls(row["instruction"] for source in sources for row in instructions.well_formed(source))

    def found(self, text: str) -> str | None:
        """`same` or `near`; None if no instruction of the methods is like the text."""
        words = _normal(text)
        if _digest(words) in self._ids:
            return "same"
        own = _trigrams(words)
        candidates = (one for gram in self._rarest(own) for one in self._with.get(gram, ()))
        return "near" if any(_alike(own, one) for one in candidates) else None

    def _rarest(self, grams: Trigrams) -> list[tuple[str, ...]]:
        """The trigrams of which a set that is alike has at least one."""
        ordered = sorted(grams, key=lambda gram: (self._frequency[gram], gram))
        return ordered[: len(ordered) - math.ceil(NEAR * len(ordered) - _ROUNDING) + 1]


class Distinct:
    """Texts of which no two are nearly the same."""

    def __init__(self, texts: Iterable[str] = ()):
        self._kept: list[Trigrams] = []
        for text in texts:
            self.add(text)

    def add(self, text: str) -> bool:
        """Keep a text if none that is kept is nearly the same. Returns whether it is kept."""
        own = _trigrams(_normal(text))
        if any(_alike(own, one) for one in self._kept):
            return False
        self._kept.append(own)
        return True


def words(text: str) -> list[str]:
    """The words of a text: lower case, without punctuation."""
    return _WORDS.findall(text.casefold())


def likeness(a: str, b: str) -> float:
    """The Jaccard index of the word trigrams of two texts, 0 to 1."""
    one, other = _trigrams(_normal(a)), _trigrams(_normal(b))
    return len(one & other) / len(one | other)


def compared(
    source: Source | None, counts: Counts | None, seen: Seen | None, *, exclude: bool = False
) -> Iterator[dict]:
    """The ok rows of an evaluation's source. `counts` tells how many of them the methods have seen.

    exclude: leave those rows out. `source.limit` counts them.
    """
    if source is None:
        return
    counts = counts if counts is not None else Counts()
    for row in instructions.well_formed(source, counts):
        found = seen.found(row["instruction"]) if seen is not None else None
        counts.seen_same += found == "same"
        counts.seen_near += found == "near"
        if found and exclude:
            counts.leave_out(row)
        else:
            yield row


def _normal(text: str) -> str:
    """The words of a text: lower case, without punctuation. A text without words is itself."""
    return " ".join(words(text)) or text.strip()


def _digest(words: str) -> bytes:
    return hashlib.blake2b(words.encode(), digest_size=16, person=b"words").digest()


def _trigrams(words: str) -> Trigrams:
    """The word trigrams of a text; fewer than three words are one."""
    parts = words.split()
    return frozenset(tuple(parts[i : i + 3]) for i in range(max(1, len(parts) - 2)))


def _alike(a: Trigrams, b: Trigrams) -> bool:
    return len(a & b) >= NEAR * len(a | b) - _ROUNDING
