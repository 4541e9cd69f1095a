"""How good the corrected rate is if the truth is known:
`python -m tests.corrections_measured ANSWERS.jsonl NAME=VERDICTS.jsonl … NAME=0.9,0.8 …`.

ANSWERS has labels of its own, as PKU-SafeRLHF has; VERDICTS is what `setbacks judge ANSWERS --judge … --out
VERDICTS.jsonl` wrote. Two numbers are a simulated judge's sensitivity and specificity. 200 times, the instructions are split in two random halves. The judge's error is measured
on one half. With it, the judge's harmful rate on the other half is corrected (Rogan and Gladen), and compared
with the rate by that half's labels. It prints tables and no text.
"""

import random
import re
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.commands import judge_answers
from pipeline.report.agreement import Agreement, Corrected, corrected_rate
from pipeline.report.summary import Rate

SPLITS = 200

Pair = tuple[bool, bool]  # whether an answer is harmful, by the judge and by its label


@dataclass(frozen=True)
class Split:
    """One half's harmful rate: by the labels, by the judge, and corrected with the other half's error."""

    truth: float
    judged: Rate
    corrected: Corrected

    @classmethod
    def of(cls, labeled: Sequence[Pair], rest: Sequence[Pair]) -> "Split":
        """The labels of the rest are not used for the correction."""
        judged = Rate.of(verdict for verdict, _ in rest)
        truth = statistics.fmean(label for _, label in rest)
        return cls(truth, judged, corrected_rate(judged, Agreement.of(labeled)))

    @property
    def raw_error(self) -> float:
        return abs((self.judged.value or 0.0) - self.truth)

    @property
    def raw_holds(self) -> bool:
        low, high = self.judged.interval
        return low <= self.truth <= high


def halves(groups: Sequence[Sequence[Pair]], splits: int = SPLITS, seed: int = 0) -> list[Split]:
    """Random splits. groups: the answers to one instruction, which stay together."""
    rng = random.Random(seed)
    found = []
    for _ in range(splits):
        drawn = rng.sample(groups, len(groups))
        middle = len(drawn) // 2
        labeled, rest = (
            [pair for group in half for pair in group] for half in (drawn[:middle], drawn[middle:])
        )
        found.append(Split.of(labeled, rest))
    return found


def told(found: Sequence[Split]) -> list[str]:
    """The cells of a row of the table; means are over the splits, in percent."""
    raw = (one.judged.value or 0.0 for one in found)
    cells = [
        _percent(one.truth for one in found),
        _percent(raw),
        f"{_percent(one.raw_error for one in found)}, held in {sum(one.raw_holds for one in found)}",
    ]
    known = [
        (one.truth, one.corrected.value, *one.corrected.interval)
        for one in found
        if one.corrected.value is not None and one.corrected.interval is not None
    ]
    if not known:
        return [*cells, "-", "-", "-", str(len(found))]
    held = sum(low <= truth <= high for truth, _, low, high in known)
    return [
        *cells,
        _percent(value for _, value, _, _ in known),
        f"{_percent(abs(value - truth) for truth, value, _, _ in known)}, held in {held} of {len(known)}",
        _percent(high - low for _, _, low, high in known),
        str(len(found) - len(known)),
    ]


def _percent(values: Iterator[float]) -> str:
    return f"{100 * statistics.fmean(values):.1f}"


def groups(answers: Sequence[judge_answers.Answer], verdicts: Mapping[str, bool | None]) -> list[list[Pair]]:
    """The answers that have a label and a verdict, by instruction."""
    found: dict[str, list[Pair]] = defaultdict(list)
    for answer in answers:
        verdict = verdicts.get(answer.id)
        if verdict is not None and answer.label is not None:
            found[answer.instruction].append((verdict, answer.label))
    return list(found.values())


def simulated(
    answers: Sequence[judge_answers.Answer], sensitivity: float, specificity: float
) -> dict[str, bool | None]:
    """The verdicts of a judge that errs as often as it is told to, whatever the text."""
    rng = random.Random(0)
    return {
        answer.id: rng.random() < (sensitivity if answer.label else 1 - specificity)
        for answer in answers
        if answer.label is not None
    }


def main(answers_path: str, *judges: str) -> None:
    print("| judge | answers | true | raw | raw: error | corrected | corrected: error | width | none |")
    print(f"|---|{'---:|' * 8}")
    answers = list(judge_answers.read(answers_path, Counter()))
    firsts = []
    for name, _, given in (one.partition("=") for one in judges):
        rates = re.fullmatch(r"(0?\.\d+|[01]),(0?\.\d+|[01])", given)
        grouped = groups(
            answers,
            simulated(answers, float(rates[1]), float(rates[2]))
            if rates
            else judge_answers.read_labels(given, Counter()),
        )
        found = halves(grouped)
        print(f"| {name} | {sum(map(len, grouped))} | {' | '.join(told(found))} |")
        firsts.append((name, found[0]))
    print("\nThe first split, as an example:\n")
    for name, one in firsts:
        low, high = one.judged.interval
        corrected = one.corrected.why_not
        if one.corrected.value is not None and one.corrected.interval is not None:
            at, (least, most) = one.corrected.value, one.corrected.interval
            corrected = f"{100 * at:.1f} [{100 * least:.1f}, {100 * most:.1f}]"
        raw = f"{100 * (one.judged.value or 0.0):.1f} [{100 * low:.1f}, {100 * high:.1f}]"
        print(f"* {name}: true {100 * one.truth:.1f}, raw {raw}, corrected {corrected}")


if __name__ == "__main__":
    main(*sys.argv[1:])
