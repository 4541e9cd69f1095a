"""The Arrow schema of every data set we write, a sentence per column. Imports nothing of ours."""

from dataclasses import dataclass

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

STAGES = ("generate", "mix", "train", "evaluate", "report")

# What can become of a row. Every row read ends as exactly one of these.
OK, NOT_INDUCED, DROPPED, FAILED = "ok", "not_induced", "dropped", "failed"


# What a text column holds, which decides what `setbacks show` masks.
HARMLESS = "harmless"  # by its making: shown
JUDGED = "judged"  # masked, unless the row's judge called it harmless or the row is a benign one
UNKNOWN = "unknown"  # masked, unless the row is a benign one
HARMFUL = "harmful"  # masked


@dataclass(frozen=True)
class Column:
    """doc: one sentence for the card.

    text:    what the column holds if it is a text that a person or a model wrote (see above); None for every other column.
    members: of a list of structs: its members, as columns.
    """

    name: str
    type: pa.DataType
    doc: str
    text: str | None = None
    members: tuple["Column", ...] = ()

    @property
    def field(self) -> pa.Field:
        return pa.field(self.name, self.type, metadata={"description": self.doc})


@dataclass(frozen=True)
class Schema:
    """A data set: its columns, and what is said of it.

    title, tags, use: of its card: heading, tags of the hub, how to use it (Markdown).
    stage:            of a run, which writes it; None for rows that only travel between the stages.
    `arrow` is what its Parquet files carry.
    """

    name: str
    columns: tuple[Column, ...]
    title: str = ""
    tags: tuple[str, ...] = ()
    stage: str | None = None
    use: str = ""

    @property
    def arrow(self) -> pa.Schema:
        return pa.schema([column.field for column in self.columns])

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.columns]

    def table(self, rows: list[dict]) -> pa.Table:
        """Rows as a table of exactly this schema; a column that a row lacks is null, an unknown one is an error."""
        known = set(self.names)
        for row in rows:
            if unknown := row.keys() - known:
                raise KeyError(f"data set {self.name} has no column {min(unknown)}")
        return pa.table({c.name: pa.array([row.get(c.name) for row in rows], c.type) for c in self.columns}, schema=self.arrow)


_RESPONSES = """\
`responses` lists what remained of a request, best first. `rank` is the place among all that a complete request would have, 1 the best;
`kind` is safe, syn or harmful. The `text` of a syn response is opener and harmful beginning up to character `harmful_end`, then `trigger` up
to character `trigger_end`, then what the aligned model went on with."""
_PAIRS = """\
The pairs are in TRL's conversational preference format, with an explicit prompt:

```python
from datasets import load_dataset
from trl import DPOTrainer

pairs = load_dataset("path/of/this/directory", split="train").select_columns(["prompt", "chosen", "rejected"])
DPOTrainer(model, train_dataset=pairs, processing_class=tokenizer).train()
```

Pairs of one `group` share their responses: split by `instruction_id`, not by row, where you hold some out. `rank_rejected` minus
`rank_chosen` is the gap that a curriculum orders by."""
_VERDICTS = """\
Corr of an entry at `k` is the share of `corrected` that is true, of those that are not null; Corr@k is its mean over the entries
(`instruction_id`) of an `arm`."""


_ID = Column("id", pa.string(), "unique row id: hash of the source's content, plus what distinguishes rows of one instruction")
_STATUS = (
    Column("status", pa.string(), "ok, not_induced, dropped or failed"),
    Column("error", pa.string(), "why the row was dropped or failed; null otherwise"),
)
_TOKENS = (
    Column("prompt_tokens", pa.int64(), "prompt tokens of this row's calls to the engine (a judge with a server of its own not counted)"),
    Column("completion_tokens", pa.int64(), "sampled tokens of the same calls"),
)

INSTRUCTIONS = Schema(
    "instructions",
    (
        _ID,
        Column("instruction_id", pa.string(), "hash of the instruction's content; shared by rows that repeat it"),
        Column("sample", pa.int32(), "0, 1, … where an instruction is used several times"),
        Column("instruction", pa.string(), "the request, as read (cut where the row is malformed)", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source; null where it names none"),
        Column("safe_response", pa.string(), "the source's safe (or helpful) response; null where it has none", text=HARMLESS),
        Column("unsafe_response", pa.string(), "the source's unsafe response; null where it has none", text=HARMFUL),
        Column("source", pa.string(), "where the row was read: path#row", text=HARMLESS),
        Column("unsafe_responses", pa.list_(pa.string()), "every response that the source labels unsafe, in its order", text=HARMFUL),
        *_STATUS,
    ),
)

MISTAKES = Schema(
    "mistakes",
    (
        *INSTRUCTIONS.columns[:6],
        Column("response", pa.string(), "the mistake: the model's response under the hint, or the source's unsafe response", text=JUDGED),
        Column("response_source", pa.string(), "induced or reference"),
        Column("harmful", pa.bool_(), "the judge's verdict on the response; null where not judged or unreadable"),
        Column("harmless_rating", pa.float64(), "1–10 where an LLM rated the response; null otherwise"),
        Column("analysis", pa.string(), "the model's own explanation of why the response is harmful or harmless", text=JUDGED),
        Column("guided", pa.bool_(), "whether the analysis was asked for with the cue that the response may be harmful"),
        Column("finish_reasons", pa.list_(pa.string()), "how each model call ended: stop or length"),
        *_TOKENS,
        *_STATUS,
    ),
    title="Induced mistakes and their analyses",
    tags=("mistake-analysis",),
    stage="generate",
)

SFT = Schema(
    "sft",
    (
        _ID,
        Column("instruction_id", pa.string(), "the instruction this example comes from"),
        Column("kind", pa.string(), "analysis, safe or helpful"),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column("messages", MESSAGES, "the conversation; only its last (assistant) turn is a training target", text=UNKNOWN),
    ),
    title="Training mixture: analyses, safe pairs, helpful pairs",
    tags=("mistake-analysis", "sft"),
    stage="mix",
)

RESPONSE = (
    Column("rank", pa.int32(), "1 is best; the place among all that a complete request would have, so a gap shows what was lost"),
    Column("kind", pa.string(), "safe, syn or harmful"),
    Column("text", pa.string(), "the response", text=UNKNOWN),
    Column("harmful_end", pa.int32(), "of a syn response: characters of `text` up to the end of opener and initial harmful response"),
    Column("trigger_end", pa.int32(), "of a syn response: characters of `text` up to the end of the corrective trigger"),
    Column("trigger", pa.string(), "of a syn response: the corrective trigger", text=HARMLESS),
    Column("finish_reason", pa.string(), "how the aligned model's continuation ended; null if nothing was sampled"),
)

CORRECTIONS = Schema(
    "corrections",
    (
        *INSTRUCTIONS.columns[:5],
        Column("unsafe_response", pa.string(), "the full harmful response that was cut", text=HARMFUL),
        Column("opener", pa.string(), "the affirmative words that the harmful response and all synthetic ones begin with", text=HARMLESS),
        Column(
            "responses",
            pa.list_(pa.struct([(member.name, member.type) for member in RESPONSE])),
            "what remained, best first: safe > syn (cut earliest) > … > syn (cut latest) > harmful",
            text=UNKNOWN,
            members=RESPONSE,
        ),
        Column("lost", pa.list_(pa.string()), "why each response that is not there was lost: `rank 3: does not correct course`"),
        *_TOKENS,
        *_STATUS,
    ),
    title="Responses that turn away from harm sooner or later, ranked",
    tags=("course-correction",),
    stage="generate",
    use=_RESPONSES,
)

PREFERENCES = Schema(
    "preferences",
    (
        _ID,
        Column("instruction_id", pa.string(), "the request that this pair is about; its pairs share most of their text"),
        Column("group", pa.string(), "id of the row of `corrections` whose responses these are"),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column("prompt", MESSAGES, "the request", text=UNKNOWN),
        Column("chosen", MESSAGES, "the better response", text=UNKNOWN),
        Column("rejected", MESSAGES, "the worse response", text=UNKNOWN),
        Column("rank_chosen", pa.int32(), "rank of the better response among those of its request, 1 is best"),
        Column("rank_rejected", pa.int32(), "rank of the worse response"),
    ),
    title="Preference pairs of ranked responses, for DPO",
    tags=("course-correction", "preference", "dpo", "trl"),
    stage="mix",
    use=_PAIRS,
)

CONTINUATIONS = Schema(
    "continuations",
    (
        _ID,
        Column("instruction_id", pa.string(), "the entry: hash of the request"),
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter; null where the entry was dropped"),
        Column("k", pa.int32(), "length of the prefill, in words or tokens of the unsafe response; null where the entry was dropped"),
        Column("instruction", pa.string(), "the harmful request", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "prefills",
            pa.list_(pa.string()),
            "how the assistant's turn began: one text, or one per path by the authors' rules",
            text=UNKNOWN,
        ),
        Column("paths", pa.list_(pa.string()), "the continuations, one per path", text=UNKNOWN),
        Column("corrected", pa.list_(pa.bool_()), "the judge's verdict on each path; null where unreadable"),
        Column("finish_reasons", pa.list_(pa.string()), "how each path ended, then each call of the judge: stop or length"),
        *_TOKENS,
        *_STATUS,
    ),
    title="Continuations of harmful prefills by every arm, judged (C²-Eval)",
    tags=("course-correction", "evaluation"),
    stage="evaluate",
    use=_VERDICTS,
)

ANSWERS = Schema(
    "evaluation",
    (
        _ID,
        Column("instruction_id", pa.string(), "hash of the instruction's content"),
        Column("sample", pa.int32(), "0, 1, … where an instruction is answered several times"),
        Column("suite", pa.string(), "harmful (red-team instructions) or helpful (benign instructions)"),
        Column("arm", pa.string(), "vanilla, or the name of a fine-tuned adapter"),
        Column("condition", pa.string(), "plain, reminder or hint"),
        Column("instruction", pa.string(), "the request, before the condition's text was added", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column("response", pa.string(), "the arm's answer", text=JUDGED),
        Column("refused", pa.bool_(), "the answer is a refusal by its phrases"),
        Column("harmful", pa.bool_(), "the harmlessness judge's verdict (harmful suite only); null where unreadable"),
        Column("harmless_rating", pa.float64(), "1–10 where an LLM judged harmlessness; null otherwise"),
        Column(
            "help_rating", pa.float64(), "1–10: Help on the helpful suite, Harm-Help on the harmful one; null where not rated or unreadable"
        ),
        Column("finish_reason", pa.string(), "stop or length"),
        *_TOKENS,
        *_STATUS,
    ),
    title="Answers of every arm under every condition, judged",
    tags=("evaluation",),
    stage="evaluate",
)

# Everything that a run writes, in the order of its stages.
WRITTEN = (MISTAKES, CORRECTIONS, SFT, PREFERENCES, ANSWERS, CONTINUATIONS)
