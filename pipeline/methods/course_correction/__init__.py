"""C²-Syn (Xu et al., EMNLP 2024, arXiv 2407.16637): responses that turn away sooner or later, ranked, and
their preference pairs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.adapters import check_adapter
from pipeline.chat import Recipe
from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.judges import CorrectionJudge, Judge, Phrases
from pipeline.methods.base import DataReport, Method
from pipeline.methods.course_correction.schema import CORRECTIONS, PAIR, RECOVERY
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.numbers import Rows
from pipeline.schema import PREFERENCES, SFT, Schema
from pipeline.settings.base import (
    FOR_FINGERPRINT,
    AdapterPath,
    Count,
    Draw,
    Fraction,
    Model,
    ModelName,
    Natural,
    PromptFile,
    Ratio,
    Section,
)
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts

PROMPTS = "methods/course_correction/prompts.yaml"


class Aligned(Section):
    """The well-aligned model that continues after a corrective trigger: another model, or an adapter."""

    model: ModelName | None = Field(None, description="name in `models`; null = the run's model")
    adapter: AdapterPath | None = Field(None, description="directory of a LoRA adapter of that model")


class RecoveryMix(Section):
    """The training rows of arms that are trained by SFT; pairs need no settings."""

    recovery: Ratio = Field(1.0, description="examples of kind `recovery` per request: request → refusal")
    prefixed: Fraction = Field(
        0.5, description="share of them, by id, whose turn begins with tokens of the harmful response"
    )
    prefix_tokens: Count = Field(
        100, description="most tokens of such a beginning; each number from 1 on is as probable"
    )


class CourseCorrection(Method):
    """Cut harmful responses, turn each beginning around, rank the results."""

    generated: ClassVar[Schema] = CORRECTIONS
    training_sets: ClassVar = (PREFERENCES, SFT)
    default_arms: ClassVar = {"dpo": {"train": {"method": "dpo"}}}
    mixing: ClassVar = frozenset({"mix"})
    example_kinds: ClassVar = {PREFERENCES.name: (PAIR,), SFT.name: (RECOVERY,)}
    if_named: ClassVar = frozenset({RECOVERY})
    nothing: ClassVar = "no request kept two responses that differ, or a safe one"

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
    safe_from: Literal["aligned", "source", "source_then_aligned"] = Field(
        "aligned",
        description=(
            "the response of rank 1: aligned = the aligned model's own refusal, as the authors have it, so"
            " that all ranks are of one style; source = the source's safe response; source_then_aligned = the"
            " source's, or the aligned model's if the source has none"
        ),
    )
    judge: CorrectionJudge = Field(
        Phrases(), description="judge of whether a synthetic response really corrects course"
    )
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/course_correction/prompts.yaml"
    )
    mix: RecoveryMix = Field(RecoveryMix(), description="the conversations that `mix` makes")

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, given: Any) -> Any:
        if isinstance(given, dict) and "generate_safe" in given:
            now = "source_then_aligned" if given["generate_safe"] else "source"
            raise ValueError(f"generate_safe is no longer a key: set safe_from: {now}")
        return given

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """For a fingerprint, as older versions named the setting: their finished outputs stay valid."""
        given = dump(self)
        if info.context == FOR_FINGERPRINT and self.safe_from != "aligned" and "safe_from" in given:
            given["generate_safe"] = given.pop("safe_from") == "source_then_aligned"
        return given

    @property
    def kinds(self) -> list[str]:
        return [PAIR, RECOVERY] if self.mix.recovery else [PAIR]

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
        from pipeline.methods.course_correction import recipe, recoveries

        if schema == SFT:
            return recoveries.conversations(self, rows, drops, seed)
        return recipe.pairs(rows, drops)

    def mixing_of(self, schema: Schema) -> frozenset[str]:
        return self.mixing if schema == SFT else frozenset()

    @property
    def generator(self) -> tuple[str | None, str | None]:
        """The aligned model may be another one, or have an adapter."""
        return self.aligned.model, self.aligned.adapter

    def most_tokens(self) -> int:
        asked = self.cuts + (self.safe_from != "source")
        return asked * self.continuation.max_tokens + self.cuts * self.judge.tokens()

    def report(self, numbers: Mapping[str, Rows | None]) -> DataReport:
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
            "Safe responses": {
                "aligned": "the aligned model's own refusals",
                "source": "the source's",
                "source_then_aligned": "the source's; else the aligned model's own refusals",
            }[self.safe_from],
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
            notices += check_adapter(f"{field}.aligned.adapter", storage.absolute(adapter), own)
        template = models.load_template(aligned, own, where)
        models.check_prefill(template, aligned.path, where)
        if (
            own == directory
            or template.tokenizer.get_vocab() == models.load_tokenizer(model, directory).get_vocab()
        ):
            return notices
        notice = f"{aligned.path} has another tokenizer than {model.path}"
        return [*notices, f"generate: {notice}; training tokenizes its continuations again"]
