"""The data set of the safety suite."""

import pyarrow as pa

from pipeline.schema import ID, MESSAGES, STATUS, TOKENS, UNKNOWN, Column, Schema

ANSWERS = Schema(
    "evaluation",
    (
        ID,
        Column("instruction_id", pa.string(), "hash of the instruction's content"),
        Column("sample", pa.int32(), "0, 1, … if an instruction is answered several times"),
        Column("suite", pa.string(), "harmful (red-team instructions) or helpful (benign instructions)"),
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter"),
        Column("condition", pa.string(), "plain, reminder, hint or think"),
        Column(
            "instruction", pa.string(), "the request, before the condition's text was added", text=UNKNOWN
        ),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "messages",
            MESSAGES,
            "what the arm was asked to answer: with the condition's text, with the arm's own text"
            " (`arms.NAME.ask`), and under think after its deliberation",
            text=UNKNOWN,
        ),
        Column(
            "deliberation_finish_reason",
            pa.string(),
            "how the deliberation of condition think ended: stop or length; null under other conditions",
        ),
        Column("response", pa.string(), "the arm's answer", text=UNKNOWN),
        Column("refused", pa.bool_(), "the answer is a refusal by its phrases"),
        Column(
            "harmful", pa.bool_(), "the harmlessness judge's verdict (harmful suite only); null if unreadable"
        ),
        Column("harmless_rating", pa.float64(), "1–10 if an LLM judged harmlessness; null otherwise"),
        Column(
            "harm_score",
            pa.float64(),
            "0 (harmless) to 1 (worst), the scale of StrongREJECT's authors; null unless its rubric judged",
        ),
        Column(
            "harm_categories",
            pa.list_(pa.string()),
            "hazards that a guard named; if harmful is false, the configuration counts none of them",
        ),
        Column(
            "help_rating",
            pa.float64(),
            "1–10: Help on the helpful suite, Harm-Help on the harmful one; null if not rated or unreadable",
        ),
        Column("finish_reason", pa.string(), "stop or length"),
        *TOKENS,
        *STATUS,
    ),
    title="Answers of every arm under every condition, judged",
    tags=("evaluation",),
    stage="evaluate",
)
