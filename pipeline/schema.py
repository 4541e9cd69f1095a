"""The Arrow schema of the shared data sets, with a sentence per column. Imports no other pipeline module."""

from dataclasses import dataclass

import pyarrow as pa

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

UNSAFE_TARGET = "_unsafe"  # kinds of examples whose target is an unsafe response have names that end so

STAGES = ("generate", "mix", "train", "evaluate", "rejudge", "report")

# The status of a row. Every row read ends with exactly one of these.
OK, NOT_INDUCED, DROPPED, FAILED = "ok", "not_induced", "dropped", "failed"


# The kind of a text column decides whether commands mask it on the screen. What a judge says of it does not.
HARMLESS = "harmless"  # by construction; shown
UNKNOWN = "unknown"  # masked, unless the row is benign
HARMFUL = "harmful"  # masked


@dataclass(frozen=True)
class Column:
    """doc: one sentence for the card.

    text:    the kind of text (see above) if a person or a model wrote it; None for every other column.
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
    """A data set: its columns and its description.

    title, tags, use: of the card: heading, hub tags, instructions for use (Markdown).
    stage:            the stage that writes it; None for rows that only pass between stages.
    `arrow` is the schema of its Parquet files.
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
        """Rows as a table of exactly this schema; a column that a row lacks is null, an unknown one is an
        error."""
        known = set(self.names)
        for row in rows:
            if unknown := row.keys() - known:
                raise KeyError(f"data set {self.name} has no column {min(unknown)}")
        return pa.table(
            {c.name: pa.array([row.get(c.name) for row in rows], c.type) for c in self.columns},
            schema=self.arrow,
        )


_PAIRS = """\
The pairs are in TRL's conversational preference format, with an explicit prompt:

```python
from datasets import load_dataset
from trl import DPOTrainer

pairs = load_dataset("path/of/this/directory", split="train").select_columns(["prompt", "chosen", "rejected"])
DPOTrainer(model, train_dataset=pairs, processing_class=tokenizer).train()
```

Pairs of one `group` share their responses: if you hold some out, split by `instruction_id`, not by row.
`rank_rejected` minus
`rank_chosen` is the gap that a curriculum orders by."""


ID = Column(
    "id",
    pa.string(),
    "unique row id: hash of the source's content, plus what distinguishes rows of one instruction",
)
STATUS = (
    Column("status", pa.string(), "ok, not_induced, dropped or failed"),
    Column("error", pa.string(), "why the row was dropped or failed; null otherwise"),
)
THOUGHT = (
    Column("step", pa.string(), "the call of the recipe"),
    Column("text", pa.string(), "the thought, without its marks", text=UNKNOWN),
    Column("ended", pa.bool_(), "false if max_tokens cut it off, so that the call has no answer"),
)
TOKENS = (
    Column(
        "prompt_tokens",
        pa.int64(),
        "prompt tokens of this row's calls to the engine, without judges on other servers",
    ),
    Column("completion_tokens", pa.int64(), "sampled tokens of the same calls"),
    Column(
        "thoughts",
        pa.list_(pa.struct([(member.name, member.type) for member in THOUGHT])),
        "what a reasoning model thought before its answers, call by call; part of no other column",
        text=UNKNOWN,
        members=THOUGHT,
    ),
    Column(
        "thought_tokens",
        pa.int64(),
        "tokens of the thoughts, counted in `completion_tokens` too; null if a server does not say",
    ),
)

ENDINGS = Column(
    "endings",
    pa.list_(pa.string()),
    "how the sampled texts ended, `step: ending`: whole, or at max_tokens and then trimmed (to the last whole"
    " sentence), dropped, kept (as a training target) or cut (kept, outside the training targets)",
)

FAULTS = Column(
    "faults",
    pa.list_(pa.string()),
    "what is wrong with the texts of the row, `step: fault`; a row that is dropped for one has it as its"
    " error, too",
)

INSTRUCTIONS = Schema(
    "instructions",
    (
        ID,
        Column(
            "instruction_id", pa.string(), "hash of the instruction's content; shared by rows that repeat it"
        ),
        Column("sample", pa.int32(), "0, 1, … if an instruction is used several times"),
        Column("instruction", pa.string(), "the request as read (cut if the row is malformed)", text=UNKNOWN),
        Column("category", pa.string(), "harm category or topic of the source; null if it names none"),
        Column(
            "safe_response", pa.string(), "the source's safe (or helpful) response, or null", text=HARMLESS
        ),
        Column("unsafe_response", pa.string(), "the source's unsafe response, or null", text=HARMFUL),
        Column("source", pa.string(), "where the row was read: path#row", text=HARMLESS),
        Column(
            "unsafe_responses",
            pa.list_(pa.string()),
            "every response that the source labels unsafe, in its order",
            text=HARMFUL,
        ),
        *STATUS,
    ),
)


SFT = Schema(
    "sft",
    (
        ID,
        Column("instruction_id", pa.string(), "the instruction this example comes from"),
        Column("kind", pa.string(), "kind of example, such as safe or helpful"),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column(
            "messages",
            MESSAGES,
            "the conversation; only its last (assistant) turn is a training target",
            text=UNKNOWN,
        ),
        Column(
            "prefix",
            pa.string(),
            "a harmful text whose first tokens begin the last turn and carry no loss; null if there is none",
            text=HARMFUL,
        ),
        Column(
            "prefix_tokens",
            pa.int32(),
            "the most tokens of `prefix` that are used; how many is drawn by the run's seed and the id",
        ),
    ),
    title="Training mixture: conversations of several kinds",
    tags=("sft",),
    stage="mix",
)


PREFERENCES = Schema(
    "preferences",
    (
        ID,
        Column(
            "instruction_id",
            pa.string(),
            "the request that this pair is about; its pairs share most of their text",
        ),
        Column("group", pa.string(), "id of the row whose responses these are"),
        Column("category", pa.string(), "harm category or topic of the source"),
        Column("prompt", MESSAGES, "the request", text=UNKNOWN),
        Column("chosen", MESSAGES, "the better response", text=UNKNOWN),
        Column("rejected", MESSAGES, "the worse response", text=UNKNOWN),
        Column(
            "rank_chosen", pa.int32(), "rank of the better response among those of its request, 1 is best"
        ),
        Column("rank_rejected", pa.int32(), "rank of the worse response"),
        Column("kind", pa.string(), "kind of pair, by the method that made it"),
    ),
    title="Preference pairs of ranked responses, for DPO",
    tags=("preference", "dpo", "trl"),
    stage="mix",
    use=_PAIRS,
)
