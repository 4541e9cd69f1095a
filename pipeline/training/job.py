"""The jobs that the driver gives to the training workers, and the directories that both use.

    SETS/<key>/<table>.parquet             a training set, which every worker reads (`training_sets.py`)
    STATE/<fingerprint>/start              adapter that training begins from
    STATE/<fingerprint>/done-1             adapter and history of a finished run; the driver writes them
    CHECKPOINTS/0003-1/<run>-step-…        Ray Train's checkpoints: adapter, optimizer, scheduler, RNG, step
    CHECKPOINTS/0003-1/<run>-finished      the same, written by a worker; the driver copies it to `done-1`

Only the workers of attempt 3 write under 0003-1 (its first worker group): workers of attempt 2 that outlive
their driver write into a directory that no later attempt writes to.

An arm's training is one run, unless a curriculum makes several; each of them starts from the adapter of the
run before. A worker group trains the runs of several arms, one after the other. A fingerprint identifies
everything that determines an arm's weights (model, training set, hyper-parameters, start adapter). State
under another fingerprint is neither resumed nor deleted: the training is refused (`identity.refuse_others`).
"""

import re
import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import storage
from pipeline.settings.base import Model

if TYPE_CHECKING:
    from pipeline.training.base import Train

_OWNED = re.compile(
    r"([a-z0-9_]+)-[0-9a-f]{16}(?:-|\Z)"
)  # a checkpoint or result: the arm, and its fingerprint
HELD_OUT = "held_out"  # the table of examples on which the holdout loss is measured
# Directory in a checkpoint: the adapter with the lowest holdout loss so far. Transformers resumes from the
# adapters that it finds one level below a checkpoint, so this one lies deeper.
BEST = "best/adapter"
HISTORY = "trainer_state.json"  # transformers' name for a checkpoint's log lines and step


@dataclass(frozen=True)
class Run:
    """One optimizer's lifetime. items: sequences or pairs of an epoch; gap: its rank gap, if staged."""

    items: int
    gap: int | None = None


@dataclass(frozen=True)
class Job:
    """Everything one run's workers need. Directories are on storage that every node sees."""

    arm: str
    train: "Train"
    model: Model
    model_dir: str
    seed: int
    state: str  # STATE/<fingerprint>
    number: int  # of the run, from 1
    run: Run
    name: str  # of the run and its checkpoints; contains the fingerprint
    tables: str | None = None  # directory of the training set, which arms may share; None = state
    group: str = ""  # CHECKPOINTS/<attempt>-<group>: written by this attempt's workers
    start: str | None = None  # adapter whose matrices are trained further; None = fresh matrices
    resume: str | None = None  # copy of an earlier attempt's checkpoint
    progress: Any = None  # actor for log lines

    @property
    def finished(self) -> str:
        """Directory in which this attempt's workers leave the adapter and the history of the finished run."""
        return storage.join(self.group, f"{self.name}-finished")

    def tell(self, notice: str) -> None:
        """Send a notice to the person watching; it holds no text of a row."""
        if self.progress is not None:
            self.progress.post.remote({"notice": notice})

    def checkpoint(self, step: int) -> str:
        """The directory name of a checkpoint."""
        return f"{self.name}-step-{step:08d}"

    def owns(self, checkpoint: str) -> bool:
        """Whether the checkpoint at this path belongs to this run."""
        return storage.name(checkpoint).startswith(f"{self.name}-step-")

    @property
    def done(self) -> str:
        return storage.join(self.state, f"done-{self.number}")

    def table(self, name: str) -> pa.Table:
        return read_table(storage.join(self.tables or self.state, f"{name}.parquet"))


def forget(checkpoints: str, arms: Collection[str]) -> None:
    """Delete the checkpoints of finished arms. Those of other arms stay: their training can be resumed."""
    for name in storage.directories(checkpoints):
        place = storage.join(checkpoints, name)
        owned = {child: found[1] for child in storage.directories(place) if (found := _OWNED.match(child))}
        if set(owned.values()) <= set(arms):
            storage.remove(place)
            continue
        for child, arm in owned.items():
            if arm in arms:
                storage.remove(storage.join(place, child))
    if not storage.directories(checkpoints):
        storage.remove(checkpoints)


def read_table(path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file from any storage. columns: None is all."""
    fs, inner = storage.filesystem(path)
    return pq.read_table(inner, filesystem=fs, columns=columns and list(columns))


def write_table(table: pa.Table, path: str) -> None:
    """Write a Parquet file atomically."""
    fs, inner = storage.filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    if not storage.is_local(path):  # an object becomes visible when its upload is complete
        pq.write_table(table, inner, filesystem=fs, compression="zstd")
        return
    own = f"{inner}.{secrets.token_hex(4)}.tmp"  # a task that is taken for dead may still write the same file
    pq.write_table(table, own, filesystem=fs, compression="zstd")
    fs.move(own, inner)
