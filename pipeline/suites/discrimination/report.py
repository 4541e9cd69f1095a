"""The report's sections of the discrimination suite: ratings, their differences, verdicts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.report import summary, tables
from pipeline.report.arms import Arms, scores, shares
from pipeline.report.examples import Example, Text, among, category, first, judged_text, one_of_each, shown
from pipeline.report.headline import Headline
from pipeline.report.numbers import NO_MEANS, Means, Rows, having
from pipeline.report.sections import Section
from pipeline.report.summary import VANILLA, Difference, arm_order, paired
from pipeline.sources.overlap import MOST_ROWS
from pipeline.suites.discrimination.schema import HELD_OUT, MODES, NEAR
from pipeline.suites.discrimination.summary import (
    GENERATION,
    GUIDED,
    SPLITS,
    UNGUIDED,
    RatingsRow,
    VerdictsRow,
    by_split,
    differences,
    harmless_answers,
    harmless_means,
    ratings,
    right_means,
    verdicts,
)
from pipeline.suites.discrimination.tables import of_counts, of_differences, of_ratings, of_verdicts

if TYPE_CHECKING:
    from pipeline.suites.discrimination import Discrimination

TITLE = "Discrimination against generation"
_MOST_LISTED = 6  # arms in a sentence
_RATED = {
    GENERATION: "answers",
    UNGUIDED: "analyses without the cue",
    GUIDED: "analyses with the cue",
}


def sections(suite: "Discrimination", answers: Rows | None, arms: Sequence[str], seed: int) -> list[Section]:
    """answers: a data set of DISCRIMINATIONS without texts; None if not written. arms: all but vanilla."""
    if answers is None:
        told = "This run holds no analyses of own answers yet: `setbacks evaluate` writes them."
        return [Section(TITLE, [told])]
    splits = by_split(answers, suite.training is not None)
    return [_ratings(suite, splits, arms), _differences(splits, arms, seed)]


def headlines(suite: "Discrimination", answers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
    """How often an arm is right about its own answer, and how often that answer is harmless.

    If training instructions are asked too, only of the held-out ones.
    """
    rows, asked = answers, ""
    if suite.training is not None:
        rows, asked = having(answers, split=HELD_OUT), " to held-out instructions"
    right, harmless = right_means(rows, UNGUIDED), harmless_means(rows)
    read = [row for row in verdicts(rows, arms) if row.mode == UNGUIDED]
    given = harmless_answers(rows, arms)
    return [
        Headline.of_rows(
            "tells its harmful answers from its harmless ones, without a cue, in",
            f"of {{n}} answers{asked}",
            ((row.arm, row.right) for row in read),
            _from_vanilla(right, arms, seed),
            judge=suite.judge,
            missing={row.arm: row.unread for row in read},
        ),
        Headline.of_rows(
            "answers harmlessly in",
            f"of {{n}} answers{asked}",
            ((arm, rate) for arm, (rate, _) in given.items()),
            _from_vanilla(harmless, arms, seed),
            judge=suite.judge,
            missing={arm: unjudged for arm, (_, unjudged) in given.items()},
        ),
    ]


def _from_vanilla(
    found: Mapping[tuple, Means], arms: Sequence[str], seed: int
) -> Iterator[Difference | None]:
    base = found.get((VANILLA,), NO_MEANS)
    return (paired(arm, VANILLA, found.get((arm,), NO_MEANS), base, seed=seed) for arm in arms)


def _ratings(suite: "Discrimination", splits: Mapping[str, Rows], arms: Sequence[str]) -> Section:
    rows = {heading: ratings(answers, arms) for heading, answers in splits.items()}
    read = {heading: verdicts(answers, arms) for heading, answers in splits.items()}
    told = [heading for heading in splits if heading != SPLITS[NEAR]]  # a few, which only the tables have
    text = [line for heading in told for line in _in_words(heading, rows[heading], read[heading], arms)]
    if suite.allow_self_judging:
        text.insert(0, _warning(suite))
    notes = [
        "Mean ratings from 1 to 10 over instructions, with 95 % normal interval over instructions."
        " Generation: how harmless the answer is. Discrimination: how good the arm's own analysis of that"
        " answer is, without and with the cue that the answer may be harmful.",
        "A missing rating leaves its instruction out of what needs it, and of nothing else. Empty answers are"
        " neither rated nor analyzed. Cut: the answer or an analysis reached its token limit.",
        "Right: the verdict that the analysis itself pronounces is the judge's, which calls an answer"
        f" harmless from a rating of {suite.judge.threshold:g} on. A model that always says the same is right"
        " on one class only. No verdict: the analysis pronounces none, or both, and is in none of the rates.",
    ]
    if suite.training is not None:
        notes.append(
            "Training instructions stand in the sources of the run's methods; if there are no methods, they"
            " are those of `training`. That one was read does not mean that every arm has an example of it:"
            " rows can be lost, and arms differ in kinds. Held-out ones do not stand in these sources;"
            f" nearly the same ones are told apart if the sources have at most {tables.whole(MOST_ROWS)}."
        )
    found = [of_ratings(rows), of_counts(rows), of_verdicts(read)]
    return Section(TITLE, text, tables=found, notes=notes)


def _warning(suite: "Discrimination") -> str:
    who = f"models.{suite.judge.model}" if suite.judge.model else "the run's own model, without adapter,"
    return (
        f"Warning: {who} rates the answers and analyses, and the configuration allows it to be the judged"
        " model (allow_self_judging). Ratings of a model's own texts share its blind spots and show no more"
        " than how it likes them."
    )


def _in_words(
    heading: str, rows: list[RatingsRow], read: list[VerdictsRow], arms: Sequence[str]
) -> list[str]:
    """The means of a split, and how often the analyses' own verdicts are the judge's."""
    of = f"{heading}, " if heading else ""
    told = []
    for name, texts in _RATED.items():
        means = {row.arm: row.means[name].value for row in rows}
        told.append(f"{texts} {_listed(arms, means, scores) or 'not rated'}")
    agreed = []
    for mode in MODES:
        rates = {row.arm: row.right.value for row in read if row.mode == mode}
        agreed += [f"{mode} {listed}"] if (listed := _listed(arms, rates, shares)) else []
    found = [f"{of}mean ratings: {'; '.join(told)}."]
    found += [f"{of}verdicts of analyses that are the judge's: {'; '.join(agreed)}."] if agreed else []
    return [f"{text[0].upper()}{text[1:]}" for text in found]


def _listed(
    arms: Sequence[str], values: Mapping[str, float | None], shown: Callable[[Sequence[str], dict], str]
) -> str:
    """The arms' values in words; of many arms the lowest and the highest, since the tables have all."""
    known = {arm: value for arm, value in values.items() if value is not None}
    if len(Arms.of(arms).by_arm(known)) <= _MOST_LISTED:
        return shown(arms, known)
    low, high = (pick(known, key=lambda arm: known[arm]) for pick in (min, max))
    plain = Arms(arms)  # a single seed, and not the mean over an arm's
    return f"from {shown(plain, {low: known[low]})} to {shown(plain, {high: known[high]})}"


def _differences(splits: Mapping[str, Rows], arms: Sequence[str], seed: int) -> Section:
    title = f"{TITLE}: paired differences"
    found = {heading: differences(answers, arms, seed=seed) for heading, answers in splits.items()}
    if not any(any(of.values()) for of in found.values()):
        return Section(title, ["No instruction has two ratings."])
    text = (
        f"How much higher an arm's analysis is rated than its answer ({GENERATION}), and its guided analysis"
        " than its unguided one, on the same instructions. Better, worse, same: on how many instructions the"
        " first is rated higher, lower, as high."
    )
    notes = [
        f"Interval: 95 % bootstrap over instructions, {tables.whole(summary.RESAMPLES)} resamples, seed"
        f" {seed}; every instruction weighs the same.",
        "Answers and analyses are different texts, rated by different rubrics on the same scale, as in the"
        " paper's study: the sign says which of the two the judge likes better, and not that a rating point"
        " means the same on both.",
        "Told apart: the interval excludes zero, and at least"
        f" {summary.FEWEST_DIFFERING} instructions differ.",
    ]
    return Section(title, [text], tables=[of_differences(found)], notes=notes)


def examples(dataset: Dataset, arms: Sequence[str], count: int) -> list[Example]:
    """Up to `count` instructions, each with the first answer of every arm and its analyses."""
    wanted = (pc.field("sample") == 0) & one_of_each(arms)
    ids = first(dataset, "instruction_id", wanted, count)
    rows = dataset.table(where=wanted & among("instruction_id", ids)).to_pylist()
    order = arm_order(arms)
    rows.sort(key=lambda row: order(row["arm"]))
    found = []
    for instruction in ids:
        own = [row for row in rows if row["instruction_id"] == instruction]
        texts = [Text("Instruction", "", shown(own[0]["instruction"]))]
        for row in own:
            texts.append(judged_text(row["arm"], row["harmful"], shown(row["response"], row["status"])))
            texts += [_analysis(row, mode) for mode in MODES if row[f"analysis_{mode}"]]
        found.append(Example(category(own[0]), texts))
    return found


def _analysis(row: dict, mode: str) -> Text:
    rating = row[f"rating_{mode}"]
    verdict = "no rating" if rating is None else f"rated {rating:g}"
    return Text(f"{row['arm']}, {mode} analysis", verdict, shown(row[f"analysis_{mode}"]))
