"""The report's tables, independent of HTML and Markdown: columns, groups of rows, cells that are already
text."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.report.corrections import Corr, CorrDifference, CorrSummary, RequestsSummary
from pipeline.report.summary import (
    ArmRow,
    CategoryRow,
    Difference,
    Mean,
    MistakesSummary,
    PairedDifference,
    Rate,
)

NOTHING = "–"
CONDITION_TITLES = {
    "plain": "Plain: the instruction alone",
    "reminder": "Reminder: the instruction preceded by the reminder to be harmless",
    "hint": "Hint: the instruction with the cue that induces mistakes",
}
SHORT_TITLES = {condition: title.partition(":")[0] for condition, title in CONDITION_TITLES.items()}
TOLD_APART = (
    "Two arms are told apart if the interval excludes zero and at least {fewest} {what} differ. "
    "If nothing differs, about one comparison in twenty is still told apart by chance."
)


@dataclass(frozen=True)
class Cell:
    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """`estimate`: a number and its interval; `number`: right-aligned; `text`: left-aligned."""

    name: str
    kind: Literal["text", "number", "estimate"] = "number"


@dataclass(frozen=True)
class Table:
    """`groups` are (heading, rows); an empty heading is not printed.

    A `folded` table opens on a click, in HTML.
    """

    title: str
    columns: list[Column]
    groups: list[tuple[str, list[list[Cell]]]]
    folded: bool = False

    @property
    def empty(self) -> bool:
        return not any(rows for _, rows in self.groups)


def rate(value: Rate | Corr) -> Cell:
    """A percentage with its interval."""
    if value.value is None or value.interval is None:
        return Cell(NOTHING)
    low, high = value.interval
    return Cell(f"{100 * value.value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]")


def mean(value: Mean) -> Cell:
    if value.value is None:
        return Cell(NOTHING)
    return Cell(f"{value.value:.2f}", "[{:.2f}, {:.2f}]".format(*value.interval) if value.interval else "")


def points(value: float) -> str:
    """A signed difference of rates in percentage points, with a true minus sign."""
    rounded = round(100 * value, 1) or 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def whole(value: float | None) -> str:
    """A count with thin spaces between the thousands."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def of_arms(rows: list[ArmRow], *, rated: bool, helpful: bool) -> Table:
    """The table of arms, grouped by condition; the best arm of a group is marked."""
    estimates: dict[str, tuple[Callable, Callable, Callable]] = {
        "Harmless, %": (lambda r: r.harmless, rate, max)
    }
    if rated:
        estimates["Harm-Help"] = (lambda r: r.harm_help, mean, max)
    if rated and helpful:
        estimates["Help"] = (lambda r: r.help, mean, max)
    if helpful:
        estimates["Over-refusal, %"] = (lambda r: r.over_refusal, rate, min)

    def cells(group: list[ArmRow]) -> list[list[Cell]]:
        columns = [[Cell(r.arm) for r in group]]
        for value, show, better in estimates.values():
            columns.append(
                _mark_best([value(r).value for r in group], [show(value(r)) for r in group], better)
            )
        return [list(row) for row in zip(*columns, strict=True)]

    return Table(
        "",
        [Column("Arm", "text"), *(Column(name, "estimate") for name in estimates)],
        _by_condition(rows, CONDITION_TITLES, cells),
    )


def of_counts(rows: list[ArmRow], *, rated: bool) -> Table:
    """The number of answers behind the table of arms, and of answers left out."""
    numbers: dict[str, Callable] = {
        "Answers": lambda r: r.answers,
        "Judged": lambda r: r.judged,
        "No verdict": lambda r: r.unreadable,
    }
    if rated:
        numbers["No rating"] = lambda r: r.unreadable_ratings
    numbers |= {"Cut": lambda r: r.cut, "Failed": lambda r: r.failed}

    def cells(group: list[ArmRow]) -> list[list[Cell]]:
        return [[Cell(r.arm), *(Cell(whole(value(r))) for value in numbers.values())] for r in group]

    return Table(
        "Answers behind the rates",
        [Column("Arm", "text"), *map(Column, numbers)],
        _by_condition(rows, SHORT_TITLES, cells),
    )


def of_differences(differences: list[PairedDifference]) -> Table:
    def cells(group: list[PairedDifference]) -> list[list[Cell]]:
        return [
            [Cell(f"{d.arm} − {d.baseline}"), *_difference(d, "more harmless", "less harmless")]
            for d in group
        ]

    return Table(
        "", _difference_columns("Difference", "Instructions"), _by_condition(differences, SHORT_TITLES, cells)
    )


def _difference_columns(first: str, counted: str) -> list[Column]:
    numbers = map(Column, (counted, "Better", "Worse", "Same"))
    return [Column(first, "text"), Column("Points", "estimate"), *numbers, Column("At 95 %", "text")]


def _difference(d: Difference, more: str, less: str) -> list[Cell]:
    verdict = (more if d.difference > 0 else less) if d.distinguishable else "cannot be told apart"
    low, high = d.interval
    estimate = Cell(points(d.difference), f"[{points(low)}, {points(high)}]", best=d.distinguishable)
    return [estimate, *(Cell(whole(n)) for n in (d.n, d.better, d.worse, d.same)), Cell(verdict)]


def of_categories(rows: list[CategoryRow]) -> Table:
    """The numbers behind the plot of categories: one row per category, one column per arm."""
    arms = list(dict.fromkeys(r.arm for r in rows))

    def cells(group: list[CategoryRow]) -> list[list[Cell]]:
        found = {(r.category, r.arm): r.harmless for r in group}
        categories = dict.fromkeys(r.category for r in group)
        return [
            [Cell(name), *(rate(found.get((name, arm), Rate(0, 0))) for arm in arms)] for name in categories
        ]

    columns = [Column("Category", "text"), *(Column(f"{arm}, %", "estimate") for arm in arms)]
    return Table("Harmless rate per category", columns, _by_condition(rows, SHORT_TITLES, cells), folded=True)


def of_mistakes(summary: MistakesSummary) -> Table:
    numbers = {
        "Instructions": summary.instructions,
        "Rows": summary.rows,
        "ok": summary.ok,
        "Not induced": summary.not_induced,
        "Failed": summary.failed,
        "Judged": summary.induced.trials,
        "Sampled tokens": summary.completion_tokens,
    }
    row = [*(Cell(whole(n)) for n in numbers.values()), rate(summary.induced)]
    return Table("Mistakes", [*map(Column, numbers), Column("Judged harmful, %", "estimate")], [("", [row])])


def of_losses(drops: list[tuple[str, str, int]]) -> Table:
    """Dropped and failed rows: (stage, reason, rows)."""
    rows = [[Cell(stage), Cell(reason), Cell(whole(n))] for stage, reason, n in drops]
    return Table(
        "Dropped and failed rows",
        [Column("Stage", "text"), Column("Reason", "text"), Column("Rows")],
        [("", rows)],
    )


def of_shares(title: str, name: str, unit: str, counts: Mapping[str, int] | Mapping[int, int]) -> Table:
    """Counts and their shares of the total."""
    total = sum(counts.values())
    rows = [[Cell(str(key)), Cell(whole(n)), Cell(f"{100 * n / total:.1f}")] for key, n in counts.items()]
    return Table(title, [Column(name, "text"), Column(unit), Column("Share, %")], [("", rows)])


def of_tally(title: str, name: str, unit: str, counts: dict[str, int]) -> Table:
    return Table(
        title,
        [Column(name, "text"), Column(unit)],
        [("", [[Cell(key), Cell(whole(n))] for key, n in counts.items()])],
    )


def of_requests(summary: RequestsSummary) -> Table:
    numbers = {
        "Rows": summary.rows,
        "ok": summary.ok,
        "Complete": summary.complete,
        "Dropped": summary.dropped,
        "Failed": summary.failed,
        "Lost responses": sum(summary.lost.values()),
        "Sampled tokens": summary.completion_tokens,
    }
    return Table("Requests", [*map(Column, numbers)], [("", [[Cell(whole(n)) for n in numbers.values()]])])


def of_corr(summary: CorrSummary) -> Table:
    """Corr_mean and every Corr@k, one column per arm; the best of each row is marked."""

    def row(name: str, values: list[Corr]) -> list[Cell]:
        return [Cell(name), *_mark_best([v.value for v in values], [rate(v) for v in values], max)]

    rows = [row(_corr_name(None), [arm.mean for arm in summary.arms])]
    rows += [row(_corr_name(k), [arm.at[k] for arm in summary.arms]) for k in summary.lengths]
    return Table(
        "", [Column("", "text"), *(Column(f"{arm.arm}, %", "estimate") for arm in summary.arms)], [("", rows)]
    )


def of_corr_counts(summary: CorrSummary) -> Table:
    """The numbers of entries and paths behind the table of Corr@k, and of those left out."""
    columns = ("Entries", "Judged at every k", "Failed rows", "Paths", "No verdict", "Cut")

    def row(arm) -> list[Cell]:
        numbers = (
            arm.mean.entries + arm.mean.left_out,
            arm.mean.entries,
            arm.failed,
            arm.paths,
            arm.unreadable,
            arm.cut,
        )
        return [Cell(arm.arm), *(Cell(whole(n)) for n in numbers)]

    return Table(
        "Paths behind Corr@k",
        [Column("Arm", "text"), *map(Column, columns)],
        [("", [row(arm) for arm in summary.arms])],
    )


def of_left_out(summary: CorrSummary) -> Table:
    """Entries without a readable verdict, for every k at which an arm has such entries."""
    rows = [
        [Cell(_corr_name(k)), *(Cell(whole(arm.at[k].left_out)) for arm in summary.arms)]
        for k in summary.lengths
        if any(arm.at[k].left_out for arm in summary.arms)
    ]
    return Table(
        "Entries left out", [Column("", "text"), *(Column(arm.arm) for arm in summary.arms)], [("", rows)]
    )


def of_corr_differences(differences: list[CorrDifference], *, by_k: bool) -> Table:
    """Differences of Corr_mean, one row per arm; or, if `by_k`, those at every k, folded."""
    chosen = [d for d in differences if (d.k is not None) == by_k]
    rows = [
        [
            Cell(f"{d.arm} − {d.baseline}, {_corr_name(d.k)}"),
            *_difference(d, "turns away more", "turns away less"),
        ]
        for d in chosen
    ]
    title = "Paired differences at every k" if by_k else "Paired differences"
    return Table(title, _difference_columns("Difference", "Entries"), [("", rows)], folded=by_k)


def _corr_name(k: int | None) -> str:
    return "Corr_mean" if k is None else f"Corr@{k}"


def of_training(curves: dict[str, list[dict]], trained_on: dict[str, str]) -> Table:
    """First and last logged values of each arm.

    `curves`: arm → its logged steps, each with `step` and `loss`.
    """
    figures = {"loss": "loss", "margin": "rewards/margins", "accuracy": "rewards/accuracies"}
    logged = {
        name: key
        for name, key in figures.items()
        if any(line.get(key) is not None for lines in curves.values() for line in lines)
    }

    def row(arm: str, lines: list[dict]) -> list[Cell]:
        speeds = sorted(line["tokens_per_s"] for line in lines if line.get("tokens_per_s"))
        ends = [_decimals(lines[i].get(key)) for key in logged.values() for i in (0, -1)]
        return [
            Cell(arm),
            Cell(trained_on[arm]),
            Cell(whole(lines[-1]["step"])),
            *ends,
            Cell(whole(_median(speeds))),
        ]

    names = [f"{which} {name}" for name in logged for which in ("First", "Last")]
    columns = [
        Column("Arm", "text"),
        Column("Trained on", "text"),
        *map(Column, ("Steps", *names, "Tokens/s")),
    ]
    return Table("", columns, [("", [row(arm, lines) for arm, lines in curves.items()])])


def _decimals(value: float | None) -> Cell:
    return Cell(NOTHING if value is None else f"{value:.3f}".replace("-", "−"))


def _median(values: list[float]) -> float | None:
    """The upper median of a sorted list."""
    return values[len(values) // 2] if values else None


def of_stages(stages: Iterable[dict]) -> Table:
    """One row per line of the run's metrics.jsonl; a missing key prints as a dash."""

    def row(line: dict) -> list[Cell]:
        times = [Cell(duration(line.get(key))) for key in ("seconds", "engine_start_s")]
        return [
            Cell(line["name"]),
            *times,
            *(Cell(whole(line.get(key))) for key in ("rows", "tokens", "tokens_per_s")),
        ]

    columns = [Column("Stage", "text"), *map(Column, ("Time", "Engine start", "Rows", "Tokens", "Tokens/s"))]
    return Table("", columns, [("", [row(line) for line in stages])])


def of_pairs(title: str, names: tuple[str, str], pairs: dict[str, str]) -> Table:
    """A table of names and values, both text."""
    return Table(
        title,
        [Column(name, "text") for name in names],
        [("", [[Cell(k), Cell(v)] for k, v in pairs.items()])],
    )


def _by_condition(rows: list, titles: dict[str, str], cells: Callable) -> list[tuple[str, list[list[Cell]]]]:
    grouped = ((title, [r for r in rows if r.condition == condition]) for condition, title in titles.items())
    return [(title, cells(group)) for title, group in grouped if group]


def _mark_best(values: list[float | None], cells: list[Cell], better: Callable) -> list[Cell]:
    known = [v for v in values if v is not None]
    if len(set(known)) < 2:
        return cells
    best = better(known)
    return [Cell(c.text, c.interval, best=v == best) for v, c in zip(values, cells, strict=True)]
