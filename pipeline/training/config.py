"""The trainers: SFT, in `sft.py`, and DPO, in `dpo.py`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import pyarrow as pa
from pydantic import (
    Discriminator,
    Field,
    Tag,
)

from pipeline.data.dataset import Dataset, Share
from pipeline.schema import PREFERENCES, UNSAFE_TARGET
from pipeline.schema import SFT as CONVERSATIONS
from pipeline.settings.base import Count, tag
from pipeline.training.base import SCORED_TOKENS, CardWords, Curriculum, MicroBatch, Train, TrainingSet

if TYPE_CHECKING:
    from pipeline.templates import ChatTemplate
    from pipeline.training.job import Job
    from pipeline.training.parts import Part


class SFT(Train):
    """Supervised fine-tuning on packed conversations, in one run over them. 3 epochs, 2e-5 and batch 16
    follow MoTE."""

    OPERATIONAL: ClassVar = Train.OPERATIONAL | {"sequences_per_device"}
    accepts: ClassVar = CONVERSATIONS
    words: ClassVar = CardWords(
        "The loss is on the last assistant turn of each conversation, and nowhere else.",
        "examples",
        "sequences",
        "Prompts of the training set contain harmful instructions and, if analyses are trained on,\n"
        "harmful responses to them; if recovery is trained on, answers begin with harmful text. They carry\n"
        "no loss, but the adapter has read them.",
    )

    method: Literal["sft"] = Field("sft", description="selects this trainer")
    batch_size: Count = Field(16, description="packed sequences per optimizer step, over all workers")
    sequences_per_device: Count = Field(1, description="packed sequences per device and micro-step")
    max_length: Count = Field(
        1024, description="tokens of a packed sequence; longer examples are dropped and counted"
    )
    packing: bool = Field(True, description="several examples per sequence, none seeing another")

    @property
    def per_device(self) -> int:
        return self.sequences_per_device

    def micro_batch(self, widest_gap: int) -> MicroBatch:
        return MicroBatch(self.sequences_per_device * self.max_length, is_full=self.packing)

    def caution(self, kinds: Iterable[str]) -> str:
        if unsafe := sorted(kind for kind in kinds if kind.endswith(UNSAFE_TARGET)):
            return (
                f"The targets of the examples of kind {', '.join(unsafe)} are unsafe responses: the adapter"
                " was trained to\nwrite them when it is asked for them."
            )
        return self.words.caution

    def decides(self, kinds: list[str] | None, seed: int) -> dict:
        shape = {"max_length": self.max_length, "packing": self.packing, "holdout": self.holdout}
        return {"method": self.method, "kinds": kinds, "seed": seed, **shape}

    def part(
        self, template: "ChatTemplate", dataset: Dataset, kinds: list[str] | None, seed: int, share: Share
    ) -> dict[str, pa.Table]:
        from pipeline.training import examples

        return examples.part(template, dataset, kinds or [], seed, share=share, holdout=self.holdout)

    def whole(self, path: str, parts: Sequence["Part"], kinds: list[str] | None, seed: int) -> TrainingSet:
        from pipeline.training import examples
        from pipeline.training.job import HELD_OUT, Run

        sequences, held_out, counts = examples.whole(
            path, parts, kinds or [], seed, self.max_length, self.packing, self.holdout
        )
        tables = {"sequences": sequences} | ({HELD_OUT: held_out} if self.holdout else {})
        return TrainingSet(tables, counts, [Run(sequences.num_rows)])

    def build(self, job: "Job", scratch: str, *, base: Any = None, world: int = 1) -> Any:
        from pipeline.training import sft

        return sft.build(job, scratch, base=base, world=world)


class DPO(Train):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290).

    No hyper-parameter of C²-Syn's training is public.
    """

    OPERATIONAL: ClassVar = Train.OPERATIONAL | {"pairs_per_device"}
    accepts: ClassVar = PREFERENCES
    needs_kinds: ClassVar = False
    words: ClassVar = CardWords(
        "Direct preference optimization: a pair's loss covers only the tokens after the shared prefix.",
        "pairs",
        "pairs",
        "The training set holds harmful responses as the worse side of pairs: the adapter was trained to make"
        " them less\nlikely than the better side, and has read them.",
    )

    method: Literal["dpo"] = Field("dpo", description="selects this trainer")
    epochs: float = Field(1, gt=0, description="passes over the pairs")
    learning_rate: float = Field(5e-5, gt=0, description="peak learning rate of AdamW")
    batch_size: Count = Field(64, description="pairs per optimizer step, over all workers")
    pairs_per_device: Count = Field(
        16, description="pairs per device and micro-step, on average: those of a request stay together"
    )
    max_length: Count = Field(
        1024, description="tokens of prompt and response; pairs with a longer one are dropped and counted"
    )
    beta: float = Field(0.1, gt=0, description="how strongly the policy is held to the reference")
    curriculum: Curriculum = Field(
        "shuffled",
        description=(
            "ordered = one pass by falling rank gap, (best, worst) first; staged = one DPO run per gap, in"
            " the same order, each from the model of the run before, which is its reference"
        ),
    )
    pairs: Literal["all", "best_only"] = Field(
        "all",
        description=(
            "best_only = only pairs whose chosen side is the best response of its request;"
            " `curriculum: staged` with it is Curry-DPO (arXiv 2403.07230), without it is not"
        ),
    )
    min_gap: Count = Field(
        1,
        description="pairs of a smaller rank gap are left out; 2 leaves out those of neighboring ranks",
    )

    @property
    def per_device(self) -> int:
        return self.pairs_per_device

    def micro_batch(self, widest_gap: int) -> MicroBatch:
        """Pairs of a request share its responses: 15 pairs of six ranks are six sequences.

        In a curriculum, a step's pairs have one gap, and a request may have only one pair of that gap.
        """
        ranks = widest_gap + 1
        if self.curriculum != "shuffled":
            of_request = 1
        elif self.pairs == "best_only":
            of_request = ranks - self.min_gap
        else:
            of_request = sum(ranks - gap for gap in range(self.min_gap, ranks))
        requests, rest = divmod(self.pairs_per_device, max(1, of_request))
        sequences = requests * min(2 * of_request, ranks) + min(2 * rest, ranks)
        tokens = sequences * self.max_length
        return MicroBatch(tokens, scored=min(tokens, SCORED_TOKENS), repeated=tokens)

    def decides(self, kinds: list[str] | None, seed: int) -> dict:
        names = ("method", "max_length", "pairs", "min_gap", "curriculum", "holdout")
        return {"kinds": kinds, **{name: getattr(self, name) for name in names}}

    def part(
        self, template: "ChatTemplate", dataset: Dataset, kinds: list[str] | None, seed: int, share: Share
    ) -> dict[str, pa.Table]:
        from pipeline.training import pairs

        return pairs.part(template, dataset, self.max_length, kinds=kinds, share=share, holdout=self.holdout)

    def whole(self, path: str, parts: Sequence["Part"], kinds: list[str] | None, seed: int) -> TrainingSet:
        """One run over the pairs, or one per falling rank gap."""
        from pipeline.training import pairs
        from pipeline.training.job import HELD_OUT, Run

        responses, found, held_out, counts = pairs.whole(
            path,
            parts,
            self.max_length,
            kinds=kinds,
            best_only=self.pairs == "best_only",
            min_gap=self.min_gap,
            holdout=self.holdout,
        )
        runs = [Run(found.num_rows)]
        if self.curriculum == "staged":
            sizes = {entry["values"]: entry["counts"] for entry in found["gap"].value_counts().to_pylist()}
            runs = [Run(sizes[gap], gap) for gap in sorted(sizes, reverse=True)]
        tables = {"responses": responses, "pairs": found} | ({HELD_OUT: held_out} if self.holdout else {})
        return TrainingSet(tables, counts, runs)

    def described(self) -> str:
        return f"dpo on {self.curriculum} pairs{self._which()}"

    def settings(self) -> str:
        return f"DPO, β {self.beta:g}, {self.curriculum} pairs{self._which()}"

    def trained_on(self, kinds: list[str] | None) -> str:
        of = f" of kind {', '.join(kinds)}" if kinds else ""
        return f"pairs{of}, {self.curriculum}{self._which()}"

    def _which(self) -> str:
        """Which pairs, in parentheses; empty for all pairs in one run."""
        best, told = self.pairs == "best_only", []
        if self.curriculum == "staged":
            told.append("Curry-DPO" if best else "all pairs, not Curry-DPO")
        elif best:
            told.append("only those of the best response")
        if self.min_gap > 1:
            told.append(f"gap {self.min_gap} or more")
        return f" ({'; '.join(told)})" if told else ""

    def refuses(self, widest_gap: int) -> str | None:
        if self.min_gap <= widest_gap:
            return None
        return (
            f"min_gap = {self.min_gap}: the ranks of the methods' pairs are at most {widest_gap} apart; set"
            f" it to at most {widest_gap}"
        )

    def most_stages(self, widest_gap: int) -> int:
        return max(1, widest_gap - self.min_gap + 1) if self.curriculum == "staged" else 1

    def check(self, model_config: Any, where: str) -> None:
        from pipeline.training import attention

        attention.check_shared(model_config, where)

    def figures(self, line: dict) -> dict:
        return {"final_margin": line["rewards/margins"], "final_accuracy": line["rewards/accuracies"]}

    def build(self, job: "Job", scratch: str, *, base: Any = None, world: int = 1) -> Any:
        from pipeline.training import dpo

        return dpo.build(job, scratch, base=base, world=world)


Trainer = Annotated[
    Annotated[SFT, Tag("sft")] | Annotated[DPO, Tag("dpo")],
    Discriminator(lambda value: tag(value, "method", "sft")),
]
