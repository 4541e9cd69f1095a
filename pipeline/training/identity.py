"""What determines a training's weights: its fingerprint, and the refusal of another one's state."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.data import records, storage
from pipeline.data.output import differences
from pipeline.errors import UserError
from pipeline.settings.base import Model
from pipeline.toy.model import shipped_recipe
from pipeline.training import start

if TYPE_CHECKING:
    from pipeline.training.arm import ArmSpec


def fingerprint(arm: "ArmSpec", tables: Mapping[str, Any]) -> str:
    """A hash of everything that determines the weights.

    That is: hyper-parameters, model, seed, start adapter, and every token of the training set.
    """
    return digest(json.dumps(facts_of(arm), sort_keys=True), tables)[:16]


def digest(facts: str, tables: Mapping[str, Any]) -> str:
    """A hash of a text and of the content of tables."""
    hashed = hashlib.sha256(facts.encode())
    for table in tables.values():
        for batch in table.combine_chunks().to_batches():
            # Padding is hashed too: that of buffers which are just large enough is zeros.
            exact = [pa.concat_arrays([column.slice(0, 0), column]) for column in batch.columns]
            hashed.update(pa.record_batch(exact, schema=batch.schema).serialize())
    return hashed.hexdigest()


def facts_of(arm: "ArmSpec") -> dict:
    return {
        "train": arm.train.determines(),
        "start": start.content(arm.train.start),
        "model": arm.model.identity(),
        "weights": _weights(arm.model, arm.model_dir),
        "seed": arm.seed,
    }


def _weights(model: Model, model_dir: str) -> Any:
    """The identity of the weights. The toy model's are the same in every installation of the package."""
    if model.path == "toy":
        return shipped_recipe()["hash"]
    if not os.path.isdir(model_dir):
        return model_dir
    return [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in storage.files(model_dir)]


def refuse_others(state_dir: str, name: str, facts: dict) -> None:
    """Raises UserError, with the differences, if a training of another fingerprint is unfinished here.

    Its checkpoints may be days of work, so nothing but --overwrite deletes them.
    """
    for other in storage.directories(state_dir):
        if other == name:
            continue
        known = records.read(storage.join(state_dir, other, "facts.json"))
        changes = differences(known, facts) if known is not None else ["by another version of setbacks"]
        raise UserError(
            f"{state_dir} holds an unfinished training under other settings ({'; '.join(changes)}): restore"
            " them to resume it, choose another run_dir, or train anew with --overwrite"
        )
