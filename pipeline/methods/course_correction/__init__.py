"""C²-Syn (Xu et al., EMNLP 2024, arXiv 2407.16637): responses that turn away sooner or later, ranked, and
their preference pairs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.judges import CorrectionJudge, Judge, Phrases
from pipeline.methods.base import DataReport, Method
from pipeline.methods.course_correction.schema import CORRECTIONS, PAIR
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.schema import PREFERENCES, Schema
from pipeline.settings.base import AdapterPath, Count, Draw, Model, ModelName, Natural, PromptFile, Section
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts

PROMPTS = "methods/course_correction/prompts.yaml"


class Aligned(Section):
    """The well-aligned model that continues after a corrective trigger: another model, or an adapter."""

    model: ModelName | None = Field(None, description="name in `models`; null = the run's model")
    adapter: AdapterPath | None = Field(None, description="directory of a LoRA adapter of that model")


class CourseCorrection(Method):
    """Cut harmful responses, turn each beginning around, rank the results."""

    generated: ClassVar[Schema] = CORRECTIONS
    training_sets: ClassVar = (PREFERENCES,)
    default_arms: ClassVar = {"dpo": {}}
    example_kinds: ClassVar = {PREFERENCES.name: (PAIR,)}
    nothing: ClassVar = "no request kept two responses that differ"

    starting: ClassVar = """
continuation: {max_tokens: 512, temperature: 0.7}
judge: {kind: phrases}  # does a response correct course? fast and crude; yes_no asks a model
"""

    name: Literal["course_correction"] = Field("course_correction", description="selects this method")
    samples: Count = Field(1, description="groups of responses per request, sampled separately")
    keywords: list[str] = Field(
        ["how", "what"], description="a request must hold one, in any case; empty = any request"
    )
    min_words: Natural = Field(80, description="the unsafe response must have more words than this")
    cuts: Count = Field(
        4, description="initial harmful responses per request, each ending at a punctuation mark"
    )
    aligned: Aligned = Field(Aligned(), description="the model that continues after a trigger")
    continuation: Draw = Field(
        Draw(temperature=0.7),
        description="how the aligned model's continuations and refusals are sampled",
    )
    generate_safe: bool = Field(
        True, description="use the aligned model's refusal if the source has no safe response"
    )
    judge: CorrectionJudge = Field(
        Phrases(), description="judge of whether a synthetic response really corrects course"
    )
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/course_correction/prompts.yaml"
    )

    @property
    def kinds(self) -> list[str]:
        return [PAIR]

    @property
    def needs_unsafe(self) -> bool:
        return True

    @property
    def widest_gap(self) -> int:
        return self.cuts + 1  # from the safe response to the harmful one

    @property
    def continues_turns(self) -> bool:
        return True

    def recipe(self, seed: int) -> Recipe:
        from pipeline.methods.course_correction.recipe import CourseCorrectionRecipe

        return CourseCorrectionRecipe(self, seed)

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        from pipeline.methods.course_correction import recipe

        return recipe.pairs(rows, drops)

    @property
    def generator(self) -> tuple[str | None, str | None]:
        """The aligned model may be another one, or have an adapter."""
        return self.aligned.model, self.aligned.adapter

    def most_tokens(self) -> int:
        return (
            self.cuts + self.generate_safe
        ) * self.continuation.max_tokens + self.cuts * self.judge.tokens()

    def report(self, numbers: Mapping[str, pa.Table | None]) -> DataReport:
        from pipeline.methods.course_correction import report

        return report.data(self, numbers)

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        from pipeline.methods.course_correction import report

        return "Ranked responses", report.examples(dataset, count)

    def settings(self) -> dict[str, str]:
        keywords = f"the request holds {' or '.join(self.keywords)}" if self.keywords else "any request"
        aligned = self.aligned.model or "the run's model"
        return {
            "Selection": f"{keywords}; the unsafe response has more than {self.min_words} words",
            "Cuts": f"{self.cuts} per request, {plural(self.samples, 'group')} of responses each",
            "Aligned model": (
                aligned + (f" with adapter {self.aligned.adapter}" if self.aligned.adapter else "")
            ),
            "Continuation": self.continuation.described(),
            "Safe responses": (
                "the source's; else the aligned model's own refusal"
                if self.generate_safe
                else "the source's only"
            ),
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.judge, "course correction", "whether a synthetic response corrects course")]

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        return {"course_correction": self.texts().hash, **self.judge.prompt_hashes()}

    def check(
        self, field: str, model: Model, directory: str, generator: tuple[str, Model, str], models: Any
    ) -> list[str]:
        """Check that the aligned model can continue a turn and that its adapter fits.

        Returns a notice if its tokenizer differs from the trained model's.
        """
        where, aligned, own = generator
        notices = []
        if adapter := self.aligned.adapter:
            notices += models.check_adapter(f"{field}.aligned.adapter", storage.absolute(adapter), own)
        template = models.load_template(aligned, own, where)
        models.check_prefill(template, aligned.path, where)
        if (
            own == directory
            or template.tokenizer.get_vocab() == models.load_tokenizer(model, directory).get_vocab()
        ):
            return notices
        notice = f"{aligned.path} has another tokenizer than {model.path}"
        return [*notices, f"generate: {notice}; training tokenizes its continuations again"]
