"""The two sentences that open the report: what was measured, or what the run has made so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.commands.report_results import asked_by
from pipeline.config import Config
from pipeline.judges import Judge
from pipeline.report import tables
from pipeline.report.arms import Arms
from pipeline.report.headline import Headline, Words, sentence
from pipeline.report.numbers import Rows
from pipeline.report.summary import VANILLA, counts
from pipeline.schema import OK
from pipeline.suites.base import Suite


@dataclass(frozen=True)
class Opening:
    """sentences: two of them. caution: what the judge of the first cannot see; empty if there is none."""

    sentences: list[str]
    caution: str = ""


UNMEASURED = "Whether it also refuses more harmless requests was not measured."
UNTRAINED = "It has no adapter to compare with."
UNJUDGED = "No answer with an adapter has a verdict."
UNEVALUATED = "Nothing is evaluated yet, so this says nothing about how the model answers."


def opening(
    config: Config,
    suites: Sequence[tuple[Suite, Arms]],
    numbers: Mapping[str, Rows | None],
    trained: Sequence[str],
) -> Opening:
    """suites: in the report's order. numbers: data sets by name, without texts; None if not written yet.
    trained: arms that have a training log."""
    found = [
        (shown, arms)
        for suite, arms in suites
        if (table := numbers[suite.data_schema.name]) is not None
        for headline in suite.headlines(table, arms, config.seed)
        if (shown := _of_arms(config, headline)).measured
    ]
    if not found:
        return Opening(_made(config, [suite for suite, _ in suites], numbers, trained))
    (first, arms), *others = found
    second = next((one for one in others if one[0].cost), None) or next(iter(others), None)
    words = _words(config, first)
    told = [sentence(first, arms, words, _judged(config, first))]
    if second is not None:
        told.append(sentence(second[0], second[1], Words("It", words.before), _judged(config, second[0])))
    elif len(first.shares) < 2:
        told.append(UNJUDGED if {*config.arm_names} - {*config.further, VANILLA} else UNTRAINED)
    elif not first.cost:
        told.append(UNMEASURED)
    return Opening(told, first.judge.blind if first.judge else "")


def _of_arms(config: Config, one: Headline) -> Headline:
    """Without adapters after a stage, and without those of a second fine-tuning."""
    named = {*config.arm_names} - {*config.further}
    return replace(one, shares={name: share for name, share in one.shares.items() if name in named})


def _words(config: Config, first: Headline) -> Words:
    """A run's own arms are trained, given adapters are only worn."""
    if len(first.shares) < 2:
        return Words("The model", "before")
    if any(name in config.replicas for name in first.shares):
        return Words("After training, the model", "before")
    return Words("With the adapter, the model", "without it")


def _judged(config: Config, one: Headline) -> str:
    """Who decided, such as `judged by rating, asked of model toy`."""
    if one.judge is None:
        return one.by
    return f"judged by {called(config, one.judge)}"


def called(config: Config, judge: Judge) -> str:
    """A judge in words, with what it asks: `rating, asked of toy`."""
    model = asked_by(config, judge)
    return judge.called + (f", asked of {model}" if model else "")


def _made(
    config: Config, suites: Sequence[Suite], numbers: Mapping[str, Rows | None], trained: Sequence[str]
) -> list[str]:
    """What a run without a measure has made."""
    evaluated = [s.data_schema.name for s in suites if numbers[s.data_schema.name] is not None]
    own = [
        name
        for method in config.methods.values()
        for name in (method.generated.name, *_training_sets(method))
    ]
    made = [_rows(name, table) for name in dict.fromkeys(own) if (table := numbers.get(name)) is not None]
    parts = [f"has made {_and(made)}"] if made else []
    parts += [f"has trained {_and(trained)}"] if trained else []
    parts += [f"has written {_and([_rows(name, numbers[name]) for name in evaluated])}"] if evaluated else []
    told = f"This run {_and(parts)}." if parts else "This run has made no data yet."
    if evaluated:
        return [told, "No share of answers is among its numbers; what was measured stands below."]
    return [told, UNEVALUATED if suites else "It evaluates nothing."]


def _training_sets(method) -> list[str]:
    return [schema.name for schema in method.training_sets]


def _rows(name: str, table: Rows | None) -> str:
    """`227 rows of mistakes, 215 of them ok`."""
    if table is None:
        return ""
    of = counts(table, "status") if "status" in table.column_names else {}
    rows = sum(of.values()) if of else len(table)
    told = f"{tables.whole(rows)} {'row' if rows == 1 else 'rows'} of {name}"
    if "status" not in table.column_names:
        return told
    return f"{told} ({tables.whole(of.get(OK, 0))} of them ok)"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
