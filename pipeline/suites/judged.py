"""The answers that several judges judge, aligned: a byte per answer and judge, however long the ids are.

Verdicts are small whole numbers: 1 is true, 0 is false, UNKNOWN is none, or one that could not be read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.report.numbers import Rows, batches, digests, places_of

UNKNOWN = -1

# Ids of answers → ids of the rows that hold them, and the places in these rows, from 0.
Placed = Callable[[pa.ChunkedArray], tuple[pa.ChunkedArray, np.ndarray]]


@dataclass(frozen=True)
class Answers:
    """The judged answers of a suite, by rising digest of the row that holds them.

    rows:   [rows] digests of ids
    starts: [rows + 1] the place of a row's first answer among all
    groups: [rows] places in `keys`, the groups that are counted apart
    own:    [answers] the verdicts of the suite's own judge
    """

    rows: np.ndarray
    starts: np.ndarray
    groups: np.ndarray
    own: np.ndarray
    keys: list[tuple]

    @classmethod
    def of(cls, tables: Iterable[pa.Table], by: Sequence[str]) -> "Answers":
        """tables: of the rows, some at a time: `id`, the columns `by` of their group, and `verdict`, a truth
        value or a list of them."""
        keys: dict[tuple, int] = {}
        parts: list[tuple[np.ndarray, ...]] = []
        for table in filter(len, tables):
            groups = np.empty(len(table), np.int32)
            for key, places in places_of(table.select(list(by))):
                groups[places] = keys.setdefault(key, len(keys))
            parts.append((digests(table["id"]), *_flat(table["verdict"]), groups))
        if not parts:
            nothing = np.empty(0, np.int8)
            return cls(nothing.astype("S16"), np.zeros(1, np.int64), nothing, nothing, [])
        rows, sizes, own, groups = map(np.concatenate, zip(*parts, strict=True))
        parts.clear()
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate([[0], np.cumsum(sizes)])  # as they were read
        sorted_starts = np.concatenate([[0], np.cumsum(sizes[order])])
        moved = np.repeat(starts[order] - sorted_starts[:-1], sizes[order])
        return cls(rows[order], sorted_starts, groups[order], own[moved + np.arange(len(own))], list(keys))

    def of_judges(
        self,
        verdicts: Mapping[str, Rows],
        names: Iterable[str],
        column: str,
        *,
        read: Callable[[pa.ChunkedArray], pa.ChunkedArray] = lambda column: column,
        placed: Placed = lambda ids: (ids, np.zeros(len(ids), np.int64)),
    ) -> dict[str, np.ndarray | None]:
        """What more judges say of each answer, by judge: [answers]; None if a judge has not judged yet.

        read: the column as truth values. placed: where an answer is, if rows have several.
        """
        found: dict[str, np.ndarray | None] = {}
        for name in names:
            table = verdicts.get(name)
            found[name] = None if table is None else np.full(len(self.own), UNKNOWN, np.int8)
            for batch in [] if table is None else batches(table, ["answer_id", column]):
                places, known = self._places(*placed(batch["answer_id"]))
                found[name][places] = _codes(read(batch[column]))[known]  # type: ignore[index]
        return found

    def counts(self, verdicts: np.ndarray) -> dict[tuple, tuple[int, int]]:
        """Key → how many of its answers a judge gives a false verdict, and a true one."""
        groups = np.repeat(self.groups, np.diff(self.starts))
        known = verdicts != UNKNOWN
        found = np.bincount(2 * groups[known] + verdicts[known], minlength=2 * len(self.keys))
        return {
            key: (int(no), int(yes)) for key, (no, yes) in zip(self.keys, found.reshape(-1, 2), strict=True)
        }

    def _places(self, ids: pa.ChunkedArray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The places of answers that are among these, and which of the ids these are."""
        if not len(self.rows) or not len(ids):
            return np.empty(0, np.int64), np.zeros(len(ids), bool)
        wanted = digests(ids)
        row = np.minimum(np.searchsorted(self.rows, wanted), len(self.rows) - 1)
        known = (self.rows[row] == wanted) & (numbers < np.diff(self.starts)[row])
        return (self.starts[row] + numbers)[known], known


def _flat(verdicts: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """How many verdicts each row has, and all of them."""
    if not pa.types.is_list(verdicts.type):
        return np.ones(len(verdicts), np.int64), _codes(verdicts)
    sizes = pc.fill_null(pc.list_value_length(verdicts), 0).to_numpy()
    return sizes.astype(np.int64), _codes(pc.list_flatten(verdicts))


def _codes(verdicts: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.cast(verdicts, pa.int8()), UNKNOWN).to_numpy()
