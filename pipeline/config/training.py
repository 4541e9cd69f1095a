"""How an arm's adapter is trained, one section per method."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from pipeline.config.base import Count, Fraction, Name, Natural, Section, tag


def _pattern(modules: str | list[str]) -> str | list[str]:
    """PEFT takes a text for a regular expression of module names."""
    try:
        re.compile(modules if isinstance(modules, str) else "")
    except (re.error, RecursionError, OverflowError) as e:
        raise ValueError(f"is not a regular expression ({e}); give names of modules, or all-linear") from None
    return modules


class Lora(Section):
    rank: Count = 16
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Annotated[str | list[str], AfterValidator(_pattern)] = Field("all-linear", description="PEFT's target_modules")


class Start(Section):
    """Training begins from an adapter of the same base model; what comes out is again one adapter of the base model."""

    adapter: Name = Field(description="directory of a PEFT LoRA adapter")
    how: Literal["continue", "stack"] = Field(
        "continue", description="continue = train its own matrices on; stack = freeze it and train a new one (train.lora) on top"
    )


class Train(Section):
    """What every training method has. LoRA rank 16 follows MoTE (arXiv 2405.00557)."""

    # Fields that change how the work is done, not which weights come out.
    OPERATIONAL: ClassVar = {"workers", "save_steps", "log_steps", "max_failures", "merge"}

    workers: Count | tuple[Count, Count] = Field(1, description="training processes; [min, max] = elastic")
    use_gpu: bool = Field(False, description="one GPU per worker")
    start: Start | None = Field(None, description="adapter to begin from; null = a fresh one on the base model")
    lora: Lora = Lora()
    epochs: float = Field(3, gt=0)
    learning_rate: float = Field(2e-5, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup: Fraction = Field(0.03, description="fraction of the steps")
    weight_decay: float = Field(0.0, ge=0)
    batch_size: Count = 16
    max_length: Count = 1024
    bf16: bool = True
    gradient_checkpointing: bool = False
    save_steps: Count = Field(50, description="optimizer steps between checkpoints")
    log_steps: Count = 5
    max_failures: Natural = Field(3, description="worker failures survived before the run fails")
    merge: bool = Field(False, description="also write the merged weights")

    @property
    def per_device(self) -> int:
        """Items of a batch that one device takes in one micro-step."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _batch_is_shared_evenly(self) -> "Train":
        fewest, most = self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        if fewest > most:
            raise ValueError(f"workers must be [min, max] with min <= max, not {list(self.workers)}")
        for workers in range(fewest, most + 1):
            if self.batch_size % (share := workers * self.per_device):
                raise ValueError(
                    f"batch_size = {self.batch_size} cannot be shared by {workers} workers of {self.per_device} a micro-step: "
                    f"make it a multiple of {share}"
                )
        return self


class SFT(Train):
    """Supervised fine-tuning. 3 epochs, 2e-5 and batch 16 follow MoTE."""

    OPERATIONAL: ClassVar = Train.OPERATIONAL | {"sequences_per_device"}

    method: Literal["sft"] = "sft"
    batch_size: Count = Field(16, description="packed sequences per optimizer step, over all workers")
    sequences_per_device: Count = Field(1, description="packed sequences per device and micro-step")
    max_length: Count = Field(1024, description="tokens of a packed sequence; longer examples are dropped and counted")
    packing: bool = Field(True, description="several examples per sequence, none seeing another")

    @property
    def per_device(self) -> int:
        return self.sequences_per_device


class DPO(Train):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290). No hyper-parameter of C²-Syn's training is known."""

    OPERATIONAL: ClassVar = Train.OPERATIONAL | {"pairs_per_device"}

    method: Literal["dpo"] = "dpo"
    epochs: float = Field(1, gt=0)
    learning_rate: float = Field(5e-5, gt=0)
    batch_size: Count = Field(64, description="pairs per optimizer step, over all workers")
    pairs_per_device: Count = Field(16, description="pairs per device and micro-step, on average: those of a request stay together")
    max_length: Count = Field(1024, description="tokens of prompt and response; pairs with a longer one are dropped and counted")
    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
    curriculum: Literal["shuffled", "ordered", "iterative"] = Field(
        "shuffled",
        description="ordered = one pass by falling rank gap, (best, worst) first; iterative = one DPO run per gap, each from the model of "
        "the one before, which is its reference (Curry-DPO, arXiv 2403.07230)",
    )

    @property
    def per_device(self) -> int:
        return self.pairs_per_device


Training = Annotated[Annotated[SFT, Tag("sft")] | Annotated[DPO, Tag("dpo")], Discriminator(lambda value: tag(value, "method", "sft"))]


class Arm(Section):
    """One fine-tuned arm: which examples it sees, and where its training differs from `train`."""

    kinds: list[Literal["analysis", "safe", "helpful"]] | None = Field(None, min_length=1, description="of the mixture; sft only")
    train: Training = Field(description="fields that differ from `train`; merged with it when a configuration is read")
