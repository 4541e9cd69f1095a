"""The report's sections of the utility suite."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.report import summary, tables
from pipeline.report.arms import percent
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows, counted
from pipeline.report.sections import Section
from pipeline.report.tables import NOTHING, Cell, Column, Number, Table
from pipeline.suites import VANILLA
from pipeline.suites.utility.summary import Compared, Counts, Score, compared, counts, scores

if TYPE_CHECKING:
    from pipeline.suites.utility import Utility

TITLE = "Utility"


def sections(suite: "Utility", rows: Rows | None, arms: Sequence[str], seed: int) -> list[Section]:
    """rows: of UTILITY; None if not written yet. arms: all but vanilla."""
    if rows is None:
        return [
            Section(TITLE, ["This run holds no numbers of utility yet: `setbacks evaluate` writes them."])
        ]
    return [_scores(suite, rows, arms), _differences(rows, arms, seed)]


@dataclass(frozen=True)
class _Share:
    value: float | None
    interval: tuple[float, float] | None
    n: int


def headlines(rows: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
    """Each task whose primary number is a share."""
    primary = [score for score in scores(rows, arms) if score.primary and score.shares]
    differences = compared(rows, arms, VANILLA, seed=seed)
    found = []
    for task in dict.fromkeys(score.task for score in primary):
        own = [score for score in primary if score.task == task]
        found.append(
            Headline.of_rows(
                f"scores on {task}",
                "on {n} documents",
                ((one.arm, _Share(one.value, one.interval, one.documents)) for one in own),
                (one.difference for one in differences if one.task == task),
                by=f"by {own[0].metric} of lm-evaluation-harness",
                cost=True,
            )
        )
    return found


def _scores(suite: "Utility", rows: Rows, arms: Sequence[str]) -> Section:
    found, behind = scores(rows, arms), counts(rows, arms)
    primary = [score for score in found if score.primary]
    harness = ", ".join(row["harness"] for row, _ in counted(rows, ["harness"]))
    how = "through the chat template" if suite.apply_chat_template else "without the chat template"
    text = [f"Measured by {harness}, {how}. Numbers of another version or prompt do not compare."]
    if limits := [row["limit"] for row, _ in counted(rows, ["limit"]) if row["limit"] is not None]:
        text.append(
            f"`limit` = {limits[0]}: only the first {limits[0]} documents of each task were taken, so these"
            " numbers are not comparable with published ones."
        )
    notes = [
        "A task's number is the mean over its documents by the first metric of its list; subtasks of a group"
        " weigh by their size. ±: the standard error over documents, as the harness gives it. Interval: 95 %,"
        " Wilson's if every document is right or wrong, else normal.",
        "Refused: what the arm wrote for a document is a refusal by its phrases. A dash: the task only"
        " compares probabilities of given answers, and the arm writes nothing.",
    ]
    if any(one.cut for one in behind):
        notes.append(
            "Cut: the prompt had more tokens than the model takes, and the harness cut its beginning."
        )
    others = [score for score in found if not score.primary]
    shown = [_of_scores("", primary), _of_counts(behind), _of_versions(rows)]
    if others:
        shown.append(_of_scores("Other metrics", others, folded=True))
    return Section(TITLE, text, tables=shown, notes=notes)


def _of_scores(title: str, found: list[Score], *, folded: bool = False) -> Table:
    """One row per task and metric, one column per arm."""
    arms = list(dict.fromkeys(score.arm for score in found))
    rows = []
    for task, metric in dict.fromkeys((score.task, score.metric) for score in found):
        of = {score.arm: score for score in found if (score.task, score.metric) == (task, metric)}
        rows.append([Cell(task), Cell(metric), *(_cell(of.get(arm)) for arm in arms)])
    columns = [Column("Task", "text"), Column("Metric", "text"), *(Column(arm, "estimate") for arm in arms)]
    return Table(title, columns, [("", rows)], folded=folded)


def _cell(score: Score | None) -> Cell:
    """A share in percent, any other number as it is."""
    if score is None or score.value is None:
        return Cell(NOTHING)
    shown, unit = (percent, " %") if score.shares else ("{:.3f}".format, "")
    low, high = score.interval or (None, None)
    interval = f"[{shown(low)}, {shown(high)}]" if low is not None and high is not None else ""
    error = f" ± {shown(score.stderr)}" if score.stderr is not None else ""
    number = Number(score.value, low, high, score.documents, "share" if score.shares else "coefficient")
    return Cell(
        f"{shown(score.value)}{error}{unit}",
        interval,
        number=number,
        shown=lambda value: f"{shown(value)}{unit}",
    )


def _of_counts(behind: list[Counts]) -> Table:
    """The documents behind the numbers, and refusals."""
    groups = []
    for task in dict.fromkeys(one.task for one in behind):
        cells = [
            [
                Cell(one.arm),
                Cell(tables.whole(one.documents)),
                Cell(tables.whole(one.refused.successes if one.refused else None)),
                tables.rate(one.refused) if one.refused else Cell(NOTHING),
                Cell(tables.whole(one.cut)),
            ]
            for one in behind
            if one.task == task
        ]
        groups.append((task, cells))
    numbers = [Column("Documents"), Column("Refused"), Column("Refused, %", "estimate"), Column("Cut")]
    return Table("Documents behind the numbers", [Column("Arm", "text"), *numbers], groups)


def _of_versions(rows: Rows) -> Table:
    """What each subtask is: its version, its examples in a prompt, and how many documents it has."""
    names = ["subtask", "task_version", "fewshot", "documents"]
    cells = [
        [
            Cell(row["subtask"]),
            Cell(row["task_version"]),
            Cell(str(row["fewshot"])),
            Cell(tables.whole(row["documents"])),
        ]
        for row, _ in counted(rows, names)
    ]
    numbers = [Column("Version"), Column("Examples in a prompt"), Column("Documents in all")]
    return Table("Tasks", [Column("Task", "text"), *numbers], [("", cells)], folded=len(cells) > 10)


def _differences(rows: Rows, arms: Sequence[str], seed: int) -> Section:
    title = f"{TITLE}: paired differences"
    found = compared(rows, arms, VANILLA, seed=seed)
    refused = compared(rows, arms, VANILLA, column="refused", seed=seed)
    if not any(c.difference for c in found):
        return Section(title, ["No arm has a number on the same documents as the base model."])
    text = (
        "An arm minus the base model, on the same documents. A loss or a gain counts as one only if the"
        " interval excludes zero."
    )
    notes = [
        f"Interval: 95 % bootstrap over documents, {tables.whole(summary.RESAMPLES)} resamples, seed {seed}."
        " Documents are paired by their hash. Higher and lower: documents with a higher and a lower value."
        " What is better, the task says; of refusals, fewer.",
        tables.TOLD_APART.format(fewest=summary.FEWEST_DIFFERING, what="documents"),
    ]
    if unmatched := [_unmatched(c) for c in found if any(c.unmatched)]:
        notes.append(f"Documents without a partner, which are in no difference: {'; '.join(unmatched)}.")
    shown = [_of_differences("", found, "Points")]
    if refused:
        shown.append(_of_differences("Refusals", refused, "Points", ("refuses more", "refuses less")))
    return Section(title, [text], tables=shown, notes=notes)


def _unmatched(c: Compared) -> str:
    return f"{c.task}, {c.arm} {tables.whole(c.unmatched[0])} and {VANILLA} {tables.whole(c.unmatched[1])}"


def _of_differences(
    title: str, found: list[Compared], unit: str, words: tuple[str, str] | None = None
) -> Table:
    groups = []
    for task in dict.fromkeys(c.task for c in found):
        cells = []
        for c in found:
            if c.task == task and (d := c.difference):
                more, less = words or (("gains", "loses") if c.higher_is_better else ("loses", "gains"))
                shown = tables.points if c.shares else tables.grade
                cells.append([Cell(f"{d.arm} − {d.baseline}"), *tables.difference(d, more, less, shown)])
        groups.append((f"{task}, {title.lower()}" if title else task, cells))
    columns = tables.difference_columns("Difference", "Documents", unit, ("Higher", "Lower"))
    return Table(title, columns, groups)
