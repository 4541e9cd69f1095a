"""The data set of the utility suite: a value per document, metric and arm."""

import pyarrow as pa

from pipeline.schema import ID, STATUS, UNKNOWN, Column, Schema

HARNESS = "0.4.13"  # the version in pyproject.toml's extra `utility`; another one may count otherwise

_USE = """\
Take the rows with `primary`, and compare an `arm` with `vanilla` on equal `subtask` and `doc_hash`: the mean
of `value` is the task's number, and its difference is paired. `score` and `score_stderr` are the harness's
own numbers of a whole `subtask`, repeated in each of its rows."""

UTILITY = Schema(
    "utility",
    (
        ID,
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter"),
        Column("task", pa.string(), "the task, group or tag that the configuration names"),
        Column("subtask", pa.string(), "the task that the document belongs to; `task` itself unless a group"),
        Column("doc_id", pa.int64(), "the document's number in the task's split"),
        Column("doc_hash", pa.string(), "the harness's hash of the document"),
        Column("metric", pa.string(), "the harness's name of the metric"),
        Column("filter", pa.string(), "the harness's name of the filter before the metric, mostly none"),
        Column("primary", pa.bool_(), "the task's first metric with its first filter"),
        Column("higher_is_better", pa.bool_(), "the metric's direction; null if the harness does not say"),
        Column(
            "value",
            pa.float64(),
            "the document's value; null if the metric has no single number per document",
        ),
        Column(
            "written",
            pa.string(),
            "what the arm wrote, in rows with `primary`; null if the task only compares probabilities",
            text=UNKNOWN,
        ),
        Column(
            "refused", pa.bool_(), "what the arm wrote is a refusal by its phrases; null if it wrote nothing"
        ),
        Column(
            "cut", pa.bool_(), "the harness cut the prompt's beginning, because the model takes fewer tokens"
        ),
        Column("score", pa.float64(), "the harness's number of the subtask"),
        Column("score_stderr", pa.float64(), "the harness's standard error of it; null if it gives none"),
        Column("documents", pa.int32(), "documents of the subtask's split, whatever the limit"),
        Column("task_version", pa.string(), "the subtask's version, by the harness"),
        Column("fewshot", pa.int32(), "examples in the prompt"),
        Column("limit", pa.int32(), "only the first so many documents were taken; null = all"),
        Column("harness", pa.string(), "name and version of the harness"),
        *STATUS,
    ),
    title="Utility of every arm, by the tasks of lm-evaluation-harness",
    tags=("evaluation", "utility", "lm-evaluation-harness"),
    stage="evaluate",
    use=_USE,
)
