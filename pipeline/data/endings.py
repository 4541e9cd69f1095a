"""How sampled texts ended, counted per step of a method, from the column `endings` of its data set.

An entry of the column is `step: ending`. The step is the configuration field that says how the text was
sampled, such as `analyse`, so that a reader knows which `max_tokens` to raise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A text ended by itself, or it ended at max_tokens and was …
WHOLE = "whole"
TRIMMED = "trimmed"  # … cut back to its last whole sentence
DROPPED = "dropped"  # … left out
KEPT = "kept"  # … used as a training target as it is
CUT = "cut"  # … used as it is, and no training target holds it

_DONE = {
    TRIMMED: "trimmed to the last whole sentence",
    DROPPED: "dropped",
    KEPT: "kept as training targets",
    CUT: "kept, outside the training targets",
}


def entry(step: str, ending: str) -> str:
    """An entry of the column `endings`."""
    return f"{step}: {ending}"


@dataclass(frozen=True)
class Endings:
    """Of one step: the number of texts, and of those that ended at max_tokens, by what was done with them."""

    step: str
    texts: int
    cut: dict[str, int]

    @property
    def share(self) -> float:
        """The share of texts that ended at max_tokens."""
        return sum(self.cut.values()) / self.texts

    def told(self) -> str:
        """A sentence for people: how many texts ended at max_tokens, what was done, and the remedy."""
        draw = self.step.partition("_")[0]  # a step `analyse_safe` is sampled as `analyse` is
        ways = ", ".join(f"{count:,} {_DONE[way]}" for way, count in self.cut.items())
        return (
            f"{self.step}: {sum(self.cut.values()):,} of {self.texts:,} texts ({self.share:.1%}) ended at"
            f" max_tokens ({ways}); raise {draw}.max_tokens for whole texts"
        )


def by_step(counts: Mapping[str, int]) -> list[Endings]:
    """The endings of every step. counts: entries of the column → how many."""
    found = []
    for step in sorted({name.rpartition(": ")[0] for name in counts}):
        of = {way: counts[entry(step, way)] for way in (WHOLE, *_DONE) if counts.get(entry(step, way))}
        found.append(Endings(step, sum(of.values()), {way: n for way, n in of.items() if way != WHOLE}))
    return found


def told(facts: Mapping[str, Any]) -> list[str]:
    """A sentence per step with texts that ended at max_tokens, and one on thoughts that did.

    facts: of a finished data set (see `Store.complete`).
    """
    found = [endings.told() for endings in by_step(facts.get("endings", {})) if endings.cut]
    return found + unended(facts)


def unended(facts: Mapping[str, Any]) -> list[str]:
    """A sentence on answers that are missing, since max_tokens ended the model in its thought."""
    if not (count := facts.get("unended_thoughts")):
        return []
    return [
        f"{count:,} of {facts['thoughts']:,} answers with a thought were thoughts without an end: raise"
        " max_tokens, or turn thinking off with model.chat_template_kwargs"
    ]
