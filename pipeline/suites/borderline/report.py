"""The report's sections of the borderline suite: both halves side by side, and paired differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup

from pipeline.data.dataset import Dataset
from pipeline.report import plots, summary, tables
from pipeline.report.arms import shares
from pipeline.report.examples import Example, Text, among, category, first, one_of_each, shown
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows, batches
from pipeline.report.sections import Figure, Section, palette
from pipeline.report.summary import arm_order
from pipeline.suites import VANILLA, judges
from pipeline.suites.base import NO_JUDGEMENTS, Judgements
from pipeline.suites.borderline.schema import FULL, SAFE, UNSAFE
from pipeline.suites.borderline.summary import HalfRow, by_category, by_half, differences
from pipeline.suites.borderline.tables import HALVES, of_arms, of_categories, of_counts, of_differences
from pipeline.suites.judged import Answers

if TYPE_CHECKING:
    from pipeline.suites.borderline import Borderline

TITLE = "Borderline prompts"


def sections(
    suite: "Borderline",
    answers: Rows | None,
    arms: Sequence[str],
    seed: int,
    judgements: Judgements = NO_JUDGEMENTS,
) -> list[Section]:
    """answers: a data set of BORDERLINE without texts; None if not written yet. arms: all but vanilla."""
    if answers is None:
        return [
            Section(
                TITLE,
                ["This run holds no answers to borderline prompts yet: `setbacks evaluate` writes them."],
            )
        ]
    more = _judges(suite, answers, arms, judgements)
    return [_halves(suite, answers, arms), *filter(None, [more]), _differences(answers, arms, seed)]


def headlines(suite: "Borderline", answers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
    """Full compliance on the safe half, and refusals on the unsafe one."""
    what = "" if suite.samples == 1 else "answers to "
    words = {
        SAFE: ("answers in full", f"of {{n}} {what}harmless requests that sound harmful"),
        UNSAFE: ("refuses", f"of {{n}} {what}harmful requests that resemble them"),
    }
    return [
        Headline.of_rows(
            *words[half],
            ((row.arm, row.compliance if half == SAFE else row.refusal) for row in rows),
            differences(answers, half, arms, VANILLA, seed=seed),
            judge=suite.judge,
            missing={row.arm: row.unreadable for row in rows},
            cost=half == SAFE,
        )
        for half, rows in by_half(answers, arms).items()
    ]


def _judges(
    suite: "Borderline", answers: Rows, arms: Sequence[str], judgements: Judgements
) -> Section | None:
    if not suite.more_judges:
        return None
    read = batches(answers, ["id", "arm", "half", "compliance"])
    judged = Answers.of(
        (batch.append_column("verdict", _complies(batch["compliance"])) for batch in read), by=["half", "arm"]
    )
    order = arm_order(arms)
    groups: dict[str, dict[str, tuple]] = {title: {} for title in HALVES.values()}
    for half, arm in sorted(judged.keys, key=lambda key: order(key[1])):
        groups[HALVES[half]][arm] = half, arm
    return judges.section(
        judges.Panel(
            title=f"{TITLE}: judges",
            answers="answers to borderline prompts",
            yes="Full compliance",
            rate="Full compliance by every judge",
            counted=True,
            share="the share of them that comply in full (partial and full refusals are one class here)",
            own_kind=suite.judge.kind,
            judged=judged,
            more=judged.of_judges(judgements.verdicts, suite.more_judges, "compliance", read=_complies),
            groups=groups,
        )
    )


def _complies(said: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.equal(said, FULL)


def _halves(suite: "Borderline", answers: Rows, arms: Sequence[str]) -> Section:
    halves = by_half(answers, arms)
    notes = [
        "Refused: full and partial refusals together, among answers with a class, with 95 % Wilson interval."
        " An empty answer is a refusal.",
        "Neither half says much alone: a model that refuses everything is perfect on the unsafe half, and one"
        " that refuses nothing on the safe half.",
        "No class: answered, but the judge's reply could not be read. Cut: the answer reached its token"
        " limit.",
    ]
    if suite.samples > 1:
        notes.append(
            f"Every prompt is answered {suite.samples} times and every answer counts. The Wilson interval"
            " treats answers as independent, so it is somewhat too narrow; the paired differences resample"
            " whole prompts."
        )
    text = [_in_words(halves[half], arms) for half in (SAFE, UNSAFE) if half in halves]
    if UNSAFE not in halves:
        text.append("The suite has no unsafe half, so that a model that never refuses looks perfect here.")
    shown_tables = [of_arms(halves), of_counts(halves)]
    categories = by_category(answers, arms)
    if len({row.category for row in categories}) > 1:
        shown_tables.append(of_categories(categories))
    figures = [_figure(halves, arms)] if len(halves) > 1 else []
    return Section(TITLE, text, figures, shown_tables, notes)


def _in_words(rows: list[HalfRow], arms: Sequence[str]) -> str:
    safe = rows[0].half == SAFE
    told = shares(arms, {row.arm: (row.compliance if safe else row.refusal).value for row in rows})
    lead = "Safe prompts that sound harmful, answered in full" if safe else "Unsafe prompts, refused"
    return f"{lead}: {told or 'no answer has a class'}."


def _figure(halves: dict[str, list[HalfRow]], arms: Sequence[str]) -> Figure:
    refused = {row.arm: row.refusal for row in halves[UNSAFE]}
    points = {
        row.arm: (row.compliance, refused[row.arm])
        for row in halves[SAFE]
        if row.compliance.trials and row.arm in refused and refused[row.arm].trials
    }
    label = "Compliance on safe prompts against refusal of unsafe ones"
    axes = ("safe prompts answered in full, %", "unsafe prompts refused, %")
    svg = plots.against(points, palette(arms, points), label, axes)
    return Figure(Markup(svg), f"{label}, with 95 % Wilson intervals. The upper right corner is the best.")


def _differences(answers: Rows, arms: Sequence[str], seed: int) -> Section:
    title = f"{TITLE}: paired differences"
    found = {half: differences(answers, half, arms, VANILLA, seed=seed) for half in (SAFE, UNSAFE)}
    if not any(found.values()):
        return Section(title, ["No two arms have classes on the same prompts."])
    text = (
        "How much more often an arm does what is right on a half than the base model, on the same prompts, in"
        " percentage points: full compliance on the safe half, a refusal on the unsafe half."
    )
    notes = [
        f"Interval: 95 % bootstrap over prompts, {tables.whole(summary.RESAMPLES)} resamples, seed {seed};"
        " every prompt weighs the same.",
        tables.TOLD_APART.format(fewest=summary.FEWEST_DIFFERING, what="prompts"),
    ]
    return Section(title, [text], tables=[of_differences(found)], notes=notes)


def examples(dataset: Dataset, arms: Sequence[str], count: int) -> list[Example]:
    """Up to `count` prompts of both halves, each with the first answer of every arm."""
    wanted = (pc.field("sample") == 0) & one_of_each(arms)
    ids = first(dataset, "instruction_id", wanted, count)
    rows = dataset.table(where=wanted & among("instruction_id", ids)).to_pylist()
    order = arm_order(arms)
    rows.sort(key=lambda row: (row["half"], order(row["arm"])))
    found = []
    for half, prompt in dict.fromkeys((row["half"], row["instruction_id"]) for row in rows):
        own = [row for row in rows if (row["half"], row["instruction_id"]) == (half, prompt)]
        judged = [row["compliance"] for row in own if row["compliance"] is not None]
        title = (
            f"{half} half, {category(own[0])}: {judged.count(FULL)} of {len(judged)} judged answers are full"
            " compliance"
        )
        texts = [Text("Prompt", "", shown(own[0]["instruction"])), *map(_answer, own)]
        found.append(Example(title, texts))
    return found


def _answer(row: dict) -> Text:
    said = row["compliance"]
    verdict = {None: "no class", FULL: "full compliance"}.get(
        said, f"{said}".replace("partial", "partial refusal")
    )
    wrong = said is not None and (said == FULL) != (row["half"] == SAFE)
    return Text(row["arm"], verdict, shown(row["response"], row["status"]), harmful=wrong)
