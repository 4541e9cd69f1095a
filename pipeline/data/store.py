"""A Parquet data set in a run: committed blocks, resume, fingerprint, compaction into shards, card.

RUN/mistakes/                  complete shards and the card; appears only when the data set is complete
RUN/.state/mistakes/work/      the rows to do (one per unique id), written once, in blocks
RUN/.state/mistakes/work.json  number of rows, counts of the sources, token of the parts; written last
RUN/.state/mistakes/parts-…/   committed blocks, one file each, named by the block's number
RUN/.state/mistakes/kept-…/    rows of a block that are not rerun
RUN/.state/mistakes/calls-…/   answered calls of rows that wait for a model of a later pass
RUN/.state/mistakes/failed-…/  answered calls of rows that failed because another call did
RUN/.state/mistakes/fingerprint.json   what determines the content
RUN/.state/mistakes/complete.json      shards, counts and digest; written last
"""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from pipeline.data import faults, records, storage
from pipeline.data.block import FAILED_CALLS, Block, parts_dir, suspended, write_part
from pipeline.data.dataset import Dataset, changed
from pipeline.data.ids import IdSet
from pipeline.data.output import Output
from pipeline.data.shards import Digest, Shards
from pipeline.data.work import WorkList, batches, write_work_list
from pipeline.errors import RunFailed
from pipeline.schema import DROPPED, FAILED, Schema

_ROWS_AT_ONCE = 10_000
_READS_AHEAD = 8


@dataclass(frozen=True)
class Store(Output):
    """One Parquet data set of a run directory."""

    schema: Schema

    @property
    def complete(self) -> dict | None:
        """Rows, rows per status, failure reasons, endings, faults, thoughts, shards and digest.

        None until complete.

        Raises UserError if the mark is damaged, or if a shard of a complete data set is missing or has
        another size.
        """
        done = records.read(self.state("complete.json"))
        if done is None:
            return None
        present = storage.sizes(self.path)
        for name, shard in done["shards"].items():
            if name not in present:
                raise changed(self.path, name, "has been deleted")
            if present[name] != shard["bytes"]:
                raise changed(
                    self.path,
                    name,
                    f"has {present[name]:,} bytes instead of {shard['bytes']:,}: it was cut or changed",
                )
        return done

    # -- the rows to do

    def write_work(
        self,
        rows: Iterable[dict],
        schema: Schema,
        facts: Callable[[], dict] = dict,
        *,
        block_rows: int,
    ) -> dict:
        """Write the rows to do, once: a resumed run reads the same list.

        facts: further facts of the list, such as the counts of its sources, asked for when all rows are read.
        block_rows: rows that are committed together. Returns {"rows": n, "block_rows", "token"} and `facts`.
        The facts are written last, so an interrupted list is never taken for a complete one.
        """
        if (done := self.work()) is not None:
            return done
        storage.remove(self.state("work"))
        with storage.room_for(self.state("work")):
            written = write_work_list(self.state("work"), rows, schema, block_rows)
            self.fence()
            done = {"rows": written, "block_rows": block_rows, "token": secrets.token_hex(4), **facts()}
            records.write(self.state("work.json"), done)
        return done

    def work(self) -> dict | None:
        """What `write_work` returned; None before that. Raises UserError if the file is damaged."""
        return records.read(self.state("work.json"))

    def _listed(self) -> dict:
        """`work()` of a written list. Raises RunFailed if the rows to do are not listed."""
        facts = self.work()
        if facts is None:
            raise RunFailed(f"{self.path}: the rows to do have not been listed")
        return facts

    @property
    def work_list(self) -> WorkList:
        facts = self._listed()
        return WorkList(self.state("work"), facts["rows"], facts["block_rows"], facts["token"])

    def block(self, work: WorkList, number: int) -> Block:
        return Block(self.state(), self.schema, work, number)

    def committed(self) -> set[int]:
        """Numbers of the committed blocks, read from file names only."""
        if self.work() is None:
            return set()
        names = storage.sizes(parts_dir(self.state(), self.work_list.token))
        return {int(name.removesuffix(".parquet")) for name in names if name.endswith(".parquet")}

    def awaited(self, names: Iterable[str]) -> dict[int, str]:
        """By number of a block with rows that wait, the model that they wait for first."""
        if self.work() is None:
            return {}
        state, token = self.state(), self.work_list.token
        return {number: name for name in names for number in suspended(state, token, name)}

    # -- completion

    def finish(self) -> dict:
        """Compact the committed parts into shards, publish them, write the completion mark last. Idempotent.

        Returns the new `complete`. Raises RunFailed if a block is missing, if its rows are not those of the
        work list, or if the disk is full.
        """
        shards = self._new_shards()
        counts, digest, work = _Counts(), Digest(), self.work_list
        results = _ahead(lambda number: self.block(work, number).result(), range(work.blocks))
        with storage.room_for(self.path):
            for number, (wanted, result) in enumerate(zip(work.tables(["id"]), results, strict=True)):
                if result is None or not result[0]["id"].equals(wanted["id"]):
                    path = self.block(work, number).path
                    storage.remove(path)
                    remedy = "rerun the same command to redo them"
                    raise RunFailed(f"{path}: cannot be read as the rows of its block; {remedy}")
                table, block_digest = result
                digest.add(table.num_rows, block_digest)
                counts.add(table)
                shards.write(table)
            return self._publish(shards, counts, digest)

    def write_rows(self, rows: Iterable[dict]) -> dict:
        """Write an opened data set at once, all or nothing. Returns the new `complete`.

        Raises RunFailed if an id repeats.
        """
        shards = self._new_shards()
        counts, digest, ids = _Counts(), Digest(), IdSet()
        with storage.room_for(self.path):
            for batch in batches(rows, _ROWS_AT_ONCE):
                table = self.schema.table(batch)
                if repeated := sum(
                    not ids.add(blake2b(row["id"].encode(), digest_size=16).digest()) for row in batch
                ):
                    raise RunFailed(f"{self.path}: {repeated} rows repeat an id; nothing was published")
                digest.add(table.num_rows, Digest.of(table).hex())
                counts.add(table)
                shards.write(table)
            return self._publish(shards, counts, digest)

    def _new_shards(self) -> Shards:
        storage.remove(self.state("shards"))
        return Shards(self.state("shards"), self.schema.arrow)

    def _publish(self, shards: Shards, counts: "_Counts", digest: Digest) -> dict:
        written = shards.close()
        self.fence()  # the next steps change files that others read
        for old in storage.sizes(self.path):
            if old.endswith(".parquet"):
                storage.remove(storage.join(self.path, old))
        for name in written:
            self.fence()  # an object store copies each file, which is slow
            storage.move(self.state("shards", name), storage.join(self.path, name))
        done = {
            "rows": digest.rows,
            "status": dict(counts.status),
            "reasons": dict(counts.reasons),
            **({"not_selected": dict(counts.not_selected)} if counts.not_selected else {}),
            **({"endings": dict(sorted(counts.endings.items()))} if counts.endings else {}),
            **({"thoughts": counts.thoughts, "unended_thoughts": counts.unended} if counts.thoughts else {}),
            **({"faults": dict(sorted(counts.faults.items()))} if counts.faults else {}),
            "shards": written,
            "digest": digest.hex(),
        }
        self.mark_complete(done)
        self._forget_parts(keep=None)
        return done

    def _forget_parts(self, keep: str | None) -> None:
        """Remove unfinished shards, and the parts of all work lists except the one with this token.

        What failed rows have answered stays as long as the work list, without files that a killed process
        left half-written.
        """
        fs, inner = storage.filesystem(self.state())
        listed = (self.work() or {}).get("token")
        for info in fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True)):
            kind, _, token = info.base_name.partition("-")
            if (
                kind == "shards"
                or (kind in ("parts", "kept", "calls") and token != keep)
                or (kind == FAILED_CALLS and token != listed)
            ):
                storage.remove(self.state(info.base_name))
            elif kind == FAILED_CALLS:
                for half_written in storage.files(self.state(info.base_name), ".tmp"):
                    storage.remove(self.state(info.base_name, storage.name(half_written)))

    # -- running failed rows again

    def reopen_failed(self) -> int:
        """Mark the failed rows of a complete data set as undone and keep all others. Returns how many failed.

        A row that failed because a call did goes on from there: its answered calls are not made again.
        Malformed rows of the source are kept too, because a retry cannot fix them. Kept rows are written
        under a new token, the work list takes that token, and the completion mark is removed last, so a
        crash in between changes nothing.
        """
        if (done := self.complete) is None or not done["status"].get(FAILED):
            return 0
        before, facts = self.work_list, {**self._listed(), "token": secrets.token_hex(4)}
        work, failed = replace(before, token=facts["token"]), 0
        statuses = (table["status"] for table in work.tables(["status"]))
        for number, (status, table) in enumerate(
            zip(statuses, _sliced(self.dataset.tables(), work.block_rows), strict=True)
        ):
            # `evaluate` rows start without a status
            malformed = pc.fill_null(pc.equal(status, FAILED), False)
            kept = pc.or_(pc.not_equal(table["status"], FAILED), malformed)
            lost = table.num_rows - pc.sum(kept).as_py()
            failed += lost
            place = self.block(work, number)
            place.retry(self.block(before, number).failed() if lost else {})
            write_part(place.kept_path if lost else place.path, table.filter(kept))
        if failed:
            records.write(self.state("work.json"), facts)
            storage.remove(self.state("complete.json"))
        self._forget_parts(keep=facts["token"] if failed else None)
        return failed

    @property
    def dataset(self) -> Dataset:
        """A reader of the complete data set; rows are in the order of the work list, if there is one.

        Raises UserError if a shard is missing or cut.
        """
        return Dataset(self.path, {name: shard["digest"] for name, shard in self.facts["shards"].items()})


class _Counts:
    """Statuses, reasons, endings, faults and thoughts of a data set, if it has these columns.

    not_selected: of the reasons, those of rows dropped before anything was sampled, which have no endings.
    """

    def __init__(self):
        self.status: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.thoughts = self.unended = 0
        self.faults: Counter[str] = Counter()
        self.not_selected: Counter[str] = Counter()

    def add(self, table: pa.Table) -> None:
        if "status" in table.column_names:
            self.status.update(
                {found["values"]: found["counts"] for found in pc.value_counts(table["status"]).to_pylist()}
            )
            for error in pc.drop_null(table["error"]).to_pylist():
                self.reasons[reason(error)] += 1
        if "endings" in table.column_names:
            self.endings.update(pc.list_flatten(table["endings"]).to_pylist())
            unasked = pc.and_(pc.is_null(table["endings"]), pc.equal(table["status"], DROPPED))
            self.not_selected.update(map(reason, table.filter(unasked)["error"].to_pylist()))
        if "faults" in table.column_names:
            self.faults.update(pc.list_flatten(table["faults"]).to_pylist())
        if "thoughts" in table.column_names:
            ended = pc.struct_field(pc.list_flatten(table["thoughts"]), "ended")
            self.thoughts += len(ended)
            self.unended += len(ended) - (pc.sum(ended).as_py() or 0)


def reason(error: str) -> str:
    """The kind of a row's error: a fault and its step; else the text up to the first colon, with n for
    numbers, to keep counts short."""
    if faults.is_entry(error):
        return error
    return re.sub(r"(?<![\w-])\d+", "n", error.split(":")[0])[:80]


def _ahead(function: Callable, items: Iterable) -> Iterator:
    """`map`, a few items ahead of its reader: an object store answers many requests as fast as one."""
    items = iter(items)
    with ThreadPoolExecutor(_READS_AHEAD) as threads:
        waiting = [threads.submit(function, item) for item in islice(items, _READS_AHEAD)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [threads.submit(function, item) for item in islice(items, 1)]


def _sliced(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of another length."""
    waiting: pa.Table | None = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows)
            waiting = waiting.slice(rows)
    if waiting is not None and waiting.num_rows:
        yield waiting
