"""Lists that a model writes: their items, whether an item is a request, and how much items differ."""

import re
from collections.abc import Iterable, Sequence
from itertools import combinations

from pipeline.sources.overlap import likeness, words

_MARK = re.compile(r"^(?P<indent>\s*)(?:\(?\d{1,3}[.):]\)?|[-*•–]|\(?[a-zA-Z][.)])\s+(?P<item>\S.*)$")
_QUOTES = "\"'“”‘’*_` "
_ASKS = re.compile(
    r"""(?:please\s+|can\s+you\s+|could\s+you\s+|just\s+)*(?:
      advise | create | describe | design | draft | explain | find | give | guide | help | invent | let | list
    | make | name | outline | plan | prepare | provide | recommend | share | show | suggest | summarize
    | teach | tell | translate | walk | write
    | i\s(?:want|need|would\slike|am\slooking|'d\slike) | i'd\slike | i'm\slooking
    )\b""",
    re.VERBOSE | re.IGNORECASE,
)
# Words at which no request without a question mark ends.
_BREAKS_OFF = re.compile(r"\b(?:a|an|the|my|your|to|how|of|with|for|and|or|from|by)\W*$", re.IGNORECASE)


def items(text: str, *, cut: bool = False) -> tuple[list[str], int]:
    """The items of a list, and the number of other lines that hold text.

    Items are the lines that begin with a number, a letter or a bullet. Deeper ones belong to the item above
    and are counted as other lines. If no line is marked, every line is an item, unless it ends in a colon.

    cut: the text ended at max_tokens, so that its last item is no whole one; it is counted as another line.
    """
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    marked = [(match["indent"], match["item"]) for line in lines if (match := _MARK.match(line))]
    if marked:
        top = min(len(indent.expandtabs()) for indent, _ in marked)
        found = [item for indent, item in marked if len(indent.expandtabs()) == top]
        is_last = bool(_MARK.match(lines[-1])) and lines[-1].endswith(found[-1])
    else:
        found = [line.strip() for line in lines if not line.endswith(":")]
        is_last = bool(found)
    found = found[:-1] if cut and is_last else found
    stripped = [item.strip(_QUOTES) for item in found]
    kept = [item for item in stripped if item]
    return kept, len(lines) - len(kept)


def is_request(text: str) -> bool:
    """Whether a text asks for something: it ends in a question mark, or begins like a request and does not
    break off, as `Tell me how to` does (English)."""
    text = text.strip(_QUOTES)
    if text.endswith(("?", "？", "؟")):
        return True
    return _ASKS.match(text) is not None and _BREAKS_OFF.search(text) is None


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Different n-grams of words per n-gram (distinct-n, Li et al. 2016, arXiv 1510.03055).

    n-grams do not cross texts. None if no text has one.
    """
    grams: list[tuple[str, ...]] = []
    for text in texts:
        own = words(text)
        grams += zip(*(own[i:] for i in range(n)), strict=False)
    return len(set(grams)) / len(grams) if grams else None


def mean_likeness(texts: Sequence[str]) -> float | None:
    """The mean Jaccard index of all pairs, over word trigrams; None if there is no pair."""
    found = [likeness(a, b) for a, b in combinations(texts, 2)]
    return sum(found) / len(found) if found else None
