"""The data set that mistake analysis generates."""

import pyarrow as pa

from pipeline.schema import (
    ENDINGS,
    FAULTS,
    INSTRUCTIONS,
    STATUS,
    TOKENS,
    UNKNOWN,
    Column,
    Schema,
)

MISTAKES = Schema(
    "mistakes",
    (
        *INSTRUCTIONS.columns[:6],
        Column(
            "response",
            pa.string(),
            "the mistake: the model's response under the hint or to the instruction alone, or the source's"
            " unsafe response",
            text=UNKNOWN,
        ),
        Column("response_source", pa.string(), "induced, own or reference"),
        Column(
            "harmful", pa.bool_(), "the judge's verdict on the response; null if not judged or unreadable"
        ),
        Column("harmless_rating", pa.float64(), "1–10 if an LLM rated the response; null otherwise"),
        Column(
            "analysis",
            pa.string(),
            "the model's explanation of why the response is harmful or harmless",
            text=UNKNOWN,
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
        Column(
            "safe_analysis",
            pa.string(),
            "the model's explanation of why a harmless answer is harmless or harmful; null if none was asked"
            " for, or if it was not usable",
            text=UNKNOWN,
        ),
        Column(
            "safe_analysis_of",
            pa.string(),
            "the column of the harmless answer that `safe_analysis` is about: response or safe_response",
        ),
        Column(
            "safe_analysis_verdict", pa.bool_(), "as `analysis_verdict`, of the analysis of a harmless answer"
        ),
        Column(
            "safe_harmful",
            pa.bool_(),
            "the verdict of `verify_safe` on the source's safe response; null if not judged or unreadable",
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
