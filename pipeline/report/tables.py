"""The report's tables, independent of HTML and Markdown: columns, groups of rows, cells.

A cell is the text that readers see. The builders below also keep the number behind it, for `results.json`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from pipeline.data.endings import CUT, DROPPED, KEPT, TRIMMED, Endings
from pipeline.report.agreement import Agreement
from pipeline.report.arms import percent
from pipeline.report.summary import Difference, Mean

NOTHING = "–"
TOLD_APART = (
    "Two arms are told apart if the interval excludes zero and at least {fewest} {what} differ. "
    "If nothing differs, about one comparison in twenty is still told apart by chance."
)


Unit = Literal["share", "share_difference", "score", "score_difference", "coefficient", "seconds", "count"]
_COUNT = re.compile(r"\d[\d\u202f]*")


@dataclass(frozen=True)
class Number:
    """The number behind a cell, not rounded.

    value:     None if nothing was counted
    low, high: the ends of its 95 % interval, if it has one
    n:         what was counted: answers, instructions, entries
    unit:      a share is from 0 to 1 (tables show percent), a score is on its judge's scale
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: Unit = "count"


@dataclass(frozen=True)
class Cell:
    """A table's cell as text; `best` cells are marked.

    number: behind the text, if the builder knew it. Of a measured number also `shown`, which writes its
    value, and `better`, if the best of several is marked: max or min.
    """

    text: str
    interval: str = ""
    best: bool = False
    number: Number | None = None
    shown: Callable[[float], str] | None = field(default=None, compare=False, repr=False)
    better: Callable | None = field(default=None, compare=False, repr=False)

    @property
    def value(self) -> float | None:
        """The measured number; None if it is not known, or the cell has none."""
        return self.number.value if self.number else None

    @property
    def figure(self) -> Number | None:
        """The cell's number. A count needs none of its own: its text says it exactly."""
        if self.number is None and _COUNT.fullmatch(self.text):
            return Number(int(self.text.replace("\u202f", "")))
        return self.number


@dataclass(frozen=True)
class Column:
    """`estimate`: a number and its interval; `number`: right-aligned; `text`: left-aligned."""

    name: str
    kind: Literal["text", "number", "estimate"] = "number"


@dataclass(frozen=True)
class Table:
    """`groups` are (heading, rows); an empty heading is not printed.

    A `folded` table opens on a click, in HTML. measure: what its numbers are, if its columns are arms; else
    the title says it. note: what stands behind its numbers, printed below it.
    """

    title: str
    columns: list[Column]
    groups: list[tuple[str, list[list[Cell]]]]
    folded: bool = False
    measure: str = ""
    note: str = ""

    @property
    def empty(self) -> bool:
        return not any(rows for _, rows in self.groups)


class Estimate(Protocol):
    """A share and its interval; both are None if nothing was counted."""

    @property
    def value(self) -> float | None: ...

    @property
    def interval(self) -> tuple[float, float] | None: ...


def rate(value: Estimate) -> Cell:
    """A percentage with its interval. An estimate that has an `n` says of how many it is."""
    n = getattr(value, "n", None)
    if value.value is None or value.interval is None:
        return Cell(NOTHING, number=Number(None, n=n, unit="share"), shown=percent)
    low, high = value.interval
    number = Number(value.value, low, high, n, "share")
    return Cell(percent(value.value), f"[{percent(low)}, {percent(high)}]", number=number, shown=percent)


def mean(value: Mean) -> Cell:
    """A mean and its interval, with two decimals."""
    return decimals(value.value, value.interval, value.n, "score")


def decimals(
    value: float | None, interval: tuple[float, float] | None, n: int | None, unit: Unit = "coefficient"
) -> Cell:
    """A number with two decimals and its interval, such as κ."""
    low, high = interval or (None, None)
    number = Number(value, low, high, n, unit)
    if value is None:
        return Cell(NOTHING, number=number, shown=_hundredths)
    told = f"[{_hundredths(interval[0])}, {_hundredths(interval[1])}]" if interval else ""
    return Cell(_hundredths(value), told, number=number, shown=_hundredths)


def kappa(both: Agreement) -> Cell:
    """Cohen's κ of two judges, with its interval; a dash if it is undefined."""
    return decimals(both.kappa, both.kappa_interval(), both.n)


def _hundredths(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def points(value: float) -> str:
    """A signed difference of rates in percentage points, with a true minus sign."""
    rounded = round(100 * value, 1) or 0.0
    return f"{rounded:+.1f}".replace("-", "−") if rounded else "0.0"


def whole(value: float | None) -> str:
    """A count with thin spaces between the thousands."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Seconds in words: `9.5 s`, `3 min 5 s`, `2 h 10 min`."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def grade(value: float) -> str:
    """A signed difference of mean ratings, with a true minus sign."""
    return f"{value:+.2f}".replace("-", "−") if round(value, 2) else "0.00"


def difference_columns(
    first: str, counted: str, unit: str = "Points", names: tuple[str, str] = ("Better", "Worse")
) -> list[Column]:
    """The columns of a table of differences, for the cells that `difference` makes.

    names: of the columns of what has a higher and a lower value, if higher is not always better.
    """
    numbers = map(Column, (counted, *names, "Same"))
    return [Column(first, "text"), Column(unit, "estimate"), *numbers, Column("At 95 %", "text")]


def difference(d: Difference, more: str, less: str, shown: Callable[[float], str] = points) -> list[Cell]:
    """The cells of a difference. more, less: the verdict for a positive and for a negative one."""
    verdict = (more if d.difference > 0 else less) if d.distinguishable else "cannot be told apart"
    low, high = d.interval
    unit: Unit = "share_difference" if shown is points else "score_difference"
    number = Number(d.difference, low, high, d.n, unit)
    text, interval = shown(d.difference), f"[{shown(low)}, {shown(high)}]"
    estimate = Cell(text, interval, best=d.distinguishable, number=number, shown=shown)
    return [estimate, *(Cell(whole(n)) for n in (d.n, d.better, d.worse, d.same)), Cell(verdict)]


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
    rows = [[Cell(str(key)), Cell(whole(n)), _share(n, total)] for key, n in counts.items()]
    return Table(title, [Column(name, "text"), Column(unit), Column("Share, %")], [("", rows)])


def _share(n: int, total: int) -> Cell:
    return Cell(f"{100 * n / total:.1f}", number=Number(n / total, n=total, unit="share"))


def of_tally(title: str, name: str, unit: str, counts: dict[str, int]) -> Table:
    """Names and their counts."""
    return Table(
        title,
        [Column(name, "text"), Column(unit)],
        [("", [[Cell(key), Cell(whole(n))] for key, n in counts.items()])],
    )


def of_endings(steps: list[Endings]) -> Table:
    """How many texts of each step ended at max_tokens, and what became of them."""
    ways = [way for way in (TRIMMED, DROPPED, KEPT, CUT) if any(step.cut.get(way) for step in steps)]
    titles = {
        TRIMMED: "Trimmed",
        DROPPED: "Dropped",
        KEPT: "Kept as targets",
        CUT: "Kept outside targets",
    }
    rows = [
        [
            Cell(step.step),
            Cell(whole(step.texts)),
            Cell(whole(sum(step.cut.values()))),
            _share(sum(step.cut.values()), step.texts),
            *(Cell(whole(step.cut.get(way, 0))) for way in ways),
        ]
        for step in steps
    ]
    columns = ["Texts", "Cut", "Cut, %", *(titles[way] for way in ways)]
    return Table("Texts cut at max_tokens", [Column("Step", "text"), *map(Column, columns)], [("", rows)])


def of_faults(steps: Mapping[str, Mapping[str, int]]) -> Table:
    """Step → fault → texts."""
    rows = [[Cell(step), Cell(name), Cell(whole(n))] for step, of in steps.items() for name, n in of.items()]
    columns = [Column("Step", "text"), Column("Fault", "text"), Column("Texts")]
    return Table("Faults of sampled texts", columns, [("", rows)])


def of_training(curves: dict[str, list[dict]], trained_on: dict[str, str]) -> Table:
    """First and last logged values of each arm.

    `curves`: arm → its logged steps, each with `step` and `loss`.
    """
    figures = {
        "loss": "loss",
        "holdout loss": "holdout_loss",
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
    }
    logged = {
        name: key
        for name, key in figures.items()
        if any(line.get(key) is not None for lines in curves.values() for line in lines)
    }

    def row(arm: str, lines: list[dict]) -> list[Cell]:
        speeds = sorted(line["tokens_per_s"] for line in lines if line.get("tokens_per_s"))
        known = [[line[key] for line in lines if line.get(key) is not None] for key in logged.values()]
        ends = [thousandths(values[i] if values else None) for values in known for i in (0, -1)]
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


def thousandths(value: float | None) -> Cell:
    """A coefficient without interval, with three decimals."""
    text = NOTHING if value is None else f"{value:.3f}".replace("-", "−")
    return Cell(text, number=Number(value, unit="coefficient"))


def _median(values: list[float]) -> float | None:
    """The upper median of a sorted list."""
    return values[len(values) // 2] if values else None


def of_stages(stages: Iterable[dict]) -> Table:
    """One row per line of the run's metrics.jsonl; a missing key prints as a dash."""

    def row(line: dict) -> list[Cell]:
        times = [
            Cell(duration(seconds), number=Number(seconds, unit="seconds"))
            for seconds in map(line.get, ("seconds", "engine_start_s"))
        ]
        return [
            Cell(line["name"]),
            *times,
            *(Cell(whole(line.get(key))) for key in ("rows", "tokens", "tokens_per_s")),
        ]

    columns = [Column("Stage", "text"), *map(Column, ("Time", "Engine start", "Rows", "Tokens", "Tokens/s"))]
    return Table("", columns, [("", [row(line) for line in stages])])


def of_pairs(title: str, names: tuple[str, str], pairs: Mapping[str, str]) -> Table:
    """A table of names and values, both text."""
    return Table(
        title,
        [Column(name, "text") for name in names],
        [("", [[Cell(k), Cell(v)] for k, v in pairs.items()])],
    )


def mark_best(values: list[float | None], cells: list[Cell], better: Callable) -> list[Cell]:
    """The cells, with the best of the known values marked unless all are equal."""
    known = [v for v in values if v is not None]
    best = better(known) if len(set(known)) > 1 else None
    return [
        replace(cell, best=value is not None and value == best, better=better)
        for value, cell in zip(values, cells, strict=True)
    ]
