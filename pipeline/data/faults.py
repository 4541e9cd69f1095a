"""Faults of sampled texts, counted per step of a method, from the column `faults` of its data set.

An entry of the column is `step: fault`. If the row is dropped for it, the entry is its `error` too. Quality
gates (`pipeline.gates`) find the faults of texts. Two come of a comparison with a judge or a label. The last
two say that something is missing: an answer, or a judge's verdict.
"""

from collections import Counter
from collections.abc import Mapping

from pipeline.data import endings

EMPTY, SHORT, LOOP, ECHO = "empty", "too short", "degenerate repetition", "echo"
META, LANGUAGE = "meta line", "other language"
CONTRADICTION, MISLABELED = "contradicts the judge", "contradicts the label"
NO_ANSWER = "no harmless answer"  # to analyze: the text is missing
NO_VERDICT = "no verdict"  # the judge's reply could not be read
FAULTS = (EMPTY, SHORT, LOOP, ECHO, META, LANGUAGE, CONTRADICTION, MISLABELED, NO_ANSWER, NO_VERDICT)
_MISSING = {
    NO_ANSWER: "{} rows have no harmless answer to analyze",
    NO_VERDICT: "the judge gave no verdict that can be read on {} rows",
}


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
    sentences = []
    for step, found in by_step(counts).items():
        if of_texts := {fault: count for fault, count in found.items() if fault not in _MISSING}:
            total = f" of {texts[step]:,}" if texts[step] else ""
            listed = ", ".join(f"{count:,} {fault}" for fault, count in of_texts.items())
            sentences.append(f"{step}: faults in {sum(of_texts.values()):,}{total} texts ({listed})")
        sentences += [
            f"{step}: {_MISSING[fault].format(f'{count:,}')}"
            for fault, count in found.items()
            if fault in _MISSING
        ]
    return sentences


def unjudged(counts: Mapping[str, int], rows: int) -> str | None:
    """A sentence if a judge of a data set could judge less than half of its rows. counts: as of `told`."""
    for step, found in by_step(counts).items():
        if 2 * (count := found.get(NO_VERDICT, 0)) > rows:
            return (
                f"{step}: the judge gave no verdict that can be read on {count:,} of {rows:,} rows, so nobody"
                " knows what they are: use another judge"
            )
    return None
