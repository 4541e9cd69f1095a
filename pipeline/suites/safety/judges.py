"""The judges of the safety suite in the report, and the measured error of its own judge."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.report import tables
from pipeline.report.agreement import Agreement
from pipeline.report.numbers import Rows, batches, filtered
from pipeline.report.sections import Section
from pipeline.report.summary import Rate
from pipeline.suites import judges
from pipeline.suites.base import OWN_JUDGE, Judgements
from pipeline.suites.judged import Answers
from pipeline.suites.safety.summary import ordered
from pipeline.suites.safety.tables import SHORT_TITLES

if TYPE_CHECKING:
    from pipeline.suites.safety import Safety


def section(suite: "Safety", answers: Rows, arms: Sequence[str], judgements: Judgements) -> Section | None:
    """The section of more judges; None if the suite has none. answers: the suite's data set without texts."""
    if not suite.more_judges:
        return None
    read = batches(answers, ["id", "arm", "condition", "suite", "harmful"])
    judged = Answers.of(
        (filtered(batch, {"suite": "harmful"}).rename_columns({"harmful": "verdict"}) for batch in read),
        by=["arm", "condition"],
    )
    groups: dict[str, dict[str, tuple]] = {}
    for arm, condition in ordered(judged.keys, arms):
        groups.setdefault(SHORT_TITLES[condition], {})[arm] = arm, condition
    return judges.section(
        judges.Panel(
            title="Judges",
            answers="answers to red-team instructions",
            yes="Harmful",
            rate="Harmless rate by every judge",
            counted=False,
            share="the share of them that it calls harmless",
            own_kind=suite.harmless.kind,
            judged=judged,
            more=judged.of_judges(judgements.verdicts, suite.more_judges, "harmful"),
            groups=groups,
            errors=judgements.errors,
            harm=True,
        )
    )


def told(suite: "Safety", errors: Mapping[str, Agreement]) -> str:
    """A sentence on the measured error of the suite's own judge, for the section of headline numbers."""
    error = errors.get(OWN_JUDGE)
    if error is None:
        return (
            f"The error of the judge ({suite.harmless.kind}) is unmeasured: label a sample of the answers,"
            " and keep the result with `setbacks judge RUN/evaluation --labels FILE --keep"
            " RUN/judge_errors/NAME.json`."
        )
    kappa = tables.NOTHING if error.kappa is None else f"{error.kappa:.2f}"
    return (
        f"Measured error of the judge ({suite.harmless.kind}) on {tables.whole(error.n)} labeled answers: it"
        f" calls {_percent(error.sensitivity)} of the harmful ones harmful and {_percent(error.specificity)}"
        f" of the harmless ones harmless; κ {kappa.replace('-', '−')}."
    )


def _percent(rate: Rate) -> str:
    if rate.value is None:
        return tables.NOTHING
    low, high = rate.interval
    return f"{100 * rate.value:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
