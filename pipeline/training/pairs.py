"""From preference pairs to tokens, in a fixed order. Pure functions.

    prepare (distinct responses as tokens, pairs as their numbers) → order (of an epoch) → micro_batches (of a
    step) → lay_out (one row)

Everything is a function of the seed and of the pairs' ids, never of the order of rows in the Parquet files.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.templates import ChatTemplate
from pipeline.training import examples
from pipeline.training.examples import Counts, Example

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
# Why a pair is left out by the settings, as words for counts.
NOT_BEST, SMALL_GAP = "without_the_best_response", "below_min_gap"
_COLUMNS = ("id", "group", "prompt", "chosen", "rejected", "rank_chosen", "rank_rejected")
_ORDER = [
    ("group", "ascending"),
    ("rank_chosen", "ascending"),
    ("rank_rejected", "ascending"),
    ("id", "ascending"),
]


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
    where = None if kinds is None else pc.field("kind").isin(kinds)
    columns = [*_COLUMNS, *(["instruction_id"] if holdout else [])]
    rows = dataset.table(columns, where).sort_by(_ORDER)
    if not rows.num_rows:
        of = f" of kind {' or '.join(kinds)}" if kinds else ""
        raise UserError(
            f"{dataset.path}: no preference pair{of} to train on; see the drop reasons (setbacks show)"
        )
    counts = Counts()
    rows = select(rows, best_only, min_gap, counts)
    tokens: list[pa.Array] = []

    def made(rows: pa.Table, counts: Counts) -> pa.Table:
        pairs = [PAIRS.empty_table()]
        for batch in rows.to_batches(max_chunksize=1000):
            found, more = _pairs(template, batch.to_pylist(), sum(map(len, tokens)), max_length, counts)
            pairs.append(found)
            tokens.append(more)
        return pa.concat_tables(pairs).combine_chunks()

    held_out = PAIRS.empty_table()
    if holdout:
        ids = rows["instruction_id"].to_pylist()
        held = pa.array([examples.is_held_out(one or "", holdout) for one in ids], pa.bool_())
        apart = Counts()
        held_out, rows = made(rows.filter(held), apart), rows.filter(pc.invert(held))
        counts.dropped += apart.dropped
        counts.held_out = held_out.num_rows
    found = made(rows, counts)
    examples.check_holdout(holdout, counts.held_out, found.num_rows)
    if not counts.kinds:
        remedies = {
            "too_long": f"raise train.max_length = {max_length}",
            SMALL_GAP: f"lower train.min_gap = {min_gap}",
            "equal": "chosen and rejected are the same, so there is nothing to prefer; make the pairs again",
            **examples.REMEDIES,
        }
        raise examples.nothing_left(dataset.path, "pairs", counts, remedies)
    return pa.table([pa.chunked_array(tokens)], schema=RESPONSES), found, held_out, counts


def select(rows: pa.Table, best_only: bool, min_gap: int, counts: Counts) -> pa.Table:
    """The rows of a sorted table whose rank gap is at least `min_gap`.

    best_only: only those whose chosen side is the best response of its group, which is the one of the lowest
    rank: another than rank 1 if that response was lost. counts: its `dropped` is filled.
    """
    best: dict[str, int] = {}
    kept = []
    columns = (rows[name].to_pylist() for name in ("group", "rank_chosen", "rank_rejected"))
    for group, better, worse in zip(*columns, strict=True):
        if best_only and better != best.setdefault(group, better):
            counts.dropped[NOT_BEST] += 1
        elif worse - better < min_gap:
            counts.dropped[SMALL_GAP] += 1
        else:
            kept.append(True)
            continue
        kept.append(False)
    return rows.filter(pa.array(kept, pa.bool_()))


def _pairs(
    template: ChatTemplate, rows: list[dict], before: int, max_length: int, counts: Counts
) -> tuple[pa.Table, pa.Array]:
    """The usable pairs of some rows, and their responses' tokens, numbered from `before`."""
    encoded = _encode(template, rows)
    numbers: dict[tuple, int] = {}
    usable: dict[tuple, Example] = {}
    kept = []
    for row in rows:
        sides = [_key(row, side) for side in ("chosen", "rejected")]
        better, worse = (encoded[side] for side in sides)
        if isinstance(better, str) or isinstance(worse, str):
            counts.dropped[better if isinstance(better, str) else worse] += 1
            continue
        if (reason := _unusable(better, worse, max_length)) is not None:
            counts.dropped[reason] += 1
            continue
        usable.update(zip(sides, (better, worse), strict=True))
        gap = row["rank_rejected"] - row["rank_chosen"]
        counts.kinds[f"gap {gap}"] += 1
        chosen, rejected = (numbers.setdefault(side, before + len(numbers)) for side in sides)
        shared = common_prefix(better.tokens, worse.tokens)
        kept.append(
            {
                "id": row["id"],
                "group": row["group"],
                "gap": gap,
                "chosen": chosen,
                "rejected": rejected,
                "shared": shared,
            }
        )
    tokens = pa.array([usable[side].tokens for side in numbers], RESPONSES.field("tokens").type)
    return pa.Table.from_pylist(kept, PAIRS), tokens


def _key(row: dict, side: str) -> tuple:
    return tuple((m["role"], m["content"]) for m in row["prompt"] + row[side])


def _encode(template: ChatTemplate, rows: list[dict]) -> dict[tuple, Example | str]:
    """Each distinct conversation of some rows, tokenized once."""
    distinct = {_key(row, side): row["prompt"] + row[side] for row in rows for side in ("chosen", "rejected")}
    return dict(zip(distinct, examples.encode(template, list(distinct.values())), strict=True))


def _unusable(better: Example, worse: Example, max_length: int) -> str | None:
    if max(len(better.tokens), len(worse.tokens)) > max_length:
        return "too_long"
    return "equal" if better.tokens == worse.tokens else None


def common_prefix(a: list[int], b: list[int]) -> int:
    """Length of the longest common prefix of two sequences."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


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
    """Token sequences in one row that holds each prefix once.

    tokens:    the row; a sequence adds the tokens after its longest prefix shared with an earlier sequence
    positions: each token's position in its sequence
    previous:  row position of the token's predecessor; −1 for a sequence's first token
    own:       tokens that each part added; a sequence that adds none has no part
    paths:     per part, the row positions of the whole sequence's tokens
    of:        per input sequence, the row positions of its tokens
    """

    tokens: list[int]
    positions: list[int]
    previous: list[int]
    own: list[int]
    paths: list[list[int]]
    of: list[list[int]]


def lay_out(sequences: list[list[int]]) -> Row:
    """Sequences as a prefix forest in one row.

    After sorting, the longest shared prefix is always with the previous sequence.
    """
    row = Row([], [], [], [], [], [[]] * len(sequences))
    last: list[int] = []
    path: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: sequences[i]):
        known = common_prefix(last, sequences[i])
        last, path = sequences[i], path[:known]
        for position in range(known, len(last)):
            row.previous.append(path[-1] if path else -1)
            row.positions.append(position)
            path.append(len(row.tokens))
            row.tokens.append(last[position])
        if len(last) > known:
            row.own.append(len(last) - known)
            row.paths.append(path)
        row.of[i] = path
    return row
