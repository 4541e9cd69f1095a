"""From conversations to packed, labeled token sequences in a fixed order. Pure functions.

    part (of the rows: encode, with labels on the last assistant turn only) → whole (pack: whole examples,
    best fit) → schedule (which sequences make step n)

Everything is a function of the seed and of the examples' ids, never of the order of rows in the Parquet
files, nor of the parts.
"""

import bisect
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.chat import Message
from pipeline.data.dataset import ALL, Dataset, Share
from pipeline.errors import UserError
from pipeline.templates import ChatTemplate
from pipeline.training.parts import InMemory, Part, gathered, lists, of_lengths

IGNORE = -100  # the label of a token that is not a training target
# Why a conversation cannot be an example → the remedy if no conversation can.
REMEDIES = {
    "token_across_turns": (
        "the chat template lets prompt and target share a token; end its generation prompt with a special"
        " token or a newline"
    ),
    "special_token_in_text": "the texts hold special tokens of the model; take them out of the source",
    "changed_by_template": "the chat template changes the answer's text; use another template",
    "empty_answer": "the answers are empty; change the source",
    "no_end_token": "the end of the turn is not a token at which engines stop; use another template",
}

# A packed sequence as TRL's padding-free collator takes it; position ids restart at every one of
# `seq_lengths`.
SEQUENCES = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("seq_lengths", pa.list_(pa.int32())),
    ]
)

# What is made of a part of the rows. dropped: why the row is no example; null = it is.
_PART = pa.schema(
    [
        ("key", pa.string()),  # the row's id
        ("kind", pa.string()),
        ("length", pa.int32()),
        ("prompt", pa.int32()),
        ("dropped", pa.string()),
        ("held_out", pa.bool_()),
        ("tokens", pa.list_(pa.int32())),
    ]
)
_AT_ONCE = 1000


@dataclass(frozen=True)
class Example:
    """One conversation as tokens. The first `prompt` tokens carry no loss; the rest are the target.

    The target includes the end-of-turn token.
    """

    tokens: list[int]
    prompt: int

    @property
    def labels(self) -> list[int]:
        return [IGNORE] * self.prompt + self.tokens[self.prompt :]


@dataclass
class Counts:
    """Counts of the rows read: examples per kind, and dropped rows per reason."""

    kinds: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    held_out: int = 0  # examples on which the holdout loss is measured, not trained on


def prepare(
    template: ChatTemplate,
    dataset: Dataset,
    kinds: list[str],
    seed: int,
    max_length: int,
    packing: bool,
    holdout: float = 0.0,
) -> tuple[pa.Table, pa.Table, Counts]:
    """The training set of one arm and its held-out examples as tables of schema SEQUENCES, and the counts of
    its rows.

    holdout: share of the instructions whose examples are held out (see `is_held_out`). Raises UserError if
    the data set has no usable row of these kinds, or the template cannot label the rows (see `encode`).
    """
    only = InMemory(part(template, dataset, kinds, seed, holdout=holdout))
    return whole(dataset.path, [only], kinds, seed, max_length, packing, holdout)


def part(
    template: ChatTemplate,
    dataset: Dataset,
    kinds: list[str],
    seed: int,
    *,
    share: Share = ALL,
    holdout: float = 0.0,
) -> dict[str, pa.Table]:
    """The examples of these kinds in a share of a data set of `schema.SFT`, in the rows' order.

    One table: an example per row, without tokens if it is dropped. holdout: as in `prepare`.
    """
    written = dataset.schema.names  # older versions wrote no prefixes
    wanted = [
        "id",
        "kind",
        "messages",
        *(["instruction_id"] if holdout else []),
        *(name for name in ("prefix", "prefix_tokens") if name in written),
    ]
    made: list[pa.Table] = []
    for table in dataset.tables(wanted, share=share):
        table = table.filter(pc.is_in(table["kind"], pa.array(kinds, pa.string())))
        for batch in table.to_batches(max_chunksize=_AT_ONCE):
            encoded = encoded_rows(template, batch.to_pylist(), seed)
            usable = [None if isinstance(one, str) else one for one in encoded]
            tokens = [np.array(one.tokens if one else [], np.int32) for one in usable]
            columns = [
                batch["id"],
                batch["kind"],
                pa.array([len(one) for one in tokens], pa.int32()),
                pa.array([one.prompt if one else 0 for one in usable], pa.int32()),
                pa.array([one if isinstance(one, str) else None for one in encoded], pa.string()),
                held_out(batch, holdout),
                lists(tokens),
            ]
            made.append(pa.table(columns, schema=_PART))
    return {"examples": pa.concat_tables(made) if made else _PART.empty_table()}


def whole(
    path: str,
    parts: Sequence[Part],
    kinds: list[str],
    seed: int,
    max_length: int,
    packing: bool,
    holdout: float = 0.0,
) -> tuple[pa.Table, pa.Table, Counts]:
    """What `prepare` returns, from the parts of a data set at `path`. Holds the tokens of one part and of the
    result."""
    columns = ["key", "kind", "length", "prompt", "dropped", "held_out"]
    rows = pa.concat_tables(one.table("examples", columns) for one in parts)
    if not rows.num_rows:
        raise UserError(
            f"{path}: no example of kind {' or '.join(kinds)} to train on; change the arm's kinds or the"
            " mixture"
        )
    shuffled = [hashed(seed, id) for id in rows["key"].to_pylist()]
    rows = rows.take(pa.array(sorted(range(len(shuffled)), key=shuffled.__getitem__))).combine_chunks()
    counts = Counts()
    fits = pc.less_equal(rows["length"], max_length)
    usable = pc.is_null(rows["dropped"])
    tally(counts.dropped, pc.drop_null(rows["dropped"]))
    if long := pc.sum(pc.and_(usable, pc.invert(fits))).as_py():
        counts.dropped["too_long"] += long
    rows = rows.filter(pc.and_(usable, fits))
    apart, rows = rows.filter(rows["held_out"]), rows.filter(pc.invert(rows["held_out"]))
    counts.held_out = len(apart)
    tally(counts.kinds, rows["kind"])
    check_holdout(holdout, counts.held_out, len(rows))
    if not counts.kinds:
        remedies = {"too_long": f"raise train.max_length = {max_length}", **REMEDIES}
        raise nothing_left(path, f"examples of kind {' or '.join(kinds)}", counts, remedies)

    def packed(some: pa.Table) -> pa.Table:
        lengths = some["length"].to_pylist()
        bins = pack(lengths, max_length) if packing else [[i] for i in range(len(lengths))]
        order = pa.array([i for members in bins for i in members], pa.int64())
        some = some.take(order).combine_chunks()
        tokens = gathered(parts, "examples", some["key"].combine_chunks())
        return _packed(tokens, some["prompt"].combine_chunks(), [len(members) for members in bins])

    return packed(rows), packed(apart), counts


def held_out(batch: pa.RecordBatch, holdout: float) -> pa.Array:
    """Whether each row is held out."""
    if not holdout:
        return pa.array([False] * len(batch), pa.bool_())
    ids = batch["instruction_id"].to_pylist()
    return pa.array([is_held_out(one or "", holdout) for one in ids], pa.bool_())


def is_held_out(instruction_id: str, share: float) -> bool:
    """Whether the examples of an instruction are held out: by a hash of its id alone, so that the same
    instructions are held out for every arm, seed and data set."""
    return int.from_bytes(hashed(0, f"{instruction_id}/holdout")) < share * 2**128


def check_holdout(share: float, held_out: int, kept: int) -> None:
    """Raises UserError if a share above 0 holds out no example or leaves none."""
    if share and bool(held_out) != bool(kept):
        what, how = ("none", "higher") if kept else ("all", "lower")
        raise UserError(
            f"train.holdout = {share:g}: it holds out {what} of {held_out + kept} examples; set it {how}, or"
            " to 0"
        )


def tally(counter: Counter, column: pa.ChunkedArray, name: str = "{}") -> None:
    """Count a column's values, in the order of their first appearance. name: of a value's count."""
    for found in pc.value_counts(column).to_pylist():
        counter[name.format(found["values"])] += found["counts"]


def nothing_left(directory: str, what: str, counts: "Counts", remedies: dict[str, str]) -> UserError:
    """The error if every example was dropped: names the remedy of the most frequent fixable reason."""
    reason = max(remedies, key=lambda r: counts.dropped[r])
    return UserError(f"{directory}: all {counts.dropped.total()} {what} are dropped: {remedies[reason]}")


def encode(template: ChatTemplate, conversations: list[list[Message]]) -> list[Example | str]:
    """Tokenize conversations so that exactly the last assistant turn, with its end token, is the target.

    For a conversation that cannot be an example: the reason, one of REMEDIES (see `ChatTemplate.examples`).

    Raises UserError if the template is missing, fails, rewrites the prompt, or ends the turn without a token
    at which engines stop.
    """
    for messages in conversations:
        if not messages or messages[-1]["role"] != "assistant":
            raise UserError(
                "a training example must end with the assistant's turn; make the mixture again (setbacks mix)"
            )
    return [
        found if isinstance(found, str) else Example(*found) for found in template.examples(conversations)
    ]


def encoded_rows(template: ChatTemplate, rows: list[dict], seed: int) -> list[Example | str]:
    """The examples of rows of `schema.SFT` (see `encode`), of which some have a prefix.

    A prefix is cut after a number of tokens, each from one to the most as probable (see `cut_after`), and
    the answer follows in the same turn. The loss begins at the answer: at a position in the list of tokens,
    not at one that is found in a text.
    """
    found = encode(template, [row["messages"] for row in rows])
    begun = {place: row for place, row in enumerate(rows) if row.get("prefix")}
    parts = template.begun([row["messages"] for row in begun.values()], [r["prefix"] for r in begun.values()])
    for (place, row), part in zip(begun.items(), parts, strict=True):
        if isinstance(part, str):
            found[place] = part
            continue
        prompt, prefix, target = part
        kept = prompt + prefix[: cut_after(row["id"], len(prefix), row["prefix_tokens"], seed)]
        found[place] = Example(kept + target, len(kept))
    return found


def cut_after(id: str, length: int, most: int, seed: int) -> int:
    """Tokens of a prefix of this length that are kept: from 1 to min(most, length), drawn by seed and id."""
    return 1 + int.from_bytes(hashed(seed, f"{id}/prefix")) % min(most, length)


def pack(lengths: list[int], capacity: int) -> list[list[int]]:
    """Pack examples, by index, into sequences of at most `capacity` tokens by best fit; no example is split.

    Online best fit in the given order, not TRL's best fit *decreasing*: sorting by length would put short
    examples (refusals) and long ones (analyses) into different sequences; in hashed order every sequence
    samples the mixture.
    """
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (free tokens, bin), sorted
    for i, length in enumerate(lengths):
        at = bisect.bisect_left(open_bins, (length, -1))
        if at < len(open_bins):
            free, b = open_bins.pop(at)
        else:
            free, b = capacity, len(bins)
            bins.append([])
        bins[b].append(i)
        if free > length:
            bisect.insort(open_bins, (free - length, b))
    return bins


def table(sequences: list[list[Example]]) -> pa.Table:
    """Packed examples as a table of schema SEQUENCES."""
    ordered = [example for sequence in sequences for example in sequence]
    tokens = lists([np.array(example.tokens, np.int32) for example in ordered])
    prompts = pa.array([example.prompt for example in ordered], pa.int32())
    return _packed(tokens, prompts, [len(sequence) for sequence in sequences])


def _packed(tokens: pa.ListArray, prompts: pa.Array, members: list[int]) -> pa.Table:
    """Sequences as a table of schema SEQUENCES, from their examples one after the other.

    prompts: [examples], how many of an example's tokens carry no loss. members: [sequences], the examples of
    each.
    """
    flat, lengths = tokens.flatten().to_numpy(), pc.list_value_length(tokens).to_numpy()
    labels = flat.copy()
    for end, length, prompt in zip(np.cumsum(lengths), lengths, prompts.to_numpy(), strict=True):
        labels[end - length : end - length + prompt] = IGNORE
    sequences = np.add.reduceat(lengths, np.cumsum([0, *members[:-1]])) if members else lengths
    columns = [of_lengths(flat, sequences), of_lengths(labels, sequences), of_lengths(lengths, members)]
    return pa.table(columns, schema=SEQUENCES)


def steps(items: int, epochs: float, batch_size: int) -> int:
    """Optimizer steps of `epochs` passes over `items` items, `batch_size` items a step."""
    return max(1, -(-round(epochs * items) // batch_size))


def passes(items: int, epochs: float, batch_size: int, order: Callable[[int], list[int]]) -> list[int]:
    """The items of all optimizer steps, in order: step n takes [n·batch_size, (n+1)·batch_size) of the list.

    `order(epoch)` is an epoch's permutation of range(items). The last batch is filled from the next epoch, so
    every batch is full.
    """
    length = steps(items, epochs, batch_size) * batch_size
    return [item for epoch in range(-(-length // items)) for item in order(epoch)][:length]


def schedule(sequences: int, epochs: float, batch_size: int, seed: int) -> list[int]:
    """The sequences of all optimizer steps (see `passes`), shuffled anew each epoch."""

    def shuffled(epoch: int) -> list[int]:
        one = list(range(sequences))
        random.Random(f"{seed}:{epoch}").shuffle(one)
        return one

    return passes(sequences, epochs, batch_size, shuffled)


def hashed(seed: int, id: str) -> bytes:
    """Sort key for a seeded shuffle that does not depend on the order of the rows read."""
    return hashlib.blake2b(f"{seed}:{id}".encode(), digest_size=16).digest()
