"""From conversations to packed, labeled token sequences in a fixed order. Pure functions.

    read → encode (labels on the last assistant turn only) → pack (whole examples, best fit) → schedule (which
    sequences make step n)

Everything is a function of the seed and of the examples' ids, never of the order of rows in the Parquet
files.
"""

import bisect
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import TemplateError

from pipeline.data.dataset import Dataset
from pipeline.errors import UserError

IGNORE = -100  # the label of a token that is not a training target
MEND_ACROSS_TURNS = (
    "the chat template lets prompt and target share a token; end its generation prompt with a special token"
    " or a newline"
)

# A packed sequence as TRL's padding-free collator takes it; position ids restart at every one of
# `seq_lengths`.
SEQUENCES = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.int32())),
        ("seq_lengths", pa.list_(pa.int32())),
    ]
)


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


def prepare(
    tokenizer: Any, dataset: Dataset, kinds: list[str], seed: int, max_length: int, packing: bool
) -> tuple[pa.Table, Counts]:
    """The training set of one arm as a table of schema SEQUENCES, and the counts of its rows.

    Raises UserError if the data set has no usable row of these kinds, or the tokenizer cannot label the rows
    (see `encode`).
    """
    rows = read(dataset, kinds)
    rows.sort(key=lambda row: hashed(seed, row["id"]))
    counts = Counts()
    kept = []
    for start in range(0, len(rows), 1000):
        batch = rows[start : start + 1000]
        encoded = encode(tokenizer, [row["messages"] for row in batch])
        for row, example in zip(batch, encoded, strict=True):
            if example is None:
                counts.dropped["token_across_turns"] += 1
            elif len(example.tokens) > max_length:
                counts.dropped["too_long"] += 1
            else:
                counts.kinds[row["kind"]] += 1
                kept.append(example)
    if not kept:
        mends = {
            "too_long": f"raise train.max_length = {max_length}",
            "token_across_turns": MEND_ACROSS_TURNS,
        }
        raise nothing_left(dataset.path, f"examples of kind {' or '.join(kinds)}", counts, mends)
    bins = pack([len(e.tokens) for e in kept], max_length) if packing else [[i] for i in range(len(kept))]
    return table([[kept[i] for i in members] for members in bins]), counts


def read(dataset: Dataset, kinds: list[str]) -> list[dict]:
    """The rows (id, kind, messages) of these kinds in a data set of `schema.SFT`. No row is a UserError."""
    rows = dataset.table(["id", "kind", "messages"], pc.field("kind").isin(kinds)).to_pylist()
    if not rows:
        raise UserError(
            f"{dataset.path}: no example of kind {' or '.join(kinds)} to train on; change the arm's kinds or"
            " the mixture"
        )
    return rows


def nothing_left(directory: str, what: str, counts: "Counts", mends: dict[str, str]) -> UserError:
    """The error if every example was dropped: names the remedy of the most frequent fixable reason."""
    reason = max(mends, key=lambda r: counts.dropped[r])
    return UserError(f"{directory}: all {counts.dropped.total()} {what} are dropped: {mends[reason]}")


def encode(tokenizer: Any, conversations: list[list[dict]]) -> list[Example | None]:
    """Tokenize conversations so that exactly the last assistant turn, with its end token, is the target.

    Works with any chat template for which the conversation without its last turn, plus the generation prompt,
    is a prefix of the whole conversation. Both texts are rendered and tokenized; the target starts after the
    tokens of the first. None for an example in which one token spans prompt and target: that token cannot
    occur at inference.

    Raises UserError if the template is missing, fails, rewrites the prompt, or ends the turn without a
    special token.
    """
    name = tokenizer.name_or_path
    if not tokenizer.chat_template:
        raise UserError(
            f"model {name} has no chat template: add chat_template.jinja to its directory, or use its chat"
            " variant"
        )
    for messages in conversations:
        if not messages or messages[-1]["role"] != "assistant":
            raise UserError(
                "a training example must end with the assistant's turn; make the mixture again (setbacks mix)"
            )
    prompts = [_render(tokenizer, messages[:-1], add_generation_prompt=True) for messages in conversations]
    wholes = [_render(tokenizer, messages) for messages in conversations]
    if not all(whole.startswith(prompt) for prompt, whole in zip(prompts, wholes, strict=True)):
        raise UserError(
            f"the chat template of model {name} writes a generation prompt that is not how the assistant's"
            " turn begins in a whole conversation, so the target cannot be separated from the prompt: use"
            " another template"
        )
    markers = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    pairs = zip(_tokens(tokenizer, prompts), _tokens(tokenizer, wholes), strict=True)
    return [_example(name, prompt, whole, markers) for prompt, whole in pairs]


def _render(tokenizer: Any, messages: list[dict], **kwargs: bool) -> str:
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
    ) as e:  # its message may hold a conversation's text
        raise UserError(
            f"the chat template of model {tokenizer.name_or_path} cannot be rendered ({type(e).__name__}):"
            " fix its chat_template.jinja"
        ) from None


def _tokens(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _example(name: str, prompt: list[int], whole: list[int], markers: set[int]) -> Example | None:
    if whole[: len(prompt)] != prompt:
        return None
    # Text that a template writes after the end-of-turn token (ChatML: a newline) is neither target nor
    # context.
    end = next((i for i in reversed(range(len(prompt), len(whole))) if whole[i] in markers), None)
    if end is None:
        raise UserError(
            f"the chat template of model {name} does not end the assistant's turn with a special token, so"
            " the model could not learn to stop: end the turn with eos_token in the template"
        )
    return Example(whole[: end + 1], len(prompt))


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
    return pa.table(
        {
            "input_ids": [[token for e in sequence for token in e.tokens] for sequence in sequences],
            "labels": [[label for e in sequence for label in e.labels] for sequence in sequences],
            "seq_lengths": [[len(e.tokens) for e in sequence] for sequence in sequences],
        },
        schema=SEQUENCES,
    )


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
