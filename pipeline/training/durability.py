"""Durability: how fast a second fine-tuning takes away what an arm has learned.

Refusals can vanish within ten steps on a hundred answers that begin affirmatively. So each arm's adapter is
trained further for N steps, on a set that the user gives, and evaluated as an arm of its own after each N.
Step 0 is the arm itself, and is not trained or evaluated twice.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, field_validator

from pipeline.chat import assistant, user
from pipeline.schema import SFT as CONVERSATIONS
from pipeline.schema import Schema
from pipeline.settings.base import ArmName, Count, Natural, Section, Source
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts
from pipeline.training.base import Start, Train
from pipeline.training.config import SFT

KIND = "durability"
DURABILITY = Schema(
    "durability",
    CONVERSATIONS.columns,
    title="What arms are trained on further, to see how long they stay as they are",
    tags=("sft",),
    stage="mix",
)


@dataclass(frozen=True)
class Further:
    """An adapter that is trained further.

    arm: the adapter that it begins from, NAME_seedN of an arm with several seeds; steps: optimizer steps,
    above 0.
    """

    name: str
    arm: str
    steps: int


class Durability(Section):
    """A second fine-tuning of arms, on other data. With a constant learning rate and the same order of
    examples, a longer training begins like a shorter one."""

    data: Source = Field(
        description="instructions with the responses to train on: harmless ones, or affirmative openers"
    )
    steps: list[Natural] = Field(
        [0, 5, 10, 20],
        min_length=1,
        description="optimizer steps after which arms are evaluated; 0 = the arm",
    )
    arms: list[ArmName] = Field(
        [],
        description="arms to train further; vanilla = a fresh adapter on the base; [] = vanilla and all arms",
    )
    learning_rate: float = Field(1e-4, gt=0, description="learning rate of AdamW, constant")
    batch_size: Count = Field(16, description="packed sequences per optimizer step, over all workers")

    @field_validator("steps")
    @classmethod
    def _rise(cls, steps: list[int]) -> list[int]:
        if sorted(set(steps)) != steps:
            raise ValueError(f"must rise and not repeat, not {steps}")
        return steps

    def further(self, adapters: Mapping[str, Sequence[str]]) -> list[Further]:
        """What is trained further, for every number of steps above 0. adapters: arm → one for each seed."""
        return [
            Further(f"{adapter}_after_{steps}", adapter, steps)
            for arm in self.arms or adapters
            for adapter in adapters[arm]
            for steps in self.steps
            if steps
        ]

    def trainer(self, train: Train, adapter: str | None) -> SFT:
        """The trainer, with the workers and precision of the run's. adapter: to begin from; None = fresh."""
        common = {name: getattr(train, name) for name in _OF_THE_RUN}
        return SFT(
            **common,
            start=None if adapter is None else Start(adapter=adapter),
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            epochs=1,
            equal_steps=False,
            schedule="constant",
            warmup=0,
        )

    def determines(self, further: Further, train: Train) -> dict:
        """What determines the weights of an arm that is trained further, for its fingerprint."""
        weights = self.trainer(train, None).determines()
        for name in ("start", "epochs"):
            del weights[name]
        return {"begins_from": further.arm, "steps": further.steps, "train": weights}

    def examples(self, drops: Counter[str], counts: Accounts) -> Iterator[dict]:
        """Rows of DURABILITY: every instruction of the source that has a response."""
        for row in instructions.well_formed(self.data, counts.of("durability.data")):
            if not row["safe_response"]:
                drops["no response in the source"] += 1
                continue
            yield {
                "id": f"{row['instruction_id']}-{KIND}",
                "instruction_id": row["instruction_id"],
                "kind": KIND,
                "category": row["category"],
                "messages": [user(row["instruction"]), assistant(row["safe_response"])],
            }


_OF_THE_RUN = (
    *("workers", "use_gpu", "accelerator_type", "fsdp", "lora", "max_length", "bf16"),
    *("gradient_checkpointing", "load_in_4bit", "max_failures"),
)
