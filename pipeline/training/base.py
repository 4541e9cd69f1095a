"""The configuration that all trainers share, and what a trainer is.

A trainer is its configuration section: what it trains on, which models it can train, what it reports. `build`
makes a worker's trainer, in a module that imports TRL, which takes seconds; the driver does not import it.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    model_validator,
)

from pipeline import memory
from pipeline.data.dataset import ALL, Dataset, Share
from pipeline.memory import Lora as LoraShape
from pipeline.memory import Memory, Shape
from pipeline.schema import Schema
from pipeline.settings.base import AdapterPath, Count, Fraction, Name, Natural, Section, Seed, span

if TYPE_CHECKING:
    from pipeline.templates import ChatTemplate
    from pipeline.training.examples import Counts
    from pipeline.training.job import Job, Run
    from pipeline.training.parts import Part


@dataclass(frozen=True)
class TrainingSet:
    """An arm's training set as tables, the counts of the rows used and dropped, and the runs over the set."""

    tables: dict[str, pa.Table]
    counts: "Counts"
    runs: list["Run"]


@dataclass(frozen=True)
class CardWords:
    """A model card's words for a trainer: the loss, the names of rows and of an epoch's items, a caution."""

    loss: str
    rows: str
    items: str
    caution: str


SCORED_TOKENS = 1024  # of which a GPU holds logits at a time: see `head.py`


@dataclass(frozen=True)
class MicroBatch:
    """What a worker computes at a time, at most.

    tokens:   of the row
    is_full:  rows have that many tokens in any case, because they are packed
    scored:   tokens with logits at the same time; None = TRL's fused head, which works in tiles
    repeated: tokens whose keys and values are copied for their sequence
    """

    tokens: int
    is_full: bool = False
    scored: int | None = None
    repeated: int = 0


def _pattern(modules: str | list[str]) -> str | list[str]:
    """PEFT interprets a string as a regular expression of module names."""
    try:
        re.compile(modules if isinstance(modules, str) else "")
    except (re.error, RecursionError, OverflowError) as e:
        raise ValueError(f"is not a regular expression ({e}); give names of modules, or all-linear") from None
    return modules


class Lora(Section):
    """The LoRA adapter to train, in PEFT's terms."""

    rank: Count = Field(16, description="rank of the adapter's matrices")
    alpha: float = Field(32, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the adapter's input in training")
    target_modules: Annotated[str | list[str], AfterValidator(_pattern)] = Field(
        "all-linear", description="PEFT's target_modules"
    )


def _continues(how: str) -> str:
    if how != "continue":
        raise ValueError("is not possible: leave how out to train the adapter's matrices further")
    return how


def _no_longer_iterative(value: Any) -> Any:
    if value == "iterative":
        raise ValueError(
            "is now called staged, which runs over all pairs; for Curry-DPO also set pairs: best_only"
        )
    return value


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("names a seed twice, which would train the same adapter twice; name each once")
    return seeds


Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_different)]
Curriculum = Annotated[Literal["shuffled", "ordered", "staged"], BeforeValidator(_no_longer_iterative)]


class Start(Section):
    """Training begins from an adapter of the same base model, and trains its matrices further."""

    adapter: AdapterPath = Field(description="directory of a PEFT LoRA adapter")
    # One value is left. The field stays, because fingerprints of finished trainings hold it.
    how: Annotated[str, AfterValidator(_continues)] = Field(
        "continue",
        description="only continue: the adapter's matrices are trained further, and `lora` is not used",
    )


class Train(Section):
    """What every trainer has. LoRA rank 16 follows MoTE (arXiv 2405.00557)."""

    accepts: ClassVar[Schema]  # rows of this data set
    needs_kinds: ClassVar[bool] = True  # an arm has to name its kinds; if false, only if there are several
    words: ClassVar[CardWords]

    if TYPE_CHECKING:
        method: str  # the name of the trainer; each member of the union has its own, with a default

    # Fields that change how the work is done, but not the resulting weights; equal_steps changes `epochs`,
    # and each of several seeds is the seed of a training of its own.
    OPERATIONAL: ClassVar = {
        *("workers", "fsdp", "save_steps", "log_steps", "max_failures", "merge", "equal_steps", "seeds"),
        "accelerator_type",
    }

    # Fields that finished trainings of older versions do not have: their defaults are in no fingerprint.
    NEWER: ClassVar = {"load_in_4bit", "holdout", "keep", "patience"}

    workers: Count | tuple[Count, Count] = Field(1, description="training processes; [min, max] = elastic")
    use_gpu: bool = Field(False, description="one GPU per worker")
    accelerator_type: Name | None = Field(
        None, description="kind of GPU by Ray's name, such as H100 or L40S; null = any"
    )
    fsdp: bool = Field(
        False,
        description=(
            "split the base model's weights over the workers (FSDP2), for models that one GPU cannot hold;"
            " false = each worker holds all of them"
        ),
    )
    start: Start | None = Field(
        None, description="adapter to begin from; null = a fresh one on the base model"
    )
    lora: Lora = Field(Lora(), description="shape of the adapter")
    epochs: float = Field(3, gt=0, description="passes over the training set")
    equal_steps: bool = Field(
        True,
        description=(
            "arms with the same method, epochs and batch_size take as many optimizer steps as the longest of"
            " them, so that none is better for being trained longer; false = an arm's own epochs"
        ),
    )
    holdout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description=(
            "share of the instructions that is kept out of training, with all their examples, to measure the"
            " loss on at every checkpoint; the same ones for every arm and seed. See docs/holdout.md"
        ),
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the adapter after the last step, or that of the checkpoint with the lowest holdout loss",
    )
    patience: Count | None = Field(
        None,
        description=(
            "checkpoints in a row without a new lowest holdout loss after which training stops; such an arm"
            " takes its own number of steps, whatever `equal_steps` says; null = it does not stop early"
        ),
    )
    seeds: Seeds | None = Field(
        None,
        description=(
            "training seeds: an adapter is trained and evaluated for each, and the report gives mean and"
            " range over them; null = the run's `seed`. `arms.NAME.seeds` is short for"
            " `arms.NAME.train.seeds`"
        ),
    )
    learning_rate: float = Field(2e-5, gt=0, description="peak learning rate of AdamW")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "cosine",
        description="learning-rate schedule after the warmup",
    )
    warmup: Fraction = Field(0.03, description="fraction of the steps in which the learning rate rises")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of AdamW")
    batch_size: Count = Field(16, description="items per optimizer step, over all workers")
    max_length: Count = Field(1024, description="tokens of an item at most")
    bf16: bool = Field(True, description="train in bfloat16 autocast; false = everything in float32")
    gradient_checkpointing: bool = Field(False, description="recompute activations: less memory, more time")
    load_in_4bit: bool = Field(
        False,
        description=(
            "hold the base model's layers in 4 bits while training (QLoRA, by bitsandbytes): a third of the"
            " memory, more time; the adapter is evaluated on the model as it is"
        ),
    )
    save_steps: Count = Field(50, description="optimizer steps between checkpoints")
    log_steps: Count = Field(5, description="optimizer steps between log lines")
    max_failures: Natural = Field(3, description="worker failures survived before the run fails")
    merge: bool = Field(False, description="also write the merged weights")

    def determines(self, *others: str) -> dict:
        """The fields that determine the weights, for fingerprints. others: operational fields that count too.

        The holdout loss is measured at checkpoints, so `save_steps` counts if that loss decides anything.
        """
        fields = type(self).model_fields
        unset = {name for name in self.NEWER if getattr(self, name) == fields[name].default}
        counts = {*others} | ({"save_steps"} if self.keep == "best" or self.patience else set())
        return self.model_dump(mode="json", exclude=(self.OPERATIONAL - counts) | unset)

    @property
    def gpu_kind(self) -> str | None:
        """The kind of GPU that a worker asks for, by Ray's name; None = any."""
        return self.accelerator_type if self.use_gpu else None

    @property
    def per_device(self) -> int:
        """Items of a batch that one device takes in one micro-step."""
        raise NotImplementedError

    def micro_batch(self, widest_gap: int) -> MicroBatch:
        """What a worker computes at a time. widest_gap: between the ranks of a pair's responses."""
        raise NotImplementedError

    def footprint(self, shape: Shape, lora: LoraShape, widest_gap: int, number: int) -> Memory:
        """The memory of one worker on its GPU. number: bytes of a number of the base weights."""
        batch, (fewest, most) = self.micro_batch(widest_gap), span(self.workers)
        return memory.training(
            shape,
            lora,
            tokens=batch.tokens,
            scored=batch.scored,
            repeated=batch.repeated,
            number=number,
            base_bits=4 if self.load_in_4bit else 16,
            workers=most,
            shards=fewest if self.fsdp else 1,
            checkpointing=self.gradient_checkpointing,
            rows_are_full=batch.is_full,
        )

    def less_memory(self, needed: Memory, gpu_bytes: float) -> str:
        """What to change, if a worker's memory is not enough. gpu_bytes: of the largest GPU; 0 = unknown."""
        found = []
        work = sum(needed.parts[name] for name in ("activations", "logits"))
        if work > needed.total / 4:
            if not self.gradient_checkpointing:
                found.append("gradient_checkpointing: true")
            found.append(f"a smaller max_length than {self.max_length}")
            if self.per_device > 1:
                found.append(f"fewer items per device than {self.per_device}")
        if needed.parts["weights"] > gpu_bytes / 2:
            found.append("more workers" if self.fsdp else "fsdp: true")
            if not self.load_in_4bit and not self.fsdp:
                found.append("load_in_4bit: true")
        told = f"set {' or '.join(found)}, or use" if found else "use"
        return f"{told} larger GPUs or a smaller model"

    def prepare(
        self, template: "ChatTemplate", dataset: Dataset, kinds: list[str] | None, seed: int
    ) -> TrainingSet:
        """The training set made of the rows of a data set (of the given kinds), in this process.

        Raises UserError if no row can be used.
        """
        from pipeline.training.parts import InMemory

        part = InMemory(self.part(template, dataset, kinds, seed, ALL))
        return self.whole(dataset.path, [part], kinds, seed)

    def decides(self, kinds: list[str] | None, seed: int) -> dict:
        """What decides the training set besides rows and chat template. The seed only if it does."""
        raise NotImplementedError

    def part(
        self, template: "ChatTemplate", dataset: Dataset, kinds: list[str] | None, seed: int, share: Share
    ) -> dict[str, pa.Table]:
        """What `whole` needs of a share of the rows, by name; the same tables of every share."""
        raise NotImplementedError

    def whole(self, path: str, parts: Sequence["Part"], kinds: list[str] | None, seed: int) -> TrainingSet:
        """The training set of the data set at `path`, whatever its parts. Raises UserError as `prepare`."""
        raise NotImplementedError

    def described(self) -> str:
        """The trainer in words: `dpo on shuffled pairs`."""
        return self.method

    def settings(self) -> str:
        """The trainer's settings, for the report."""
        return ""

    def trained_on(self, kinds: list[str] | None) -> str:
        """What an arm was trained on, for the report."""
        return ", ".join(kinds or ())

    def caution(self, kinds: Iterable[str]) -> str:
        """The model card's caution. kinds: of the examples trained on, as they are counted."""
        return self.words.caution

    def check(self, model_config: Any, where: str) -> None:
        """Raises UserError, naming the setting `where`, for models that cannot be trained this way."""

    def refuses(self, widest_gap: int) -> str | None:
        """Why no pair can be used if none has a wider rank gap than this, as `field = value: why`."""
        return None

    def most_stages(self, widest_gap: int) -> int:
        """The most runs that an arm's training has, one after the other; the adapter of each is kept."""
        return 1

    def figures(self, line: dict) -> dict:
        """The figures that this trainer adds to an arm's, from the last log line."""
        return {}

    def build(self, job: "Job", scratch: str, *, base: Any = None, world: int = 1) -> Any:
        """The trainer of one run, shared by `world` processes. base: the worker's `loop.BaseWeights`."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _is_loaded_in_one_way(self) -> "Train":
        if self.load_in_4bit and self.fsdp:
            raise ValueError(
                "load_in_4bit and fsdp are both true: weights in 4 bits are not split over workers; set one"
                " to false"
            )
        return self

    @model_validator(mode="after")
    def _has_what_it_is_chosen_by(self) -> "Train":
        for name, used in (("keep", self.keep == "best"), ("patience", self.patience is not None)):
            if used and not self.holdout:
                raise ValueError(
                    f"{name} = {getattr(self, name)} goes by the holdout loss: set holdout, such as to 0.05"
                )
        return self

    @model_validator(mode="after")
    def _batch_is_shared_evenly(self) -> "Train":
        fewest, most = span(self.workers)
        if fewest > most:
            raise ValueError(f"workers must be [min, max] with min <= max, not {[fewest, most]}")
        if self.fsdp and fewest < 2:
            raise ValueError(
                f"fsdp splits the model over the workers, and workers = {self.workers} may be one:"
                " set workers to 2 or more, or fsdp to false"
            )
        for workers in range(fewest, most + 1):
            if self.batch_size % (share := workers * self.per_device):
                raise ValueError(
                    f"batch_size = {self.batch_size} cannot be shared by {workers} workers of"
                    f" {self.per_device} a micro-step: make it a multiple of {share}"
                )
        return self
