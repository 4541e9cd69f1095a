"""The data set that C²-Syn generates."""

import pyarrow as pa

from pipeline.schema import (
    ENDINGS,
    FAULTS,
    HARMFUL,
    HARMLESS,
    INSTRUCTIONS,
    STATUS,
    TOKENS,
    UNKNOWN,
    Column,
    Schema,
)

_RESPONSES = """\
`responses` lists a request's kept responses, best first. `rank` is the rank in a complete request, 1 the
best; `kind` is safe, syn or harmful. The `text` of a syn response is opener and harmful beginning up to
character `harmful_end`, then `trigger` up to character `trigger_end`, then the aligned model's
continuation."""

RESPONSE = (
    Column("rank", pa.int32(), "1 is best; the rank in a complete request, so a gap shows a lost response"),
    Column("kind", pa.string(), "safe, syn or harmful"),
    Column("text", pa.string(), "the response", text=UNKNOWN),
    Column(
        "harmful_end",
        pa.int32(),
        "of a syn response: characters of `text` up to the end of opener and initial harmful response",
    ),
    Column(
        "trigger_end",
        pa.int32(),
        "of a syn response: characters of `text` up to the end of the corrective trigger",
    ),
    Column("trigger", pa.string(), "of a syn response: the corrective trigger", text=HARMLESS),
    Column(
        "finish_reason",
        pa.string(),
        "how the aligned model's continuation ended; null if nothing was sampled",
    ),
)

PAIR = "correction"  # kind of its preference pairs
RECOVERY = "recovery"  # kind of its conversations

CORRECTIONS = Schema(
    "corrections",
    (
        *INSTRUCTIONS.columns[:5],
        Column("unsafe_response", pa.string(), "the full harmful response that was cut", text=HARMFUL),
        Column(
            "opener",
            pa.string(),
            "the affirmative words that the harmful response and all synthetic ones begin with",
            text=HARMLESS,
        ),
        Column(
            "responses",
            pa.list_(pa.struct([(member.name, member.type) for member in RESPONSE])),
            "the kept responses, best first: safe > syn (cut earliest) > … > syn (cut latest) > harmful",
            text=UNKNOWN,
            members=RESPONSE,
        ),
        Column("lost", pa.list_(pa.string()), "why responses were lost: `rank 3: does not correct course`"),
        ENDINGS,
        FAULTS,
        *TOKENS,
        *STATUS,
    ),
    title="Responses that turn away from harm sooner or later, ranked",
    tags=("course-correction",),
    stage="generate",
    use=_RESPONSES,
)
