"""The log-probabilities of a run's pairs under its reference: computed once, by all workers together.

    STATE/<fingerprint>/reference-1.parquet            pairs, with columns `ref_chosen` and `ref_rejected`
    STATE/<fingerprint>/reference-1/000000120.parquet  what a worker computed in a minute, by its first pair;
                                                       deleted when all pairs are known

A pass over many pairs takes as long as a part of the training, so a restart reads what is there.
"""

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.data import storage
from pipeline.training.job import Job, read_table, write_table

if TYPE_CHECKING:
    from pipeline.training.dpo import SharedPrefixTrainer

KEEP_S = 60.0  # between two parts of a worker
_COLUMNS = ("ref_chosen", "ref_rejected")
Entry = tuple[int, float, float]  # place of the pair in the table, log-probabilities of chosen and rejected


def log_probs(trainer: "SharedPrefixTrainer", job: Job, found: pa.Table, least: int) -> torch.Tensor:
    """[2, pairs]: log-probabilities of chosen and rejected responses under the current model.

    least: pairs that are computed at a time, or more, since those of a request stay together.
    """
    whole = storage.join(job.state, f"reference-{job.number}.parquet")
    parts = whole.removesuffix(".parquet")
    first = trainer.accelerator.is_main_process
    batches = _whole_groups(found["group"].to_pylist(), least)
    # One worker checks for all: NFS may show a new file to only some of them.
    told = [_kept(whole, parts, batches) if first else None]
    broadcast_object_list(told)
    assert told[0] is not None
    sides, known, todo = told[0]
    if sides is None:
        with trainer.model.disable_adapter() if _adds_nothing(trainer.model) else nullcontext():
            computed = _computed(trainer, job, [batches[i] for i in todo], parts, found.num_rows)
        sides = _sides(known + computed, found.num_rows)
        if first:
            columns = [pa.array(side, pa.float64()) for side in sides]
            for name, column in zip(_COLUMNS, columns, strict=True):
                found = found.append_column(name, column)
            write_table(found, whole)
            storage.remove(parts)
    return torch.tensor(sides, dtype=torch.float64)


def _adds_nothing(model: torch.nn.Module) -> bool:
    """Whether the adapter is as it was made: its second factors are zero, and the model is the base model.

    Without the adapter, results are equal and a pass of a small model takes half the time.
    """
    return not any(bool(p.any()) for name, p in model.named_parameters() if "lora_B" in name)


def _sides(entries: list[Entry], pairs: int) -> list[list[float]]:
    places, *sides = zip(*sorted(entries), strict=True)
    if list(places) != list(range(pairs)):
        raise RuntimeError("the workers' reference log-probabilities do not cover each pair exactly once")
    return [list(side) for side in sides]


def _computed(
    trainer: "SharedPrefixTrainer", job: Job, batches: list[list[int]], parts: str, pairs: int
) -> list[Entry]:
    """The entries of some batches, by all workers; each has them all. pairs: all there are, for the log."""
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    left, since = sum(map(len, batches)), time.monotonic()
    mine: list[Entry] = []
    kept = 0  # entries of `mine` that are in a file
    for at in range(0, len(batches), world):
        turn = batches[at : at + world]
        if rank < len(turn):
            mine += trainer.log_probs_of(turn[rank])
        elif job.train.fsdp:  # the others' layers need this worker's part of the weights
            trainer.log_probs_of(turn[-1])
        left -= sum(map(len, turn))
        if time.monotonic() - since >= KEEP_S:
            _keep(mine[kept:], parts)
            kept, since = len(mine), time.monotonic()
            if rank == 0 and job.progress is not None:
                done = pairs - left
                job.progress.post.remote({"run": job.name, "reference": done, "pairs": pairs})
    return list(gather_object(mine))


def _keep(entries: list[Entry], parts: str) -> None:
    if not entries:
        return
    places, chosen, rejected = zip(*entries, strict=True)
    columns = [pa.array(places, pa.int64()), pa.array(chosen, pa.float64()), pa.array(rejected, pa.float64())]
    write_table(
        pa.table(columns, names=["place", *_COLUMNS]), storage.join(parts, f"{min(places):09d}.parquet")
    )


def _kept(
    whole: str, parts: str, batches: list[list[int]]
) -> tuple[list[list[float]] | None, list[Entry], list[int]]:
    """What an earlier start has computed: both sides of all pairs; else entries, and the batches to do."""
    if storage.exists(whole):
        table = read_table(whole)
        return [table[name].to_pylist() for name in _COLUMNS], [], []
    entries: dict[int, Entry] = {}
    for name in storage.sizes(parts):
        if not name.endswith(".parquet"):  # left by a worker that was killed while it wrote
            continue
        table = read_table(storage.join(parts, name))
        for entry in zip(*(table[column].to_pylist() for column in ("place", *_COLUMNS)), strict=True):
            entries[entry[0]] = entry
    todo = [i for i, batch in enumerate(batches) if not entries.keys() >= set(batch)]
    again = {place for i in todo for place in batches[i]}
    return None, [entry for place, entry in entries.items() if place not in again], todo


def _whole_groups(groups: list[str], least: int) -> list[list[int]]:
    """The pairs in batches of whole groups (adjacent in the table); all but the last have `least` or more."""
    batches: list[list[int]] = []
    for place, group in enumerate(groups):
        if not batches or (len(batches[-1]) >= least and group != groups[place - 1]):
            batches.append([])
        batches[-1].append(place)
    return batches
