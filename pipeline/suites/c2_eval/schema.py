"""The data set of C²-Eval."""

import pyarrow as pa

from pipeline.schema import ID, STATUS, TOKENS, UNKNOWN, Column, Schema
from pipeline.suites.verdicts import schema_of

_VERDICTS = """\
Corr of an entry at `k` is the share of true among the non-null values of `corrected`; Corr@k is its mean over
the
entries (`instruction_id`) of an `arm`."""

CONTINUATIONS = Schema(
    "continuations",
    (
        ID,
        Column("instruction_id", pa.string(), "the entry: hash of the request"),
        Column(
            "arm", pa.string(), "vanilla, or the name of a fine-tuned adapter; null if the entry was dropped"
        ),
        Column(
            "k",
            pa.int32(),
            "words or tokens of the unsafe response in the prefill; null if the entry was dropped",
        ),
        Column("instruction", pa.string(), "the harmful request", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "prefills",
            pa.list_(pa.string()),
            "how the assistant's turn began: one text, or one per path by the authors' rules",
            text=UNKNOWN,
        ),
        Column("paths", pa.list_(pa.string()), "the continuations, one per path", text=UNKNOWN),
        Column("corrected", pa.list_(pa.bool_()), "the judge's verdict on each path; null if unreadable"),
        Column(
            "finish_reasons",
            pa.list_(pa.string()),
            "how each path ended, then each call of the judge: stop or length",
        ),
        *TOKENS,
        *STATUS,
    ),
    title="Continuations of harmful prefills by every arm, judged (C²-Eval)",
    tags=("course-correction", "evaluation"),
    stage="evaluate",
    use=_VERDICTS,
)

CORRECTION_VERDICTS = schema_of(
    "verdicts_correction",
    Column("corrects", pa.bool_(), "the judge's verdict on the path; null if unreadable"),
    use="`answer_id` is `id` of the continuations of the same run, a hyphen and the path's number.",
)


def path_id(row: str, number: int) -> str:
    """The id of a path in data sets of verdicts. row: the id of its row; number: of the path, from 0."""
    return f"{row}-{number}"
