"""Parts of a report, and the sections common to all methods: training and time."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from pipeline.report import plots, tables
from pipeline.report.arms import Arms
from pipeline.report.summary import VANILLA, Rate
from pipeline.report.tables import Table


@dataclass(frozen=True)
class Figure:
    """A plot and its caption."""

    svg: Markup
    caption: str


@dataclass
class Section:
    """`text` comes before the figures and tables, `notes` in small print after them."""

    title: str
    text: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def palette(arms: Sequence[str], found: Iterable[str]) -> Arms:
    """All arms, including those found in the data. An arm's position sets its color in every figure; its
    replicas share one."""
    known = Arms.of(arms)
    return Arms(dict.fromkeys([VANILLA, *arms, *found]), known.replicas, known.stages)


def training(arms: Sequence[str], trained_on: dict[str, str], logs: dict[str, list[dict]]) -> Section:
    """arms: all evaluated ones; trained_on: arm → its training data; logs: arm → logged steps, in order."""
    curves = {arm: lines for arm, lines in logs.items() if lines}
    if not curves:
        return Section("Training", ["This run holds no training log yet: `setbacks train` writes it."])
    caption = (
        "Training loss at every logged step. Arms see different examples, so their levels are not comparable."
    )
    figures = [_over_steps(arms, curves, "loss", "loss", "Training loss of every arm", caption)]
    measured = {arm: [line for line in lines if "holdout_loss" in line] for arm, lines in curves.items()}
    if measured := {arm: lines for arm, lines in measured.items() if lines}:
        caption = "Loss on what was held out of training, at every checkpoint."
        label = "Holdout loss of every arm"
        figures.append(_over_steps(arms, measured, "holdout_loss", "holdout loss", label, caption))
    margins = {
        arm: lines
        for arm, lines in curves.items()
        if all(line.get("rewards/margins") is not None for line in lines)
    }
    notes = []
    if margins:
        caption = (
            "Reward margin at every logged step: the adapter's preference for the better response, minus the"
            " reference's."
        )
        figures.append(
            _over_steps(
                arms,
                margins,
                "rewards/margins",
                "reward margin",
                "Reward margin of every arm",
                caption,
                height=1.9,
            )
        )
        notes = [
            (
                "Margin: β times the gain in log-probability, over the reference, of the better response"
                " minus that of the worse."
            ),
            "Accuracy: the share of pairs with a margin above zero.",
        ]
        if any(line.get("iteration") for lines in margins.values() for line in lines):
            notes.append(
                "In staged DPO the reference is reset to the current policy at each stage, so the"
                " margin restarts at zero."
            )
    missing = [arm for arm in trained_on if arm not in curves]
    text = [f"No training log yet: {', '.join(missing)}."] if missing else []
    return Section("Training", text, figures, [tables.of_training(curves, trained_on)], notes)


def _over_steps(
    arms: Sequence[str], curves: dict, key: str, axis: str, label: str, caption: str, **size: float
) -> Figure:
    points = {arm: [(line["step"], line[key]) for line in lines] for arm, lines in curves.items()}
    return Figure(Markup(plots.over_steps(points, palette(arms, []), label, axis, **size)), caption)


def durability(
    title: str, how: str, arms: Sequence[str], curves: dict[str, dict[int, Rate]], colors: Sequence[str]
) -> Section:
    """The harmless rate of arms over the steps of a second fine-tuning.

    title: of the suite. how: how its rates were asked for and judged. colors: all arms of the run.
    curves: arm → steps → rate; 0 is the arm itself.
    """
    points = {
        arm: [(n, rate.value, rate.interval) for n, rate in at.items() if rate.value is not None]
        for arm, at in curves.items()
    }
    label = "Harmless rate over the steps of a second fine-tuning"
    svg = plots.over_lengths(points, palette(colors, []), label, "steps of the second fine-tuning")
    steps = sorted({n for at in curves.values() for n in at})
    rows = [[tables.Cell(arm), *(tables.rate(curves[arm].get(n, Rate(0, 0))) for n in steps)] for arm in arms]
    columns = [tables.Column("Arm", "text"), *(tables.Column(f"after {n}, %", "estimate") for n in steps)]
    text = (
        f"How often arms are harmless ({how}) after so many steps of a second fine-tuning on other data, with"
        " 95 % Wilson interval. Step 0 is the arm itself."
    )
    note = (
        "An arm that was trained on openers may say an opener and no more. A judge of harm can call that"
        " harmless, and a judge by phrases of refusal calls it harmful: read answers before you believe one."
    )
    figures, table = [Figure(Markup(svg), f"{label}.")], Table("", columns, [("", rows)])
    return Section(f"Durability: {title}", [text], figures, [table], [note])


def time(stages: list[dict]) -> Section:
    """The report's section of timings, from the lines of metrics.jsonl."""
    if not stages:
        return Section("Time", ["This run holds no timings yet."])
    total = sum(line.get("seconds") or 0 for line in stages)
    note = (
        "Tokens: sampled tokens in generation, all tokens of the training sequences in training; "
        "the rate excludes engine starts. A resumed stage shows its last attempt."
    )
    shared = (
        "Suites that were evaluated together shared their engines: the first finished suite shows the engine "
        "start, and the time is split in proportion to sampled tokens."
    )
    notes = [note, shared] if sum(line["stage"] == "evaluate" for line in stages) > 1 else [note]
    text = [f"{tables.duration(total)} in all stages."]
    return Section("Time", text, tables=[tables.of_stages(stages)], notes=notes)
