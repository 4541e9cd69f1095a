"""From preference pairs to tokens, in a fixed order. Pure functions.

    part (of the rows: distinct responses as tokens, pairs as digests of their responses) → whole (all pairs
    in their order, as numbers of responses) → order (of an epoch) → micro_batches (of a step) → lay_out (one
    row)

Everything is a function of the seed and of the pairs' ids, never of the order of rows in the Parquet files,
nor of the parts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from pipeline.data.dataset import ALL, Dataset, Share
from pipeline.errors import UserError
from pipeline.templates import ChatTemplate
from pipeline.training import examples
from pipeline.training.examples import Counts, tally
from pipeline.training.parts import InMemory, Part, gathered, lists

# Each distinct prompt + response once; pairs refer to a response by its row number.
RESPONSES = pa.schema([("tokens", pa.list_(pa.int32()))])
PAIRS = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("gap", pa.int32()),  # rank of the rejected response − rank of the chosen one
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("shared", pa.int32()),  # length of the common prefix, prompt included
    ]
)
# What is made of a part of the rows. A conversation's key is a digest of its roles and texts.
_KEY = pa.binary(16)
_PART_RESPONSES = pa.schema([("key", _KEY), ("length", pa.int32()), ("tokens", pa.list_(pa.int32()))])
_PART_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("group", pa.string()),
        ("rank_chosen", pa.int32()),
        ("rank_rejected", pa.int32()),
        ("chosen", _KEY),
        ("rejected", _KEY),
        ("shared", pa.int32()),
        ("dropped", pa.string()),  # why the pair is not used; null = it is
        ("held_out", pa.bool_()),
    ]
)
# Why a pair is left out by the settings, as words for counts.
NOT_BEST, SMALL_GAP = "without_the_best_response", "below_min_gap"
_COLUMNS = ("id", "group", "prompt", "chosen", "rejected", "rank_chosen", "rank_rejected")
_ORDER = [
    ("group", "ascending"),
    ("rank_chosen", "ascending"),
    ("rank_rejected", "ascending"),
    ("id", "ascending"),
]
_AT_ONCE = 1000  # pairs that share one numbering of their distinct responses


def prepare(
    template: ChatTemplate,
    dataset: Dataset,
    max_length: int,
    *,
    kinds: list[str] | None = None,
    best_only: bool = False,
    min_gap: int = 1,
    holdout: float = 0.0,
) -> tuple[pa.Table, pa.Table, pa.Table, Counts]:
    """Responses, pairs to train on, pairs held out (both by group, best chosen first), and row counts of a
    data set of `schema.PREFERENCES`.

    kinds: those to read; None is all. holdout: share of the instructions whose pairs are held out.
    best_only, min_gap: which pairs are used, see `select`; the others count as dropped. A pair is also
    dropped if its longer side exceeds max_length, if both sides are the same tokens, or if one side cannot be
    an example. Raises UserError if no pair can be used, or the template cannot separate prompt and response
    (see `examples.encode`).
    """
    only = InMemory(part(template, dataset, max_length, kinds=kinds, holdout=holdout))
    return whole(
        dataset.path,
        [only],
        max_length,
        kinds=kinds,
        best_only=best_only,
        min_gap=min_gap,
        holdout=holdout,
    )


def part(
    template: ChatTemplate,
    dataset: Dataset,
    max_length: int,
    *,
    kinds: list[str] | None = None,
    share: Share = ALL,
    holdout: float = 0.0,
) -> dict[str, pa.Table]:
    """Distinct responses and pairs of a share of a data set's rows, in the rows' order.

    A response is tokenized once, however many pairs have it, and prompts once for all their responses.
    holdout: as in `prepare`.
    """
    known: dict[bytes, _Encoded | str] = {}
    rows: list[pa.Table] = []
    more = {"kind": kinds is not None, "instruction_id": bool(holdout)}
    columns = [*_COLUMNS, *(name for name, needed in more.items() if needed)]
    for table in dataset.tables(columns, share=share):
        if kinds is not None:
            table = table.filter(pc.is_in(table["kind"], pa.array(kinds, pa.string())))
        rows += [
            _rows(template, batch, known, max_length, holdout)
            for batch in table.to_batches(max_chunksize=_AT_ONCE)
        ]
    kept = {key: one.tokens for key, one in known.items() if not isinstance(one, str) and one.used}
    responses = pa.table(
        [
            pa.array([*kept], _KEY),
            pa.array([len(tokens) for tokens in kept.values()], pa.int32()),
            lists(kept.values()),
        ],
        schema=_PART_RESPONSES,
    )
    return {
        "responses": responses,
        "rows": pa.concat_tables(rows) if rows else _PART_ROWS.empty_table(),
    }


@dataclass
class _Encoded:
    """A response with its prompt. used: whether a pair that is not dropped has it."""

    tokens: np.ndarray
    used: bool = False


def _rows(
    template: ChatTemplate,
    batch: pa.RecordBatch,
    known: dict[bytes, _Encoded | str],
    max_length: int,
    holdout: float,
) -> pa.Table:
    """The pairs of some rows; `known` gets their responses."""
    keys = _keys(template, batch, known)
    shared, dropped = [], []
    for ours, theirs in keys:
        better, worse = known[ours], known[theirs]
        reason = _unusable(better, worse, max_length)
        dropped.append(reason)
        if isinstance(better, str) or isinstance(worse, str) or reason is not None:
            shared.append(0)
            continue
        better.used = worse.used = True
        shared.append(common_prefix(better.tokens, worse.tokens))
    sides = [pa.array([pair[side] for pair in keys], _KEY) for side in (0, 1)]
    ranks = [batch[name].cast(pa.int32()) for name in ("rank_chosen", "rank_rejected")]
    return pa.table(
        [
            batch["id"],
            batch["group"],
            *ranks,
            *sides,
            pa.array(shared, pa.int32()),
            pa.array(dropped, pa.string()),
            examples.held_out(batch, holdout),
        ],
        schema=_PART_ROWS,
    )


def _keys(
    template: ChatTemplate, batch: pa.RecordBatch, known: dict[bytes, _Encoded | str]
) -> list[tuple[bytes, bytes]]:
    """The keys of both conversations of every pair. New conversations are tokenized into `known`."""
    told = pa.concat_arrays([_told(batch, side) for side in ("chosen", "rejected")]).dictionary_encode()
    digests = [blake2b(text.encode(), digest_size=16).digest() for text in told.dictionary.to_pylist()]
    codes = told.indices.to_numpy()
    _, places = np.unique(codes, return_index=True)  # the first place of every code, in the codes' order
    new = [(key, int(place)) for key, place in zip(digests, places, strict=True) if key not in known]
    conversations = [
        batch["prompt"][place % len(batch)].as_py()
        + batch["chosen" if place < len(batch) else "rejected"][place % len(batch)].as_py()
        for _, place in new
    ]
    for (key, _), found in zip(new, examples.encode(template, conversations), strict=True):
        known[key] = found if isinstance(found, str) else _Encoded(np.array(found.tokens, np.int32))
    chosen, rejected = codes[: len(batch)].tolist(), codes[len(batch) :].tolist()
    return [(digests[ours], digests[theirs]) for ours, theirs in zip(chosen, rejected, strict=True)]


def _told(batch: pa.RecordBatch, side: str) -> pa.Array:
    """Every prompt with its response as one text: all roles, the lengths of all texts, and all texts."""
    joined = []
    for of in (
        lambda messages: messages.field("role"),
        lambda messages: pc.binary_length(messages.field("content")).cast(pa.string()),
        lambda messages: messages.field("content"),
    ):
        for name in ("prompt", side):
            column = batch[name]
            texts = pa.ListArray.from_arrays(column.offsets, of(column.values))
            joined.append(pc.binary_join(texts, "\0"))
    return pc.binary_join_element_wise(*joined, "\0")


def whole(
    path: str,
    parts: Sequence[Part],
    max_length: int,
    *,
    kinds: list[str] | None = None,
    best_only: bool = False,
    min_gap: int = 1,
    holdout: float = 0.0,
) -> tuple[pa.Table, pa.Table, pa.Table, Counts]:
    """What `prepare` returns, from the parts of a data set at `path`. Holds the tokens of one part and of the
    result."""
    rows = pa.concat_tables(one.table("rows") for one in parts).combine_chunks().sort_by(_ORDER)
    if not rows.num_rows:
        of = f" of kind {' or '.join(kinds)}" if kinds else ""
        raise UserError(f"{path}: no preference pair{of} to train on; see the drop reasons (setbacks show)")
    counts = Counts()
    rows = select(rows, best_only, min_gap, counts)
    tally(counts.dropped, pc.drop_null(rows["dropped"]))
    apart = rows["held_out"]
    held, first = rows.filter(apart), -(-pc.sum(apart).as_py() // _AT_ONCE) if len(rows) else 0
    rows = pa.concat_tables([held, rows.filter(pc.invert(apart))])
    batches = np.concatenate([_batches(len(held)), first + _batches(len(rows) - len(held))])
    usable = pc.is_null(rows["dropped"])
    rows, batches = rows.filter(usable), batches[usable.to_numpy()]
    counts.held_out = pc.sum(rows["held_out"]).as_py() or 0
    gaps = pc.subtract(rows["rank_rejected"], rows["rank_chosen"])
    tally(counts.kinds, gaps.slice(counts.held_out), "gap {}")
    examples.check_holdout(holdout, counts.held_out, len(rows) - counts.held_out)
    if not counts.kinds:
        remedies = {
            "too_long": f"raise train.max_length = {max_length}",
            SMALL_GAP: f"lower train.min_gap = {min_gap}",
            "equal": "chosen and rejected are the same, so there is nothing to prefer; make the pairs again",
            **examples.REMEDIES,
        }
        raise examples.nothing_left(path, "pairs", counts, remedies)
    keys, sides = _numbered(rows, batches)
    pairs = pa.table(
        [rows["id"], rows["group"], gaps, *(pa.array(side, pa.int32()) for side in sides), rows["shared"]],
        schema=PAIRS,
    )
    responses = pa.table([gathered(parts, "responses", keys)], schema=RESPONSES)
    found, held_out = pairs.slice(counts.held_out), pairs.slice(0, counts.held_out)
    return responses, found.combine_chunks(), held_out.combine_chunks(), counts


def _batches(rows: int) -> np.ndarray:
    """The number of every row's batch."""
    return np.arange(rows) // _AT_ONCE


def _numbered(rows: pa.Table, batches: np.ndarray) -> tuple[pa.Array, tuple[np.ndarray, np.ndarray]]:
    """The keys of all responses in the order of their numbers, and both sides of every pair as numbers.

    batches: [pairs], rising. Pairs of a batch share responses; each is numbered where it comes first in the
    batch, chosen before rejected. A response that two batches have is there twice.
    """
    both = pa.concat_arrays(
        [chunk for side in ("chosen", "rejected") for chunk in rows[side].chunks]
    ).dictionary_encode()
    codes = both.indices.to_numpy().reshape(2, -1)  # [side, pair]
    distinct = len(both.dictionary)
    uses = (batches * distinct + codes).T.ravel()  # chosen and rejected of every pair in turn
    found, first, use = np.unique(uses, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty(len(found), np.int64)
    numbers[order] = np.arange(len(found))
    chosen, rejected = numbers[use].reshape(-1, 2).T
    return both.dictionary.take(pa.array(found[order] % distinct)), (chosen, rejected)


def select(rows: pa.Table, best_only: bool, min_gap: int, counts: Counts) -> pa.Table:
    """The rows of a sorted table whose rank gap is at least `min_gap`.

    best_only: only those whose chosen side is the best response of its group, which is the one of the lowest
    rank: another than rank 1 if that response was lost. counts: its `dropped` is filled.
    """
    better, worse = (rows[name].to_numpy() for name in ("rank_chosen", "rank_rejected"))
    best = np.ones(len(rows), bool)
    if best_only:
        groups = rows["group"].combine_chunks().dictionary_encode().indices.to_numpy()
        _, first, group = np.unique(groups, return_index=True, return_inverse=True)
        best = better == better[first][group]
    wide = worse - better >= min_gap
    for reason, count in ((NOT_BEST, np.sum(~best)), (SMALL_GAP, np.sum(best & ~wide))):
        if count:
            counts.dropped[reason] += int(count)
    return rows.filter(pa.array(best & wide))


def _unusable(better: _Encoded | str, worse: _Encoded | str, max_length: int) -> str | None:
    """Why a pair cannot be used, as a word for counts; None if it can."""
    if isinstance(better, str) or isinstance(worse, str):
        return better if isinstance(better, str) else str(worse)
    if max(len(better.tokens), len(worse.tokens)) > max_length:
        return "too_long"
    return "equal" if np.array_equal(better.tokens, worse.tokens) else None


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """Length of the longest common prefix of two sequences."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    place = int(differ.argmax()) if length else 0
    return place if length and differ[place] else length


# -- order


def epoch_order(pairs: pa.Table, curriculum: str, seed: int) -> Callable[[int], list[int]]:
    """The permutation of the pairs (by row number) of an epoch: a function of seed, ids and epoch.

    Pairs of a group (one request's responses) stay together, so that a micro-step computes their shared
    prefix once; groups are shuffled anew every epoch. As if single pairs were shuffled, an epoch sees each
    pair once, at any position with equal probability, so a step's gradient is unbiased. But the pairs of a
    step come from few requests and resemble each other. The gradient's variance is therefore higher: at
    worst, that of as many independent pairs as the step has groups. A larger batch_size or a lower
    learning_rate compensates.

    ordered: by falling rank gap; within each gap, groups are shuffled in the same way.
    """
    groups, gaps = pairs["group"].to_pylist(), pairs["gap"].to_pylist()

    def order(epoch: int) -> list[int]:
        place = {group: examples.hashed(seed, f"{group}:{epoch}") for group in set(groups)}
        falling = [-gap if curriculum == "ordered" else 0 for gap in gaps]
        return sorted(range(len(groups)), key=lambda i: (falling[i], place[groups[i]], groups[i], i))

    return order


def micro_batches(step: list[int], groups: list[str], number: int) -> list[list[int]]:
    """Split a step's pairs into `number` non-empty micro-batches; split a group only if groups are too few.

    groups: the group of every pair. Groups are assigned largest first, each to the smallest micro-batch, so
    micro-batches differ in size; the loss is the mean over the step's pairs, whatever the micro-batches. The
    largest micro-batches come first: workers take them in turn, so workers get about equal work at the same
    time.
    """
    parts: dict[str, list[int]] = {}
    for pair in step:
        parts.setdefault(groups[pair], []).append(pair)
    whole = list(parts.values())
    while len(whole) < number:
        largest = whole.pop(max(range(len(whole)), key=lambda i: len(whole[i])))
        whole += [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    batches: list[list[int]] = [[] for _ in range(number)]
    for part in sorted(whole, key=len, reverse=True):
        min(batches, key=len).extend(part)
    return sorted(batches, key=len, reverse=True)


# -- shared prefixes of a micro-batch


@dataclass(frozen=True)
class Row:
    """Token sequences in one row that holds each prefix once. Arrays of int64.

    tokens:    [L]; a sequence adds the tokens after its longest prefix shared with an earlier sequence
    positions: [L] each token's position in its sequence
    previous:  [L] row position of the token's predecessor; −1 for a sequence's first token
    own:       tokens that each part added; a sequence that adds none has no part
    paths:     per part, the row positions of the whole sequence's tokens
    of:        per input sequence, the row positions of its tokens
    """

    tokens: np.ndarray
    positions: np.ndarray
    previous: np.ndarray
    own: list[int]
    paths: list[np.ndarray]
    of: list[np.ndarray]


def lay_out(sequences: Sequence[ArrayLike]) -> Row:
    """Token sequences, one or more, as a prefix forest in one row.

    After sorting, the longest shared prefix is always with the previous sequence.
    """
    tokens_of = [np.asarray(sequence, np.int32) for sequence in sequences]
    parts: list[tuple[np.ndarray, ...]] = []  # tokens, positions, and predecessors that each part adds
    paths: list[np.ndarray] = []
    of: list[np.ndarray] = [np.empty(0, np.int64)] * len(sequences)
    last, path, length = np.empty(0, np.int32), np.empty(0, np.int64), 0
    # Big-endian numbers sort as their bytes do.
    for i in sorted(range(len(sequences)), key=lambda i: tokens_of[i].astype(">u4").tobytes()):
        known, last = common_prefix(last, tokens_of[i]), tokens_of[i]
        path = np.concatenate([path[:known], np.arange(length, length + len(last) - known)])
        if len(last) > known:
            before = path[known - 1 : -1] if known else np.concatenate([[-1], path[:-1]])
            parts.append((last[known:], np.arange(known, len(last)), before))
            paths.append(path)
            length += len(last) - known
        of[i] = path
    tokens, positions, previous = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return Row(tokens.astype(np.int64), positions, previous, [len(part[0]) for part in parts], paths, of)
