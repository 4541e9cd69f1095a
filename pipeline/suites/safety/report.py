"""The report's sections of the safety suite: arms, paired differences, categories."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pyarrow.compute as pc
from markupsafe import Markup

from pipeline.data.dataset import Dataset
from pipeline.report import plots, summary, tables
from pipeline.report.arms import Arms, shares
from pipeline.report.examples import Example, Text, among, category, first, judged_text, one_of_each, shown
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.sections import Figure, Section, palette
from pipeline.report.summary import arm_order
from pipeline.suites import VANILLA
from pipeline.suites.base import NO_JUDGEMENTS, OWN_JUDGE, Judgements
from pipeline.suites.safety import judges
from pipeline.suites.safety.summary import (
    CONDITIONS,
    ArmRow,
    arms_table,
    by_category,
    paired_difference,
    paired_differences,
    paired_scores,
    refusal_difference,
)
from pipeline.suites.safety.tables import of_arms, of_categories, of_counts, of_differences, of_scores

if TYPE_CHECKING:
    from pipeline.suites.safety import Safety

LARGEST_CATEGORIES = 12

SHOWN_CONDITIONS = ("plain", "reminder", "think")  # not the hint: it asks for harm


def sections(
    suite: "Safety",
    answers: Rows | None,
    arms: Sequence[str],
    seed: int,
    judgements: Judgements = NO_JUDGEMENTS,
) -> list[Section]:
    """answers: a data set of ANSWERS without texts; None if not written yet. arms: all but vanilla."""
    if answers is None:
        return [Section("Arms", ["This run holds no evaluation yet: `setbacks evaluate` writes it."])]
    return [
        _arms(suite, answers, arms, judgements),
        *filter(None, [judges.section(suite, answers, arms, judgements)]),
        _differences(suite, answers, arms, seed),
        _categories(suite, answers, arms),
    ]


ASKED = {
    "plain": "",
    "reminder": " asked with the reminder",
    "hint": " asked under the induction hint",
    "think": " asked after thinking about harm",
}


def headlines(suite: "Safety", answers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
    """Harmless answers under the first condition, and refusals of benign instructions."""
    condition = suite.conditions[0]
    rows = [row for row in arms_table(answers, arms) if row.condition == condition]
    what = "" if suite.samples == 1 else "answers to "
    found = [
        Headline.of_rows(
            "answers harmlessly in",
            f"of {{n}} {what}harmful requests{ASKED[condition]}",
            ((row.arm, row.harmless) for row in rows),
            (paired_difference(answers, arm, VANILLA, condition, seed=seed) for arm in arms),
            judge=suite.harmless,
            missing={row.arm: row.unreadable for row in rows},
        )
    ]
    asked = next((name for name in suite.conditions if name != "hint"), None)
    if suite.helpful is not None and asked is not None:
        benign = [row for row in arms_table(answers, arms) if row.condition == asked]
        found.append(
            Headline.of_rows(
                "refuses",
                f"of {{n}} {what}harmless requests{ASKED[asked]}",
                ((row.arm, row.over_refusal) for row in benign),
                (refusal_difference(answers, arm, VANILLA, asked, seed=seed) for arm in arms),
                by="by refusal phrases",
                cost=True,
            )
        )
    return found


def _arms(suite: "Safety", answers: Rows, arms: Sequence[str], judgements: Judgements) -> Section:
    rows = arms_table(answers, arms)
    conditions, rates = _conditions(rows), {(r.arm, r.condition): r.harmless for r in rows}
    shown = dict.fromkeys(r.arm for r in rows)
    panels = [
        plots.Panel(c, [(arm, {arm: rates.get((arm, c), summary.Rate(0, 0))}) for arm in shown])
        for c in conditions
    ]
    svg = plots.rates(
        panels, _palette(arms, rows), "Harmless rate of every arm under every condition", legend=False
    )
    notes = [
        "Harmless: of the judged answers to red-team instructions, the share judged harmless by"
        f" {suite.harmless.called}, with 95 % Wilson interval. Corrected: the same, corrected for the judge's"
        " measured error (Rogan and Gladen), if it errs on these answers as on the labeled ones."
    ]
    if any(r.harmless_score.n for r in rows):
        notes.append(
            "Harmless 1–10: the mean of the judge's ratings of answers to red-team instructions, averaged"
            " over instructions, with 95 % normal interval over instructions."
        )
    if any(r.harm_score.n for r in rows):
        notes.append(
            "StrongREJECT 0–1: the mean score by its rubric on the authors' scale, from 0 (harmless) to 1;"
            " lower is better. Another scale in circulation runs from 1 to 5."
        )
    if any(r.other_category for r in rows):
        notes.append(
            "Other category: judged unsafe, but in no category that the configuration counts as harmful; it"
            " counts as harmless."
        )
    if suite.samples > 1:
        notes.append(
            f"Every instruction is answered {suite.samples} times and every answer counts. The Wilson"
            " interval treats answers as independent, so it is somewhat too narrow; the paired differences"
            " resample whole instructions."
        )
    if suite.help:
        notes.append(
            "Help and Harm-Help: rating from 1 to 10 on benign and on red-team instructions, averaged over"
            " instructions, with 95 % normal interval over instructions. No rating: answered, but the rating"
            " could not be read."
        )
    if suite.helpful:
        notes.append(
            "Over-refusal: the share of answers to benign instructions that are refusals by their phrases;"
            " lower is better."
        )
    notes.append(
        "No verdict: answered, but the judge's reply could not be read. Cut: the answer reached its token"
        " limit."
    )
    if any(r.deliberations_cut for r in rows):
        notes.append(
            "Deliberations cut: what came before the answer reached the limit, and was used as it is."
        )
    notes.append(
        "Bold: the best of its group. Paired differences says whether it is better by more than chance."
    )
    figure = Figure(
        Markup(svg),
        f"Harmless rate by {suite.harmless.called} per arm and condition, with 95 % Wilson intervals.",
    )
    rated, helpful = suite.help is not None, suite.helpful is not None
    error = judgements.errors.get(OWN_JUDGE)
    both = [of_arms(rows, rated=rated, helpful=helpful, error=error), of_counts(rows, rated=rated)]
    text = [_in_words(rows, c, suite.harmless.called, arms) for c in conditions]
    text += [*filter(None, [suite.harmless.blind]), judges.told(suite, judgements.errors)]
    return Section("Arms", text, [figure], both, notes)


def _in_words(rows: list[ArmRow], condition: str, judge: str, arms: Sequence[str]) -> str:
    found = {r.arm: r for r in rows if r.condition == condition}

    def counts(names: list[str]) -> str:
        judged, unreadable = (sum(getattr(found[n], of) for n in names) for of in ("judged", "unreadable"))
        missing = f" ({tables.whole(unreadable)} more without a verdict)" if unreadable else ""
        return f" of {tables.whole(judged)}{missing}"

    told = shares(arms, {name: row.harmless.value for name, row in found.items()}, counts)
    lead = {
        "plain": "Asked plainly",
        "reminder": "With the reminder",
        "hint": "Under the induction hint",
        "think": "Asked to think about harm first",
    }[condition]
    return f"{lead}, answers judged harmless by {judge}: {told or 'none was judged'}."


def _differences(suite: "Safety", answers: Rows, arms: Sequence[str], seed: int) -> Section:
    pairs = [(arm, VANILLA) for arm in arms]
    known = Arms.of(arms)
    others = [arm for arm in arms if known.arm(arm) != "sft"]
    pairs += [(arm, baseline) for arm in others for baseline in known.baselines(arm, "sft")]
    differences = paired_differences(answers, pairs, SHOWN_CONDITIONS, seed=seed)
    if not differences:
        return Section("Paired differences", ["No two arms were judged on the same instructions."])
    text = (
        f"Harmless rate by {suite.harmless.called} of one arm minus that of another, on the same red-team"
        " instructions, in percentage points."
    )
    bootstrap = (
        f"Interval: 95 % bootstrap over instructions, {tables.whole(summary.RESAMPLES)} resamples, seed"
        f" {seed}; every instruction weighs the same. Better, worse, same: on how many instructions the first"
        " arm was harmless more often, less often, as often."
    )
    notes = [bootstrap, tables.TOLD_APART.format(fewest=summary.FEWEST_DIFFERING, what="instructions")]
    shown = [of_differences(differences)]
    if scores := paired_scores(answers, pairs, SHOWN_CONDITIONS, seed=seed):
        shown.append(of_scores(scores))
    return Section("Paired differences", [text], tables=shown, notes=notes)


def _categories(suite: "Safety", answers: Rows, arms: Sequence[str]) -> Section:
    rows = by_category(answers, arms)
    categories = list(dict.fromkeys(r.category for r in rows))
    if not categories:
        return Section("By category", ["No answer to a red-team instruction was judged."])
    shown = categories[:LARGEST_CATEGORIES]
    panels = [
        plots.Panel(
            c,
            [
                (name, {r.arm: r.harmless for r in rows if (r.condition, r.category) == (c, name)})
                for name in shown
            ],
        )
        for c in _conditions(rows)
    ]
    svg = plots.rates(panels, _palette(arms, rows), "Harmless rate of every arm per category and condition")
    caption = (
        f"Harmless rate by {suite.harmless.called} per category, with 95 % Wilson intervals; the category"
        " with the most judged answers on top."
    )
    if len(categories) > len(shown):
        caption += f" {len(categories) - len(shown)} smaller categories are left out."
    return Section("By category", figures=[Figure(Markup(svg), caption)], tables=[of_categories(rows)])


def _palette(arms: Sequence[str], rows: list) -> Sequence[str]:
    return palette(arms, [r.arm for r in rows])


def _conditions(rows: list) -> list[str]:
    return [c for c in CONDITIONS if any(r.condition == c for r in rows)]


def examples(dataset: Dataset, arms: Sequence[str], count: int) -> list[Example]:
    """Up to `count` red-team instructions, each with the first answer of every arm, plain and with the
    reminder."""
    wanted = (
        (pc.field("suite") == "harmful")
        & pc.field("condition").isin(SHOWN_CONDITIONS)
        & (pc.field("sample") == 0)
        & one_of_each(arms)
    )
    ids = first(dataset, "instruction_id", wanted, count)
    rows = dataset.table(where=wanted & among("instruction_id", ids)).to_pylist()
    order = arm_order(arms)
    rows.sort(key=lambda r: (CONDITIONS.index(r["condition"]), order(r["arm"])))
    examples = []
    for instruction_id in ids:
        own = [r for r in rows if r["instruction_id"] == instruction_id]
        verdicts = [r["harmful"] for r in own if r["harmful"] is not None]
        title = f"{category(own[0])}: {verdicts.count(False)} of {len(verdicts)} judged answers harmless"
        texts = [
            judged_text(f"{r['arm']}, {r['condition']}", r["harmful"], shown(r["response"], r["status"]))
            for r in own
        ]
        examples.append(Example(title, [Text("Instruction", "", shown(own[0]["instruction"])), *texts]))
    return examples
