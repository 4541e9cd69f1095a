"""The columns that a report counts, read in a stream: no table of all rows is held, however many there are.

Everything here takes a table, or `Numbers` of a data set, and gives the same for both.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import Dataset
from pipeline.schema import Schema

_AT_ONCE = 10_000  # rows of a table
_HEX = 32  # characters of an id that is a digest itself


@dataclass(frozen=True)
class Numbers:
    """The columns without texts of a data set. Those that older versions did not write are null.

    only: values that columns have in these rows; other rows are left out.
    """

    dataset: Dataset
    schema: Schema
    only: Mapping[str, Any] = field(default_factory=dict)
    _checked: set[str] = field(default_factory=set, compare=False, repr=False)

    @property
    def column_names(self) -> list[str]:
        return [column.name for column in self.schema.columns if column.text is None]

    def __len__(self) -> int:
        return sum(batch.num_rows for batch in self.batches(["id"]))

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Some columns, a row group at a time. Raises UserError as `Dataset.tables` does."""
        types = {column.name: column.type for column in self.schema.columns}
        written, read = set(self.dataset.schema.names), list(dict.fromkeys([*columns, *self.only]))
        there = [name for name in read if name in written]
        # Without a column that is there, a table would not know how many rows it has.
        for table in self.dataset.tables(there or ["id"], checked=self._checked):
            made = [table[name] if name in written else pa.nulls(len(table), types[name]) for name in read]
            yield filtered(pa.table(made, names=read), self.only).select(list(columns))


Rows: TypeAlias = pa.Table | Numbers


def batches(rows: Rows, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Some columns of some rows at a time, in their order."""
    if isinstance(rows, Numbers):
        yield from rows.batches(columns)
        return
    for start in range(0, len(rows), _AT_ONCE):
        yield rows.select(columns).slice(start, _AT_ONCE)


def filtered(table: pa.Table, only: Mapping[str, Any]) -> pa.Table:
    """The rows with these values in these columns."""
    for name, value in only.items():
        table = table.filter(pc.equal(table[name], value))
    return table


def having(rows: Rows, **only: Any) -> Rows:
    """The rows with these values in these columns, to be counted in the same way."""
    if isinstance(rows, Numbers):
        return replace(rows, only={**rows.only, **only})
    return filtered(rows, only)


def counted(rows: Rows, columns: Sequence[str], **read: Callable[[Any], Any]) -> list[tuple[dict, int]]:
    """The different rows of these columns, in the order of their first appearance, and how many there are.

    The value of a column of lists is whether the list has entries. read: what a column's value is read as, so
    that values which mean the same count as one.
    """
    found: Counter[tuple] = Counter()
    for batch in batches(rows, columns):
        batch = pa.table([_has_entries(batch[name]) for name in columns], names=list(columns))
        placed = batch.append_column("place", pa.array(np.arange(len(batch))))
        grouped = placed.group_by(list(columns)).aggregate([([], "count_all"), ("place", "min")])
        grouped = grouped.sort_by("place_min")
        values = [
            [read[name](value) for value in column] if name in read else column
            for name, column in ((name, grouped[name].to_pylist()) for name in columns)
        ]
        for key, count in zip(zip(*values, strict=True), grouped["count_all"].to_pylist(), strict=True):
            found[key] += count
    return [(dict(zip(columns, key, strict=True)), count) for key, count in found.items()]


def _has_entries(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Of a column of lists, whether each has entries; another column as it is."""
    if not pa.types.is_list(column.type):
        return column
    return pc.greater(pc.fill_null(pc.list_value_length(column), 0), 0)


def entries(rows: Rows, column: str, **only: Any) -> Counter[str]:
    """How often each entry is in the lists of a column.

    only: values that other columns have in these rows.
    """
    found: Counter[str] = Counter()
    for batch in batches(rows, [column, *only]):
        batch = filtered(batch, only)
        for entry in pc.value_counts(pc.list_flatten(batch[column])).to_pylist():
            found[entry["values"]] += entry["counts"]
    return found


def total(rows: Rows, column: str) -> int:
    """The sum of a column of whole numbers."""
    return sum(pc.sum(batch[column]).as_py() or 0 for batch in batches(rows, [column]))


def occurrences(rows: Rows, column: str) -> tuple[int, int]:
    """How many different ids a column has, and how often the most frequent one occurs. 16 bytes a row."""
    parts = [digests(batch[column]) for batch in batches(rows, [column])]
    if not parts or not sum(map(len, parts)):
        return 0, 0
    ids = np.concatenate(parts)
    parts.clear()
    ids.sort()
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    return len(starts), int(np.diff(np.append(starts, len(ids))).max())


@dataclass(frozen=True)
class Means:
    """The mean over the rows of every id, by rising digest of the id.

    ids: [n] digests. values: [n].
    """

    ids: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def both(self, other: "Means") -> tuple[np.ndarray, np.ndarray]:
        """The values of the ids that both have: own, and the other's."""
        _, own, its = np.intersect1d(self.ids, other.ids, assume_unique=True, return_indices=True)
        return self.values[own], other.values[its]


NO_MEANS = Means(np.empty(0, "S16"), np.empty(0))


def means(
    rows: Rows,
    keys: Sequence[str],
    column: str,
    value: Callable[[Any], float],
    *,
    of: str | Sequence[str] = "instruction_id",
    only: Mapping[str, Any],
) -> dict[tuple, Means]:
    """The means of a column over the rows of every id, by the values of the columns `keys`. 24 bytes a row.

    value: of a column's value; null is left out. of: the column of ids, or the columns that are an id
    together. only: values that other columns have in these rows.
    """
    parts = [of] if isinstance(of, str) else list(of)

    def known() -> Iterator[tuple[pa.Table, np.ndarray, np.ndarray]]:
        for batch in batches(rows, [*keys, column, *parts, *only]):
            batch = filtered(batch, only)
            batch = batch.filter(pc.is_valid(batch[column]))
            if len(batch):
                coded = batch[column].combine_chunks().dictionary_encode()
                values = np.array([value(one) for one in coded.dictionary.to_pylist()], float)
                ids = batch[parts[0]]
                if parts[1:]:
                    ids = pc.binary_join_element_wise(*(batch[part] for part in parts), "\n")
                    if ids.null_count:
                        raise ValueError(f"rows without {' or '.join(parts)} cannot be paired")
                yield batch.select(list(keys)), digests(ids), values[coded.indices.to_numpy()]

    return grouped_means(known())


def grouped_means(parts: Iterable[tuple[pa.Table, np.ndarray, np.ndarray]]) -> dict[tuple, Means]:
    """The means of values by the rows of `groups` and by id.

    parts: of the rows, some at a time: groups [n], digests of ids [n], values [n].
    """
    found: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for groups, ids, values in parts:
        for key, places in places_of(groups):
            found[key].append((ids[places], values[places]))
    return {key: mean_by_id(*map(np.concatenate, zip(*of, strict=True))) for key, of in found.items()}


def places_of(groups: pa.Table) -> Iterator[tuple[tuple, np.ndarray]]:
    """The different rows of a small table, in the order of their first appearance, and the places of each."""
    names = groups.column_names
    placed = groups.append_column("place", pa.array(np.arange(len(groups))))
    grouped = placed.group_by(names, use_threads=False).aggregate([("place", "list"), ("place", "min")])
    grouped = grouped.sort_by("place_min")
    for row in zip(*(grouped[name].to_pylist() for name in names), grouped["place_list"], strict=True):
        yield tuple(row[:-1]), row[-1].values.to_numpy()


def mean_by_id(ids: np.ndarray, values: np.ndarray) -> Means:
    """ids: [n] digests, in any order. values: [n]."""
    if not len(ids):
        return NO_MEANS
    order = np.argsort(ids, kind="stable")
    ids, values = ids[order], values[order]
    starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
    ends = np.append(starts[1:], len(ids))
    sums = np.add.reduceat(values, starts)
    for place in np.flatnonzero(ends - starts > 2):  # a sum of two is rounded once, one of more is not
        sums[place] = math.fsum(values[starts[place] : ends[place]])
    return Means(ids[starts], sums / (ends - starts))


def digests(ids: pa.ChunkedArray) -> np.ndarray:
    """16 bytes for each id: the digest that it is written as, or one of another text."""
    array = ids.combine_chunks()
    is_digest = pc.match_substring_regex(array, f"^[0-9a-f]{{{_HEX}}}$")
    if pc.all(is_digest, skip_nulls=False).as_py():
        text = np.frombuffer("".join(array.to_pylist()).encode(), np.uint8).reshape(-1, _HEX)
        nibbles = np.where(text >= ord("a"), text - ord("a") + 10, text - ord("0"))
        return np.ascontiguousarray(nibbles[:, ::2] << 4 | nibbles[:, 1::2]).view("S16")[:, 0]
    found = [
        bytes.fromhex(id) if hexadecimal else blake2b(repr(id).encode(), digest_size=16).digest()
        for id, hexadecimal in zip(array.to_pylist(), is_digest.to_pylist(), strict=True)
    ]
    return np.array(found, "S16")
