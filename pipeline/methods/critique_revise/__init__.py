"""Critique-Revise (Constitutional AI, Bai et al. 2022, arXiv 2212.08073).

The model criticizes its answers, revises them, and is trained on the revisions.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.judges import HarmlessnessJudge, Judge
from pipeline.methods.base import DataReport, Method
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.methods.mistake_analysis import Hint, induction
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.numbers import Rows
from pipeline.schema import PREFERENCES, SFT, Schema
from pipeline.settings.base import Count, Draw, Model, PromptFile, Ratio, Section
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts

PROMPTS = "methods/critique_revise/prompts.yaml"


class RevisionMix(Section):
    """The training rows."""

    revision: Ratio = Field(1.0, description="examples per revision: instruction → revision")


class CritiqueRevise(Method):
    """Critique and revision under principles, in one or more rounds."""

    generated: ClassVar[Schema] = REVISIONS
    training_sets: ClassVar = (SFT, PREFERENCES)
    default_arms: ClassVar = {"critique_revise": {"kinds": ["revision"]}}
    nothing: ClassVar = "no answer was revised"
    mixing: ClassVar = frozenset({"mix"})
    example_kinds: ClassVar = {SFT.name: ("revision",), PREFERENCES.name: ("revision",)}

    starting: ClassVar = """
induce: {max_tokens: 512}
critique: {max_tokens: 512}
revise: {max_tokens: 512}
"""

    name: Literal["critique_revise"] = Field("critique_revise", description="selects this method")
    answer: Literal["induced", "plain", "reference"] = Field(
        "induced",
        description=(
            "the first answer: under the hint, as the model gives it, or the source's unsafe response"
        ),
    )
    hint: Hint = Field(Hint(), description="the cue that induces the first answer")
    rounds: Count = Field(1, description="critiques and revisions of an answer, one after the other")
    principles: list[str] = Field([], description="names of principles in the prompt file; empty = all")
    induce: Draw = Field(Draw(), description="sampling of the first answer")
    critique: Draw = Field(Draw(), description="sampling of critiques")
    revise: Draw = Field(Draw(), description="sampling of revisions")
    verify: HarmlessnessJudge | None = Field(None, description="judge of the revision; null = not judged")
    filter: bool = Field(False, description="keep only revisions judged harmless")
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/critique_revise/prompts.yaml"
    )
    mix: RevisionMix = Field(RevisionMix(), description="the training rows that `mix` makes")

    @model_validator(mode="after")
    def _filter_needs_verdict(self) -> "CritiqueRevise":
        if self.filter and self.verify is None:
            raise ValueError("filter needs a verdict: set verify, or filter: false")
        return self

    @property
    def kinds(self) -> list[str]:
        return ["revision"] if self.mix.revision else []

    @property
    def needs_unsafe(self) -> bool:
        return self.answer == "reference"

    def principle_names(self) -> list[str]:
        """The principles to draw from. Raises UserError if one is not in the prompt file."""
        known = [
            name.removeprefix("critique_") for name in self.texts().texts if name.startswith("critique_")
        ]
        for name in self.principles:
            if name not in known:
                raise UserError(
                    f"principles: {name} is not a principle of {PROMPTS}; known are {', '.join(known)}"
                )
        return self.principles or known

    @property
    def continues_turns(self) -> bool:
        return self.answer == "induced" and self.hint.continues_turns

    def check(
        self, field: str, model: Model, directory: str, generator: tuple[str, Model, str], models: Any
    ) -> list[str]:
        if self.continues_turns:
            _, asked, own = generator
            self.hint.check(field, asked, own, models)
        return []

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        found = {("user",): ""} | (self.hint.conversations() if self.answer == "induced" else {})
        turns = ("user", "assistant") * (2 * self.rounds) + ("user",)
        return found | {turns[:end]: f"rounds = {self.rounds}" for end in range(3, len(turns) + 1, 2)}

    def recipe(self, seed: int) -> Recipe:
        from pipeline.methods.critique_revise.recipe import CritiqueReviseRecipe

        return CritiqueReviseRecipe(self, seed)

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        from pipeline.methods.critique_revise import recipe

        return recipe.pairs(rows, drops) if schema == PREFERENCES else recipe.conversations(self, rows, seed)

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        self.principle_names()
        hashes = {"critique_revise": self.texts().hash}
        if self.answer == "induced":
            hashes["mistake_analysis"] = induction().hash
        return hashes | (self.verify.prompt_hashes() if self.verify else {})

    def most_tokens(self) -> int:
        first = 0 if self.answer == "reference" else self.induce.max_tokens
        verdict = self.verify.tokens() if self.verify else 0
        return first + self.rounds * (self.critique.max_tokens + self.revise.max_tokens) + verdict

    def report(self, numbers: Mapping[str, Rows | None]) -> DataReport:
        from pipeline.methods.critique_revise import report

        return report.data(self, numbers)

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        from pipeline.methods.critique_revise import report

        return "Answers and their revisions", report.examples(dataset, count)

    def settings(self) -> dict[str, str]:
        return {
            "First answer": f"{self.answer}; {self.induce.described()}",
            "Critique and revision": (
                f"{plural(self.rounds, 'round')}; {self.critique.described()}; {self.revise.described()}"
            ),
            "Principles": ", ".join(self.principles) or "all of the prompt file",
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.verify, "harmlessness", "harmlessness of revisions")] if self.verify else []
