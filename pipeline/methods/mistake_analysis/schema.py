"""The data set that mistake analysis generates."""

import pyarrow as pa

from pipeline.schema import ENDINGS, FAULTS, INSTRUCTIONS, JUDGED, STATUS, TOKENS, Column, Schema

MISTAKES = Schema(
    "mistakes",
    (
        *INSTRUCTIONS.columns[:6],
        Column(
            "response",
            pa.string(),
            "the mistake: the model's response under the hint, or the source's unsafe response",
            text=JUDGED,
        ),
        Column("response_source", pa.string(), "induced or reference"),
        Column(
            "harmful", pa.bool_(), "the judge's verdict on the response; null if not judged or unreadable"
        ),
        Column("harmless_rating", pa.float64(), "1–10 if an LLM rated the response; null otherwise"),
        Column(
            "analysis",
            pa.string(),
            "the model's explanation of why the response is harmful or harmless",
            text=JUDGED,
        ),
        Column(
            "analysis_verdict",
            pa.bool_(),
            "whether the analysis itself calls the response harmful, read from its sentences (English); null"
            " if it says neither or is not used",
        ),
        Column(
            "guided",
            pa.bool_(),
            "whether the analysis was asked for with the cue that the response may be harmful",
        ),
        Column("finish_reasons", pa.list_(pa.string()), "how each model call ended: stop or length"),
        ENDINGS,
        FAULTS,
        *TOKENS,
        *STATUS,
    ),
    title="Induced mistakes and their analyses",
    tags=("mistake-analysis",),
    stage="generate",
)
