"""What `setbacks judge` says of verdicts and labels: tables for a person, numbers for a program."""

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.commands.judge_answers import Answer
from pipeline.errors import UserError
from pipeline.judges import Judge
from pipeline.report import tables
from pipeline.report.agreement import Agreement, by_category, compared, corrected_rate
from pipeline.report.summary import Rate
from pipeline.settings.shown import shown

MOST_CATEGORIES = 20


def print_tables(
    path: str,
    judge: Judge | None,
    answers: list[Answer],
    labels: dict[str, bool | None],
    left_out: Counter[str],
    console: Console,
) -> Agreement | None:
    """Print everything. Returns the judge's error on the labels; None if there is none."""
    verdicts = {answer.id: answer.harmful for answer in answers}
    judged = Rate.of(harmful for harmful in verdicts.values() if harmful is not None)
    who = "the stored verdicts" if judge is None else judge.kind
    console.print(
        f"[bold]{escape(path)}[/bold]: {len(answers):,} answers, {judged.trials:,} with a verdict ({who});"
        f" called harmful: {_percent(judged)}"
    )
    if repeated := len(answers) - len(verdicts):
        left_out["id that another answer has too"] += repeated
    if unread := sum(harmful is None for harmful in verdicts.values()):
        left_out["without a verdict"] += unread
    found, pairs = compared(verdicts, labels)
    if labels:
        left_out["judged, without a label"] += judged.trials - found.n
        left_out["label of no answer here"] += len(labels.keys() - verdicts.keys())
    for reason, number in left_out.items():
        if number:
            console.print(f"  left out, {escape(shown(reason))}: {number:,}")
    if not labels:
        console.print("  no labels: the judge's error is unmeasured; give --labels FILE")
        return None
    if not judged.trials:
        console.print("  no verdict could be read, so there is nothing to compare with the labels")
        return None
    if not found.n:
        raise UserError(
            f"{path}: none of the labels is of an answer with a verdict; ids must be those of the answers"
        )
    _print_error(found, console)
    categories = {answer.id: answer.category for answer in answers if answer.category}
    _print_categories(by_category(pairs, categories), console)
    _print_corrected(answers, found, console)
    return found


def as_data(
    path: str,
    judge: Judge | None,
    answers: list[Answer],
    labels: dict[str, bool | None],
    left_out: Counter[str],
    error: Agreement | None,
) -> dict:
    """The same numbers as are printed. Shares are from 0 to 1, intervals are of 95 %."""
    groups = {}
    for group, judged in _groups(answers).items():
        corrected = None if error is None else corrected_rate(judged, error)
        groups[group or "all"] = {
            "harmful": _rate_data(judged),
            "corrected": corrected and vars(corrected),
        }
    categories = {answer.id: answer.category for answer in answers if answer.category}
    _, pairs = compared({answer.id: answer.harmful for answer in answers}, labels)
    return {
        "answers": path,
        "judge": None if judge is None else judge.kind,
        "rows": len(answers),
        "left_out": {reason: number for reason, number in left_out.items() if number},
        "groups": groups,
        "error": None if error is None else _error_data(error),
        "categories": {
            name: _error_data(one)
            for name, one in by_category(pairs, categories).items()
            if error is not None
        },
    }


def _error_data(found: Agreement) -> dict:
    shares = {name: _rate_data(getattr(found, name)) for name in ("agreed", "sensitivity", "specificity")}
    kappa = {"value": found.kappa, "interval": found.kappa_interval()}
    counts = {
        "called_harmful_labeled_harmful": found.both,
        "called_harmful_labeled_harmless": found.only_first,
        "called_harmless_labeled_harmful": found.only_second,
        "called_harmless_labeled_harmless": found.neither,
    }
    return {"n": found.n, "accuracy": shares.pop("agreed"), **shares, "kappa": kappa, "counts": counts}


def _rate_data(rate: Rate) -> dict:
    return {"value": rate.value, "interval": rate.interval if rate.trials else None, "n": rate.trials}


def _groups(answers: list[Answer]) -> dict[str, Rate]:
    """Arm and condition → the share of judged answers that are called harmful."""
    return {
        group: Rate.of(a.harmful for a in answers if a.group == group and a.harmful is not None)
        for group in dict.fromkeys(answer.group for answer in answers)
    }


def _print_error(found: Agreement, console: Console) -> None:
    counts = Table("", "labeled harmful", "labeled harmless", box=None, header_style="dim", padding=(0, 2))
    counts.add_row("called harmful", str(found.both), str(found.only_first))
    counts.add_row("called harmless", str(found.only_second), str(found.neither))
    console.print(counts)
    interval = found.kappa_interval()
    kappa = tables.NOTHING if found.kappa is None else f"{found.kappa:.2f}"
    kappa += f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
    console.print(f"  accuracy     {_percent(found.agreed)} of {found.n:,} labeled answers")
    console.print(f"  kappa        {escape(kappa)}, agreement beyond chance")
    console.print(f"  sensitivity  {_percent(found.sensitivity)} of the harmful answers are called harmful")
    console.print(f"  specificity  {_percent(found.specificity)} of the harmless answers are called harmless")


def _print_categories(found: dict[str, Agreement], console: Console) -> None:
    if not found:
        return
    table = Table(
        "category",
        "labeled",
        "accuracy",
        "kappa",
        "missed harm",
        "false alarms",
        box=None,
        header_style="dim",
    )
    for name, one in list(found.items())[:MOST_CATEGORIES]:
        kappa = tables.NOTHING if one.kappa is None else f"{one.kappa:.2f}"
        counts = (str(one.n), _percent(one.agreed), kappa, str(one.only_second), str(one.only_first))
        table.add_row(escape(shown(name, 60)), *counts)
    console.print(table)
    if len(found) > MOST_CATEGORIES:
        console.print(f"  {len(found) - MOST_CATEGORIES} smaller categories are not shown")


def _print_corrected(answers: list[Answer], error: Agreement, console: Console) -> None:
    """Print every group's harmful rate, as judged and corrected for the judge's error on the labels."""
    table = Table(
        "answers", "called harmful", "corrected for the judge's error", box=None, header_style="dim"
    )
    for group, judged in _groups(answers).items():
        corrected = corrected_rate(judged, error)
        value = (
            corrected.why_not
            if corrected.value is None or corrected.interval is None
            else _share(corrected.value, corrected.interval)
        )
        table.add_row(escape(shown(group or "all", 60)), _percent(judged), escape(value))
    console.print(table)
    console.print(
        "  The correction (Rogan and Gladen) holds if the judge errs on these answers as on the labeled ones."
    )


def _percent(rate: Rate) -> str:
    return tables.NOTHING if rate.value is None else escape(_share(rate.value, rate.interval))


def _share(value: float, interval: tuple[float, float]) -> str:
    return f"{100 * value:.1f} % [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
