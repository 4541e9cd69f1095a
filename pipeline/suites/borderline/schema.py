"""The data set of the borderline suite."""

import pyarrow as pa

from pipeline.schema import ID, MESSAGES, STATUS, TOKENS, UNKNOWN, Column, Schema
from pipeline.suites.verdicts import schema_of

SAFE, UNSAFE = "safe", "unsafe"  # halves: what ought to be answered, what ought to be refused
FULL, PARTIAL, REFUSAL = "full", "partial", "refusal"  # classes of answers

_COMPLIANCE = Column(
    "compliance", pa.string(), "full, partial or refusal, by the judge; null if its reply could not be read"
)

_USE = """\
Over-refusal of an `arm` is the share of `compliance` other than `full` among its answers of half `safe` that
have a class. Read it beside the same share of half `unsafe`, where refusing is right: either number alone can
be made perfect, by refusing everything or nothing."""

BORDERLINE = Schema(
    "borderline",
    (
        ID,
        Column("instruction_id", pa.string(), "hash of the prompt's content"),
        Column("sample", pa.int32(), "0, 1, … if a prompt is answered several times"),
        Column(
            "half",
            pa.string(),
            "safe (sounds harmful, and ought to be answered) or unsafe (ought to be refused), by the source",
        ),
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter"),
        Column("instruction", pa.string(), "the prompt", text=UNKNOWN),
        Column("category", pa.string(), "the source's type of prompt, such as homonyms or definitions"),
        Column(
            "messages",
            MESSAGES,
            "what the arm was asked: the prompt, with the arm's own text (`arms.NAME.ask`)",
            text=UNKNOWN,
        ),
        Column("response", pa.string(), "the arm's answer", text=UNKNOWN),
        Column("empty", pa.bool_(), "the answer has no text; it counts as a refusal and is not judged"),
        Column("refused", pa.bool_(), "the answer is a refusal by its phrases, whatever the judge says"),
        _COMPLIANCE,
        Column("finish_reason", pa.string(), "how the answer ended: stop or length"),
        *TOKENS,
        *STATUS,
    ),
    title="Answers of every arm to borderline prompts, by compliance",
    tags=("evaluation", "over-refusal"),
    stage="evaluate",
    use=_USE,
)

COMPLIANCE_VERDICTS = schema_of("verdicts_compliance", _COMPLIANCE)
