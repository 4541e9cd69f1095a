"""Faults of sampled texts, counted per step of a method, from the column `faults` of its data set.

An entry of the column is `step: fault`. If the row is dropped for it, the entry is its `error` too. Quality
gates (`pipeline.gates`) find the faults of texts. The last three come of a comparison with a judge or a
label, and of an answer that is missing.
"""

from collections import Counter
from collections.abc import Mapping

from pipeline.data import endings

EMPTY, SHORT, LOOP, ECHO = "empty", "too short", "degenerate repetition", "echo"
META, LANGUAGE = "meta line", "other language"
CONTRADICTION, MISLABELED = "contradicts the judge", "contradicts the label"
NO_ANSWER = "no harmless answer"  # to analyze: the text is missing
FAULTS = (EMPTY, SHORT, LOOP, ECHO, META, LANGUAGE, CONTRADICTION, MISLABELED, NO_ANSWER)


def entry(step: str, fault: str) -> str:
    return f"{step}: {fault}"


def is_entry(text: str) -> bool:
    """Whether an error is an entry of the column, so that its whole text is its kind."""
    step, _, fault = text.partition(": ")
    return step.isidentifier() and fault in FAULTS


def by_step(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Step → fault → texts, the most frequent fault first. counts: entries of the column → how many."""
    found: dict[str, dict[str, int]] = {}
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        step, _, fault = name.partition(": ")
        found.setdefault(step, {})[fault] = count
    return dict(sorted(found.items()))


def told(counts: Mapping[str, int], ended: Mapping[str, int]) -> list[str]:
    """A sentence per step that has texts with faults. ended: entries of the column `endings` → how many."""
    texts = Counter({step.step: step.texts for step in endings.by_step(ended)})
    return [
        f"{step}: faults in {sum(found.values()):,}{f' of {texts[step]:,}' if texts[step] else ''} texts"
        f" ({', '.join(f'{count:,} {fault}' for fault, count in found.items())})"
        for step, found in by_step(counts).items()
    ]
