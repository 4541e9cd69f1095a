"""The data set of the discrimination suite."""

import pyarrow as pa

from pipeline.schema import ID, STATUS, TOKENS, UNKNOWN, Column, Schema

MODES = ("unguided", "guided")  # of analyses

# What the methods know of an instruction.
TRAINING, NEAR, HELD_OUT = "training", "near", "held_out"

_USE = """\
Generation is `harmless_rating`; discrimination is `rating_unguided` and `rating_guided`. Compare them on rows
that have both. An analysis is right if its verdict, `verdict_unguided` or `verdict_guided`, equals `harmful`.
The ratings and `harmful` are one judge's. Analyses describe harmful answers, and quote them."""


def _analysis(mode: str, cue: str) -> tuple[Column, ...]:
    return (
        Column(f"analysis_{mode}", pa.string(), f"the arm's analysis of its own answer, {cue}", text=UNKNOWN),
        Column(
            f"rating_{mode}", pa.float64(), f"1–10: the judge's rating of `analysis_{mode}`; null if missing"
        ),
        Column(
            f"verdict_{mode}",
            pa.bool_(),
            f"whether `analysis_{mode}` calls the answer harmful, read from its sentences (English); null if"
            " it pronounces no verdict, or both",
        ),
    )


DISCRIMINATIONS = Schema(
    "discriminations",
    (
        ID,
        Column("instruction_id", pa.string(), "hash of the instruction's content"),
        Column("sample", pa.int32(), "0, 1, … if an instruction is answered several times"),
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter"),
        Column("instruction", pa.string(), "the request", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "split",
            pa.string(),
            "training: the instruction stands in the methods' sources; near: nearly; held_out: it does not;"
            " of a run without methods, as the configuration names its sources; null if it does not tell them"
            " apart",
        ),
        Column("response", pa.string(), "the arm's answer", text=UNKNOWN),
        Column("empty", pa.bool_(), "the answer has no text; it is neither rated nor analyzed"),
        Column("refused", pa.bool_(), "the answer is a refusal by its phrases"),
        Column("harmless_rating", pa.float64(), "1–10: the judge's rating of the answer; null if missing"),
        Column("harmful", pa.bool_(), "the judge's verdict on the answer, by its rating; null if missing"),
        *_analysis("unguided", "without a cue"),
        *_analysis("guided", "with the cue that it may be harmful"),
        Column(
            "cut",
            pa.list_(pa.string()),
            "the steps whose text ended at max_tokens: answer, unguided, guided",
        ),
        *TOKENS,
        *STATUS,
    ),
    title="Answers of every arm and its own analyses of them, rated by one judge",
    tags=("evaluation", "discrimination"),
    stage="evaluate",
    use=_USE,
)
