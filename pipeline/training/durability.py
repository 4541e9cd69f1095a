"""Durability: how fast a second fine-tuning takes away what an arm has learned.

Refusals can vanish within ten steps on a hundred answers that begin affirmatively. So each arm's adapter is
trained further for N steps, on a set that the user gives, and evaluated as an arm of its own after each N.
Step 0 is the arm itself, and is not trained or evaluated twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field, ValidationError, field_validator

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
    above 0; own: how that arm is trained, and vanilla: as the run's `train` says.
    """

    name: str
    arm: str
    steps: int
    own: Train


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

    def further(self, arms: Mapping[str, tuple[Train, Sequence[str]]]) -> list[Further]:
        """What is trained further, for every number of steps above 0.

        arms: how each is trained, and its adapters, one for each seed.
        """
        return [
            Further(f"{adapter}_after_{steps}", adapter, steps, arms[arm][0])
            for arm in self.arms or arms
            for adapter in arms[arm][1]
            for steps in self.steps
            if steps
        ]

    def check(self, further: Iterable[Further], train: Train) -> None:
        """Raises ValueError if what is trained further cannot be trained with the workers that it has."""
        for one in further:
            try:
                self.trainer(one, train)
            except ValidationError as e:
                whose = "train" if one.own == train else one.arm
                told = e.errors()[0]["msg"].removeprefix("Value error, ")
                raise ValueError(f"durability, with the workers of {whose}: {told}") from None

    def trainer(self, further: Further, train: Train, adapter: str | None = None) -> SFT:
        """The trainer: on the workers of the arm, with the base model held as for it, and with the run's
        lengths and precision, alike for all arms. adapter: to begin from; None = fresh."""
        common = {name: getattr(train, name) for name in OF_THE_RUN}
        own = {name: getattr(further.own, name) for name in OF_THE_ARM}
        return SFT(
            **common,
            **own,
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
        weights = self.trainer(further, train).determines()
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


OF_THE_RUN = ("lora", "max_length", "bf16", "gradient_checkpointing")
OF_THE_ARM = ("workers", "use_gpu", "accelerator_type", "fsdp", "load_in_4bit", "max_failures")
