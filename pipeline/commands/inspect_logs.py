"""`setbacks report --inspect`: the judged answers as logs of Inspect, one per suite and arm.

inspect_ai itself, an extra, writes them. They hold texts, and nothing is masked in them. The log of an arm is
made in memory.
"""

import math
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow.compute as pc

import pipeline
from pipeline.commands.report_opening import called
from pipeline.config import Config
from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.report.summary import arm_order
from pipeline.schema import FAILED
from pipeline.suites.base import Exchanged, Suite

DIRECTORY = "inspect"  # in the run directory


def available() -> None:
    """Raises UserError if inspect_ai is not installed."""
    try:
        import inspect_ai.log  # noqa: F401
    except ImportError:
        raise UserError(
            "--inspect: the package inspect_ai is not installed; pip install 'setbacks[inspect]'"
        ) from None


def write_logs(config: Config, run_dir: str, log: Callable[[str], Any]) -> list[str]:
    """Write RUN/inspect/SUITE_ARM.eval of every suite and arm with answers. Returns their paths.

    Raises UserError if inspect_ai is not installed, or if a shard of a data set has changed.
    """
    available()
    written = []
    for name, suite in config.suites.items().items():
        dataset = Dataset.at(storage.join(run_dir, suite.data_schema.name))
        if dataset is None or suite.runs_apart:
            continue
        found = pc.unique(dataset.table(["arm"])["arm"]).to_pylist()
        for arm in sorted(filter(None, found), key=arm_order(config.arm_names)):
            path = storage.join(run_dir, DIRECTORY, f"{name}_{arm}.eval")
            _write(_log(config, name, suite, arm, dataset), path)
            written.append(path)
    if written:
        log(
            f"report: {storage.join(run_dir, DIRECTORY)} has {len(written)} logs for `inspect view`; they"
            " hold what was asked and answered, unmasked"
        )
    else:
        log("report: nothing for `inspect view` yet; `setbacks evaluate` writes answers")
    return written


def _write(made: Any, path: str) -> None:
    from inspect_ai.log import write_eval_log

    with tempfile.TemporaryDirectory() as scratch:
        local = os.path.join(scratch, "log.eval")
        write_eval_log(made, local)
        with open(local, "rb") as file:
            storage.write_bytes(path, file.read())


def _log(config: Config, name: str, suite: Suite, arm: str, dataset: Dataset) -> Any:
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalPlan, EvalResults, EvalSpec, EvalStats

    rows = dataset.table(where=pc.field("arm") == arm).to_pylist()
    failed = [row for row in rows if row["status"] == FAILED]
    answered = [(one, row) for row in rows if row["status"] != FAILED for one in suite.exchanges(row)]
    samples = [_sample(config, arm, one, _metadata(suite, row)) for one, row in answered]
    samples += [_failed(suite, row) for row in failed]
    judges = {subject: called(config, judge) for judge, _, subject in suite.judged()}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return EvalLog(
        status="success",
        eval=EvalSpec(
            created=now,
            task=name,
            task_display_name=f"{suite.title}: {arm}",
            dataset=EvalDataset(name=suite.data_schema.name, samples=len(samples)),
            model=_model(config, arm),
            config=EvalConfig(),
            packages={"setbacks": pipeline.__version__},
            metadata={"run": storage.absolute(dataset.path).rsplit("/", 2)[-2], "arm": arm, "judges": judges},
        ),
        plan=EvalPlan(),
        results=EvalResults(
            total_samples=len(samples),
            completed_samples=len(answered),
            scores=_results([one for one, _ in answered]),
        ),
        stats=EvalStats(started_at=now, completed_at=now),  # without times, the viewer shows NaN
        samples=samples,
    )


def _model(config: Config, arm: str) -> str:
    """The name of what answered: with the provider in front, as Inspect has it."""
    return f"setbacks/{config.engine.author(config.model).replace('`', '')}, {arm}"


def _failed(suite: Suite, row: dict) -> Any:
    from inspect_ai.log import EvalError, EvalSample

    error = EvalError(message=row["error"] or "", traceback="", traceback_ansi="")
    asked = row.get("instruction") or ""
    return EvalSample(
        id=row["id"], epoch=1, input=asked, target="", metadata=_metadata(suite, row), error=error
    )


def _metadata(suite: Suite, row: dict) -> dict:
    """What is known of a row, without its texts."""
    return {column.name: row[column.name] for column in suite.data_schema.columns if column.text is None}


def _sample(config: Config, arm: str, one: Exchanged, metadata: dict) -> Any:
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    asked = _messages(one.asked)
    output = ModelOutput.from_content(
        _model(config, arm), one.response, stop_reason="max_tokens" if one.cut else "stop"
    )
    scores = {
        name: Score(value=value, answer=one.response)  # the viewer lists a score's answer, not the output
        for name, value in one.scores.items()
        if value is not None
    }
    return EvalSample(
        id=one.id,
        epoch=1,
        input=asked,
        target="",
        messages=[*asked, output.choices[0].message],
        output=output,
        scores=scores,
        metadata=metadata,
    )


def _messages(messages: list[dict]) -> list[Any]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    kinds = {"user": ChatMessageUser, "assistant": ChatMessageAssistant, "system": ChatMessageSystem}
    return [kinds[one["role"]](content=one["content"]) for one in messages]


def _results(answers: list[Exchanged]) -> list[Any]:
    """The mean of every measure, of each condition apart: they are never averaged."""
    from inspect_ai.log import EvalMetric, EvalScore

    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    unscored: Counter[str] = Counter()
    for one in answers:
        for name, value in one.scores.items():
            if value is None:
                unscored[name] += 1
            else:
                values[name][one.group or "mean"].append(value)
    return [
        EvalScore(
            name=name,
            scorer=name,
            scored_samples=sum(map(len, groups.values())),
            unscored_samples=unscored[name],
            metrics={
                group: EvalMetric(name=group, value=math.fsum(of) / len(of), metadata={"n": len(of)})
                for group, of in groups.items()
            },
        )
        for name, groups in values.items()
    ]
