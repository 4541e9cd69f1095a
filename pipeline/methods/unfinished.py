"""The texts that a row samples: what becomes of one that ended at max_tokens, and what is wrong with it.

As a training target, a text that ended at max_tokens would be followed by the end-of-turn token, so the
model would learn to stop in mid-sentence. All methods therefore pass the texts that can become targets
(answers of conversations, chosen sides of pairs) through `Sampled.target`, before anybody judges them. Before
that, `Sampled.fault` asks the quality gates about the whole text: a loop that ran into the limit is a loop.
"""

import re
from typing import Any, Literal

from pipeline.chat import Completion
from pipeline.data import faults
from pipeline.data.endings import CUT, DROPPED, KEPT, TRIMMED, WHOLE, entry
from pipeline.gates import Gates

Unfinished = Literal["trim", "drop", "keep"]


class Sampled:
    """The texts that a row has sampled.

    rule: what becomes of a target that ended at max_tokens. gates: those that texts have to pass; None for no
    gates. instruction: of the row.
    """

    def __init__(self, rule: Unfinished, gates: Gates | None = None, instruction: str = ""):
        self._rule, self._gates, self._instruction = rule, gates, instruction
        self._endings: list[str] = []
        self._faults: list[str] = []

    def fault(self, step: str, text: str, **shown: Any) -> str | None:
        """`step: fault` if a gate refuses the text, and counts it; else None. shown: of `Gates.reason`."""
        found = self._gates and self._gates.reason(text, self._instruction, **shown)
        return self.count(step, found) if found else None

    def count(self, step: str, fault: str) -> str:
        """Count a fault in the column `faults`. Returns its entry."""
        self._faults.append(faults.entry(step, fault))
        return self._faults[-1]

    def target(self, step: str, completion: Completion) -> str | None:
        """A text that training may use as a target; None if it must not, since it ended at max_tokens."""
        text, ending = _settled(completion, self._rule)
        self._endings.append(entry(step, ending))
        return text

    def other(self, step: str, completion: Completion) -> str:
        """A text that becomes no target, such as the mistake in the question about it."""
        self._endings.append(entry(step, CUT if completion.is_cut else WHOLE))
        return completion.text

    @property
    def endings(self) -> list[str]:
        """The column `endings`. Sorted: calls of a row may end in any order."""
        return sorted(self._endings)

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns `endings` and `faults`."""
        return {"endings": self.endings, "faults": sorted(self._faults)}


def lost(text: str) -> str:
    """Why a row, or a response of it, is dropped. text: what was cut."""
    return f"{text} ended at max_tokens without a usable sentence"


def _settled(completion: Completion, rule: Unfinished) -> tuple[str | None, str]:
    if not completion.is_cut:
        return completion.text, WHOLE
    if rule == "keep":
        return completion.text, KEPT
    whole = whole_sentences(completion.text) if rule == "trim" else ""
    return (whole, TRIMMED) if whole.strip() else (None, DROPPED)


# -- sentences

_END = re.compile(
    r"""
    (?: [.!?…]+ (?:["'”’»)\]*_]|\s»)* (?=\s|$)   # Latin, Greek, Cyrillic … scripts need a space
      | [。！？｡] ["'”’»」』）)】]*                 # Chinese and Japanese do not
      | [।॥؟۔։።] (?=\s|$)
    )
    """,
    re.VERBOSE,
)
# A period after one of these ends no sentence: an abbreviation, an initial, or the number of a list item.
_NO_END = re.compile(
    r"""
    (?: \b(?:mr|mrs|ms|dr|prof|st|sr|jr|vs|etc|e\.g|i\.e|cf|approx|fig|vol|inc|ltd|dept|u\.s|a\.m|p\.m)
      | (?:^|[\s(."'])[^\W\d_]           # an initial, also the last one of "U.S."
      | (?:^|\n)[\s>*_\#-]*\(?\d+        # 2. at the start of a line
    )\.$
    """,
    re.VERBOSE | re.IGNORECASE,
)
_PRONOUN = re.compile(r"(?:^|\W)I\.$")  # "so do I." is no initial
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)


def whole_sentences(text: str) -> str:
    """The text up to the end of its last whole sentence; empty if it has none.

    In doubt (an abbreviation, a number at the very end, which may go on) an earlier end is taken. An end
    within a block of code that the text does not close is none.
    """
    for match in reversed(list(_END.finditer(text))):
        whole = text[: match.end()]
        if _ends(text, match) and not len(_FENCE.findall(whole)) % 2:
            return whole
    return ""


def _ends(text: str, match: re.Match) -> bool:
    before = text[: match.start() + 1]
    after = text[match.end() :].lstrip()
    if before.endswith(".") and not match.group().startswith(".."):
        if _NO_END.search(before[-40:]) and not _PRONOUN.search(before):
            return False
        if not after and before[-2:-1].isdigit():
            return False
    return not after[:1].islower()
