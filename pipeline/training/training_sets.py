"""Training sets: made once, in parts, and kept in the run directory until the arms are trained.

    SETS/<key>/<table>.parquet              a training set, which every worker reads
    SETS/<key>/set.json                     its counts, runs and digest; written last
    SETS/<key>/parts/0007/<table>.parquet   what was made of a share of the rows, until the set is finished

The key is a digest of everything that decides a set: the rows, the chat template with its tokenizer, and the
trainer's settings. So an interrupted preparation goes on with the parts that are missing, a resumed training
reads the finished set, arms of the same set share it, and what was made from other inputs is never used.

A large set is made in Ray tasks: a task tokenizes a share of a shard's row groups, another one puts the
parts together. The driver holds no row and no token of it.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import pyarrow as pa

from pipeline.data import records, storage
from pipeline.data.dataset import Dataset, Share
from pipeline.errors import RunFailed, UserError
from pipeline.runtime import attempt
from pipeline.settings.shown import first_line
from pipeline.templates import ChatTemplate
from pipeline.training import identity
from pipeline.training.base import Train
from pipeline.training.examples import Counts
from pipeline.training.job import Run, read_table, write_table

PART_BYTES = 4 * 2**20  # of Parquet: what a task tokenizes; a set of one such part is made in the driver
_MARK = "done"  # written last into a part's directory
_FORMAT = 1  # of sets and parts; another one is made anew


@dataclass(frozen=True)
class Kept:
    """A finished training set on storage that every node sees.

    tables: names, in the order of the digest. digest: of their content. large: too large for the driver.
    """

    path: str
    tables: list[str]
    counts: Counts
    runs: list[Run]
    digest: str
    large: bool

    def named(self, facts: dict) -> str:
        """The digest of facts and of the tables' content."""
        text = json.dumps(facts, sort_keys=True)
        [found] = _results([(_digest, self.path, self.tables, text)], apart=self.large)
        return found


class _Part:
    """A part on storage: a file per table."""

    def __init__(self, path: str):
        self.path = path

    def table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table:
        return read_table(storage.join(self.path, f"{name}.parquet"), columns)


def kept(
    train: Train, template: ChatTemplate, dataset: Dataset, kinds: list[str] | None, seed: int, sets: str
) -> Kept:
    """The training set of a trainer, read from the directory `sets` or made there.

    Raises UserError if no row can be used, RunFailed if a task is lost.
    """
    decided = {
        "format": _FORMAT,
        "rows": dataset.digest,
        "template": template.identity(),
        "train": train.decides(kinds, seed),
    }
    key = blake2b(json.dumps(decided, sort_keys=True).encode(), digest_size=8).hexdigest()
    path = storage.join(storage.absolute(sets), key)
    facts = records.read(storage.join(path, "set.json")) or _make(path, train, template, dataset, kinds, seed)
    counts = Counts(Counter(facts["kinds"]), Counter(facts["dropped"]), facts["held_out"])
    runs = [Run(items, gap) for items, gap in facts["runs"]]
    return Kept(path, facts["tables"], counts, runs, facts["digest"], facts["large"])


def forget_others(sets: str, kept: Iterable[Kept]) -> None:
    """Delete the sets that are not among these: what decided them has changed."""
    names = {storage.name(one.path) for one in kept}
    for name in storage.directories(sets):
        if name not in names:
            storage.remove(storage.join(sets, name))


def _make(
    path: str, train: Train, template: ChatTemplate, dataset: Dataset, kinds: list[str] | None, seed: int
) -> dict:
    """Make a set, and return its facts, with which it is finished."""
    shares = _shares(dataset)
    parts = [storage.join(path, "parts", f"{number:04d}") for number in range(len(shares))]
    apart = len(shares) > 1
    todo = [
        (_make_part, part, share, train, template, kinds, seed)
        for part, share in zip(parts, shares, strict=True)
        if not storage.exists(storage.join(part, _MARK))
    ]
    _results(todo, apart=apart)
    [facts] = _results([(_make_whole, path, parts, train, dataset.path, kinds, seed)], apart=apart)
    attempt.check()
    records.write(storage.join(path, "set.json"), facts := {**facts, "large": apart})
    storage.remove(storage.join(path, "parts"))
    return facts


def _shares(dataset: Dataset) -> list[tuple[Dataset, Share]]:
    """The parts of a data set: shares of single shards."""
    sizes = storage.sizes(dataset.path)
    found = []
    for name, digest in dataset.digests.items():
        of = -(-sizes.get(name, 1) // PART_BYTES)
        found += [(replace(dataset, digests={name: digest}), Share(number, of)) for number in range(of)]
    return found


# -- the work, in the driver or in a task


def _make_part(
    path: str,
    share: tuple[Dataset, Share],
    train: Train,
    template: ChatTemplate,
    kinds: list[str] | None,
    seed: int,
) -> None:
    dataset, rows = share
    for name, table in train.part(template, dataset, kinds, seed, rows).items():
        write_table(table, storage.join(path, f"{name}.parquet"))
    storage.write_text(storage.join(path, _MARK), "")


def _make_whole(
    path: str, parts: list[str], train: Train, rows: str, kinds: list[str] | None, seed: int
) -> dict:
    made = train.whole(rows, [_Part(part) for part in parts], kinds, seed)
    for name, table in made.tables.items():
        write_table(table, storage.join(path, f"{name}.parquet"))
    return {
        "tables": [*made.tables],
        "kinds": dict(made.counts.kinds),
        "dropped": dict(made.counts.dropped),
        "held_out": made.counts.held_out,
        "runs": [(run.items, run.gap) for run in made.runs],
        "digest": identity.digest("", made.tables),
    }


def _digest(path: str, tables: list[str], text: str) -> str:
    return identity.digest(text, {name: read_table(storage.join(path, f"{name}.parquet")) for name in tables})


def _results(calls: list[tuple], *, apart: bool) -> list:
    """The results of functions with their arguments: in Ray tasks if they are to run apart, else here.

    Raises UserError as they do, RunFailed if a task is lost.
    """
    ray = sys.modules.get("ray")
    if not calls or not apart or ray is None or not ray.is_initialized():
        return [function(*arguments) for function, *arguments in calls]
    run = ray.remote(num_cpus=1)(_called)
    sent: dict[int, Any] = {}
    for one in {id(one): one for _, *arguments in calls for one in arguments}.values():
        if isinstance(one, ChatTemplate):  # large, and the same for all calls
            sent[id(one)] = ray.put(one)
    waiting = [
        run.remote(function, *(sent.get(id(one), one) for one in arguments)) for function, *arguments in calls
    ]
    found = []
    try:
        for result, error in ray.get(waiting):
            if error is not None:
                raise error
            found.append(result)
    except ray.exceptions.RayError as e:
        raise RunFailed(
            f"a task that prepares a training set has died ({first_line(e)[:200]}); run the command again"
        ) from None
    return found


def _called(function: Callable, *arguments: Any) -> tuple[Any, UserError | RunFailed | None]:
    """Runs on a node. An error of ours is a result: Ray would wrap it, with a traceback in its text."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # other tasks have the other processors
    try:
        return function(*arguments), None
    except (UserError, RunFailed) as e:
        return None, type(e)(str(e))
