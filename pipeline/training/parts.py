"""Lists of tokens without Python lists: what is made of parts of a data set, and put together from them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError


class Part(Protocol):
    """What was made of some rows of a data set: tables by name."""

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        """columns: None is all."""
        ...


class InMemory:
    """A part that is not kept anywhere."""

    def __init__(self, tables: Mapping[str, pa.Table]):
        self._tables = tables

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        table = self._tables[name]
        return table if columns is None else table.select(columns)


def lists(tokens: Collection[np.ndarray]) -> pa.ListArray:
    """Arrays of token ids as a column."""
    flat = np.concatenate([*tokens]) if tokens else np.empty(0, np.int32)
    return of_lengths(flat, [len(one) for one in tokens])


def of_lengths(flat: np.ndarray, lengths: Iterable[int]) -> pa.ListArray:
    """A column of lists; `flat` holds their elements, one list after the other.

    Raises UserError if there are too many elements for one column.
    """
    return pa.ListArray.from_arrays(pa.array(_ends(lengths), pa.int32()), pa.array(flat, pa.int32()))


def elements(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The elements of all lists of a column, one list after the other, and where each list ends."""
    array = column.combine_chunks()
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
    return array.flatten().to_numpy(), np.cumsum(lengths, dtype=np.int64)


def gathered(parts: Sequence[Part], name: str, keys: pa.Array) -> pa.ListArray:
    """The tokens of some keys, in their order; a key may repeat.

    name: of a table of every part, with the columns key, length and tokens. Holds the tokens of one part
    besides those that it returns.
    """
    known = [one.table(name, ["key", "length"]) for one in parts]
    table = pa.concat_tables(known).combine_chunks()
    places = pc.index_in(keys, value_set=table["key"].combine_chunks()).to_numpy()  # where a key comes first
    ends = _ends(table["length"].to_numpy()[places])
    flat, begin = np.empty(ends[-1], np.int32), 0
    for one, rows in zip(parts, known, strict=True):
        wanted = np.flatnonzero((begin <= places) & (places < begin + rows.num_rows))
        if len(wanted):
            tokens, own = elements(one.table(name, ["tokens"])["tokens"])
            own = np.concatenate([[0], own])
            for to, place in zip(wanted.tolist(), (places[wanted] - begin).tolist(), strict=True):
                flat[ends[to] : ends[to + 1]] = tokens[own[place] : own[place + 1]]
        begin += rows.num_rows
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat))


def _ends(lengths: Iterable[int]) -> np.ndarray:
    """Where lists of these lengths end, if they lie one after the other; first 0."""
    ends = np.concatenate([[0], np.cumsum(np.fromiter(lengths, np.int64))])
    if ends[-1] >= 2**31:
        raise UserError(
            f"a training set of {ends[-1]:,} tokens: it can have {2**31 - 1:,}; take fewer instructions, or"
            " share them among arms"
        )
    return ends
