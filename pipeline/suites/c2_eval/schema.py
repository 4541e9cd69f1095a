"""The data set of C²-Eval."""

import pyarrow as pa

from pipeline.schema import ID, STATUS, TOKENS, UNKNOWN, Column, Schema

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
