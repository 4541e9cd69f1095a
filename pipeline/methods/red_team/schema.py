"""The data sets of red-teaming: hazards with their texts and queries, and the requests that are kept."""

import pyarrow as pa

from pipeline.schema import ENDINGS, FAULTS, HARMLESS, ID, STATUS, TOKENS, UNKNOWN, Column, Schema

KEPT = "kept"  # the outcome of a query that becomes a request

_ABOUT = Column("about", pa.string(), "the taxonomy's sentence on the hazard", text=HARMLESS)
_CATEGORY = Column("category", pa.string(), "path in the taxonomy, `category/hazard` or with `/leaf`")

# Rows to do: hazards of a taxonomy, and how many texts to write about each leaf.
TO_WRITE = Schema(
    "hazards",
    (
        ID,
        _CATEGORY,
        _ABOUT,
        Column("leaves", pa.list_(pa.struct([("leaf", pa.string()), ("texts", pa.int32())])), "its leaves"),
        *STATUS,
    ),
)

LEAF = (
    Column("leaf", pa.string(), "the topic"),
    Column("expanded", pa.bool_(), "whether the model named it; else the taxonomy does"),
    Column("texts", pa.int32(), "texts that were written"),
    Column("refused", pa.int32(), "times that the model refused, also when asked in another genre"),
    Column("lost", pa.int32(), "texts asked for that gave no list of queries"),
)
TEXT = (
    Column("leaf", pa.string(), "the topic"),
    Column("genre", pa.string(), "the genre that was asked for"),
    Column("text", pa.string(), "the text", text=UNKNOWN),
)
QUERY = (
    Column("leaf", pa.string(), "the topic"),
    Column("genre", pa.string(), "the genre of the text that it was taken from"),
    Column("text", pa.string(), "the query", text=UNKNOWN),
    Column("outcome", pa.string(), "kept, or why it was dropped"),
)
OUTCOME = (
    Column("leaf", pa.string(), "the topic"),
    Column("outcome", pa.string(), "kept, or why queries were dropped"),
    Column("queries", pa.int32(), "how many"),
)


def _list(name: str, members: tuple[Column, ...], doc: str, text: str | None = None) -> Column:
    struct = pa.struct([(member.name, member.type) for member in members])
    return Column(name, pa.list_(struct), doc, text=text, members=members)


RED_TEAM = Schema(
    "red_team",
    (
        ID,
        _CATEGORY,
        _ABOUT,
        _list("leaves", LEAF, "its topics, those of the taxonomy first"),
        _list("texts", TEXT, "what was written about the topics", UNKNOWN),
        _list("queries", QUERY, "all queries found in the texts, in their order", UNKNOWN),
        _list("outcomes", OUTCOME, "queries of each topic by outcome"),
        Column("topics_dropped", pa.int32(), "topics named by the model that are like another one"),
        Column("expansions_refused", pa.int32(), "times that the model refused to name topics"),
        Column("lines_left", pa.int32(), "lines beside the items of lists, which were not read"),
        Column("other_language", pa.int32(), "kept queries in another language than the taxonomy's"),
        Column("distinct_1", pa.float64(), "share of different words among the words of kept queries"),
        Column("distinct_2", pa.float64(), "share of different pairs of words, likewise"),
        Column("mean_jaccard", pa.float64(), "mean likeness of two kept queries, by word trigrams"),
        Column("finish_reasons", pa.list_(pa.string()), "how each model call ended: stop or length"),
        ENDINGS,
        FAULTS,
        *TOKENS,
        *STATUS,
    ),
    title="Hazards, texts about them, and queries found in the texts",
    tags=("red-teaming",),
    stage="generate",
)

REQUESTS = Schema(
    "requests",
    (
        ID,
        Column(
            "instruction_id", pa.string(), "hash of the instruction's content; shared by rows that repeat it"
        ),
        Column("instruction", pa.string(), "the request, without any answer", text=UNKNOWN),
        Column("category", pa.string(), "path in the taxonomy: `category/hazard/leaf`"),
        Column("genre", pa.string(), "the genre of the text that it was taken from"),
    ),
    title="Red-team requests, without answers",
    tags=("red-teaming",),
    stage="mix",
    use=(
        "The directory is a source of instructions for another run, such as `methods.NAME.instructions:"
        " {path: RUN/requests}` or `suites.safety.harmful: {path: RUN/requests}`. It holds no answers."
    ),
)
