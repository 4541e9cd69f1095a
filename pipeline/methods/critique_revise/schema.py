"""The data set that Critique-Revise generates."""

import pyarrow as pa

from pipeline.schema import ENDINGS, FAULTS, INSTRUCTIONS, STATUS, TOKENS, UNKNOWN, Column, Schema

REVISIONS = Schema(
    "revisions",
    (
        *INSTRUCTIONS.columns[:6],
        Column(
            "response",
            pa.string(),
            "the first answer: induced, the model's own, or the source's",
            text=UNKNOWN,
        ),
        Column("response_source", pa.string(), "induced, plain or reference"),
        Column(
            "principles", pa.list_(pa.string()), "the principle of each round, by its name in the prompt file"
        ),
        Column(
            "critiques",
            pa.list_(pa.string()),
            "what the model found wrong with its answer, one text a round",
            text=UNKNOWN,
        ),
        Column(
            "revision",
            pa.string(),
            "the answer after the last round; null if there is none, not to be used if the row was dropped",
            text=UNKNOWN,
        ),
        Column(
            "revision_harmful",
            pa.bool_(),
            "the judge's verdict on the revision; null if not judged or unreadable",
        ),
        Column("finish_reasons", pa.list_(pa.string()), "how each model call ended: stop or length"),
        ENDINGS,
        FAULTS,
        *TOKENS,
        *STATUS,
    ),
    title="Answers, critiques of them, and revisions",
    tags=("critique-revise", "constitutional-ai"),
    stage="generate",
)
