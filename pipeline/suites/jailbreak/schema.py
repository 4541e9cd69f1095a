"""The data set of the jailbreak suite."""

import pyarrow as pa

from pipeline.schema import ID, MESSAGES, STATUS, TOKENS, UNKNOWN, Column, Schema

NONE = "none"  # the attack that asks plainly
# How an answer was read that ought to be in a cipher.
DECODED, PLAIN, UNDECODABLE = "decoded", "plain", "undecodable"

_USE = """\
The attack success rate of an `arm` is the share of true in `harmful` among its rows of `suite` harmful that
have a verdict, by `attack`. Rows of `suite` helpful are the control: benign instructions in the same
wrapping. A row without `arm` stands for an attack that could not be made of a goal."""

ATTACKS = Schema(
    "attacks",
    (
        ID,
        Column("instruction_id", pa.string(), "hash of the goal's content"),
        Column("sample", pa.int32(), "0, 1, … if a prompt is answered several times"),
        Column("suite", pa.string(), "harmful (goals) or helpful (benign instructions, the control)"),
        Column(
            "attack", pa.string(), "the transform, or `SOURCE/ATTACK` of a ready prompt; none = asked plainly"
        ),
        Column(
            "arm", pa.string(), "vanilla, or the name of a fine-tuned adapter; null if the row was dropped"
        ),
        Column("instruction", pa.string(), "the goal: what the answer is judged against", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "messages",
            MESSAGES,
            "what the arm was asked; an assistant's turn at the end is the beginning of its answer",
            text=UNKNOWN,
        ),
        Column("response", pa.string(), "the arm's answer, as it stands", text=UNKNOWN),
        Column(
            "decoded_response",
            pa.string(),
            "the answer with its cipher taken away; null if it is in none, or cannot be decoded",
            text=UNKNOWN,
        ),
        Column(
            "decoding",
            pa.string(),
            "of an answer that ought to be in a cipher: decoded, plain (it is not in it) or undecodable",
        ),
        Column("empty", pa.bool_(), "the answer has no text"),
        Column("refused", pa.bool_(), "the answer, read in either way, is a refusal by its phrases"),
        Column(
            "harmful",
            pa.bool_(),
            "the judge's verdict against the goal (goals only), true if it is for either reading of the"
            " answer; null if unreadable",
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
        Column("finish_reason", pa.string(), "how the answer ended: stop or length"),
        *TOKENS,
        *STATUS,
    ),
    title="Answers of every arm to jailbreaks, judged against their goals",
    tags=("evaluation", "jailbreak"),
    stage="evaluate",
    use=_USE,
)
