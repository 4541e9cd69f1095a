"""How often the quality gates are right: `python -m tests.gates_measured [FILE.jsonl …]`.

It prints the confusion table of the labelled set, and the false alarms on the toy world's texts and on
responses of other files, which have columns `prompt` and `response_0`, `response_1`, … It prints no text.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from pipeline import prompts
from pipeline.gates import ECHO, LOOP, REASONS, Gates, verdict_of_analysis
from pipeline.methods.mistake_analysis.recipe import question
from pipeline.methods.unfinished import whole_sentences
from pipeline.toy import world

LABELED = Path(__file__).parent / "data" / "labelled_answers.jsonl"
CUT = "cut at the limit"  # not a gate: the rule of `methods.unfinished`, asked after the gates
LABELS = ("fine", "loop", "echo", "cut", "off topic")
SETS = ("tuning", "seen", "unseen")
FOUND_BY = {LOOP: "loop", ECHO: "echo", CUT: "cut"}


def labeled(*sets: str) -> list[dict]:
    rows = [json.loads(line) for line in LABELED.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if not sets or row["set"] in sets]


def confusion(gates: Gates, rows: list[dict]) -> Counter[tuple[str | None, str]]:
    """Rows by reason and label."""
    return Counter(
        (
            gates.reason(row["response"], row["instruction"], hint=row["hint"] or "") or _cut(row),
            row["label"],
        )
        for row in rows
    )


def _cut(row: dict) -> str | None:
    text = row["response"].strip()
    return CUT if row["finish_reason"] == "length" and whole_sentences(text) != text else None


def scores(table: Counter[tuple[str | None, str]], reason: str) -> tuple[int, int, int]:
    """Rows with the reason and its label, all with the reason, all with the label: precision is the first by
    the second, recall the first by the third.

    A text that is off topic can also be cut (the labels name the worse fault), so those do not count against
    the gate for cut texts.
    """
    label = FOUND_BY[reason]
    named = sum(
        count
        for (given, of), count in table.items()
        if given == reason and not (reason == CUT and of == "off topic")
    )
    return table[reason, label], named, sum(table[given, label] for given in (*REASONS, CUT, None))


def toy_texts() -> Iterator[tuple[str, str, str, dict]]:
    """Texts of the toy world, all without a fault: kind, instruction, text, keywords for `Gates.reason`."""
    rng = random.Random(0)
    asked = prompts.load("methods/mistake_analysis/prompts.yaml")
    for split in ("harmful-train", "harmful-heldout", "helpful-train", "helpful-heldout"):
        for deed in world.deeds(split):
            instruction = world.question(deed, rng)
            if deed.harmful:
                responses = [
                    ("refusal", world.refusal(deed, rng)),
                    ("mistake", world.mistake(deed, rng, 0.3)),
                ]
                detailed = world.question(deed, rng, detailed=True)
                yield "plan", detailed, world.plan(deed, rng), {}
                yield "correction", detailed, world.correction(deed, rng), {}
            else:
                responses = [
                    ("helpful answer", world.helpful(deed, rng)),
                    ("insult", world.insult(deed, rng)),
                    ("needless refusal", world.needless_refusal(deed, rng)),
                ]
            for kind, response in responses:
                yield kind, instruction, response.text, {}
                shown = question(asked, instruction, response.text, guided=True)
                about = {"prompt": shown, "about_response": True}
                yield "analysis", instruction, world.analysis(deed, response, rng), about
                yield "critique", instruction, world.critique(deed, response, rng), about


def toy_alarms(gates: Gates, every: int = 1) -> dict[str, Counter[str | None]]:
    """Reasons by kind of text; everything but None is a false alarm. every: of so many texts, one is looked at."""
    found: dict[str, Counter[str | None]] = {}
    for kind, instruction, text, more in islice(toy_texts(), None, None, every):
        found.setdefault(kind, Counter())[gates.reason(text, instruction, **more)] += 1
    return found


def toy_verdicts() -> Counter[tuple[bool, bool | None]]:
    """Toy analyses by their true verdict (harmful or not) and the one that is read."""
    rng = random.Random(0)
    found: Counter[tuple[bool, bool | None]] = Counter()
    for split in ("harmful-train", "harmful-heldout", "helpful-train", "helpful-heldout"):
        for deed in world.deeds(split):
            bad = world.mistake(deed, rng, 0.3) if deed.harmful else world.insult(deed, rng)
            good = world.refusal(deed, rng) if deed.harmful else world.helpful(deed, rng)
            for response, harmful in ((bad, True), (good, False)):
                found[harmful, verdict_of_analysis(world.analysis(deed, response, rng))] += 1
    return found


def _alarms(name: str, reasons: Counter[str | None]) -> str:
    alarms = ", ".join(f"{reason} {count}" for reason, count in reasons.items() if reason)
    return f"| {name} | {reasons.total()} | {reasons.total() - reasons[None]} | {alarms or '-'} |"


def main(files: list[str]) -> None:
    gates = Gates()
    for name in SETS:
        table = confusion(gates, labeled(name))
        print(
            f"\n### {name}: {table.total()} answers\n\n| reason | {' | '.join(LABELS)} |\n|---|{'---:|' * 5}"
        )
        for reason in (*REASONS, CUT, None):
            print(f"| {reason or 'none'} | {' | '.join(str(table[reason, label]) for label in LABELS)} |")
        print("\n| reason | precision | recall |\n|---|---|---|")
        for reason in FOUND_BY:
            right, named, there = scores(table, reason)
            print(f"| {reason} | {right} of {named} | {right} of {there} |")
    print("\n### False alarms\n\n| texts | number | alarms | reasons |\n|---|---:|---:|---|")
    for kind, reasons in toy_alarms(gates).items():
        print(_alarms(f"toy: {kind}", reasons))
    for file in files:
        rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
        texts = [
            (row["prompt"], text) for row in rows for key, text in row.items() if key.startswith("response_")
        ]
        print(_alarms(Path(file).stem, Counter(gates.reason(text, asked) for asked, text in texts)))
    print("\n### Verdicts of the toy's analyses (true, read)\n")
    for (true, read), count in sorted(toy_verdicts().items(), key=str):
        print(f"{true}, {read}: {count}")


if __name__ == "__main__":
    main(sys.argv[1:])
