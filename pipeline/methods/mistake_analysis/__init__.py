"""Mistake analysis (Chen et al., ICLR 2024, arXiv 2310.10477): the model errs on purpose and explains that.

The model is then trained on the explanations.
"""

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

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import HarmlessnessJudge, Judge, Refusal
from pipeline.methods.base import DataReport, Method
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.numbers import Rows
from pipeline.schema import SFT, Schema
from pipeline.settings.base import (
    FOR_FINGERPRINT,
    Draw,
    Fraction,
    Model,
    PromptFile,
    Ratio,
    Section,
    Source,
    tag,
)
from pipeline.sources.counts import Accounts

PROMPTS = "methods/mistake_analysis/prompts.yaml"
SAFE_ANALYSIS = "safe_analysis"  # a kind of examples, and a column


class Hint(Section):
    """The cue that induces a mistake. The paper gives neither wording nor position, hence the options."""

    text: str | None = Field(None, description="null = `hint` of the prompt file")
    position: Literal["suffix", "prefix", "system", "prefill"] = Field(
        "suffix",
        description=(
            "after the instruction, before it, as a system message, or as the beginning of the model's own"
            " turn, which the model continues; the beginning is no part of the response"
        ),
    )

    def conversations(self) -> dict[tuple[str, ...], str]:
        """Roles of the conversation that the hint makes → the setting that asks for them."""
        return {("system", "user"): "hint.position = system"} if self.position == "system" else {}

    @property
    def continues_turns(self) -> bool:
        return self.position == "prefill"

    def check(self, field: str, model: Model, directory: str, models: Any) -> None:
        """Check that the chat template can continue a turn, if that is asked for. Raises UserError.

        field: the method's configuration path; model, directory: of the model that generates.
        """
        if self.continues_turns:
            template = models.load_template(model, directory, "model")
            models.check_prefill(template, model.path, "model", f"{field}.hint.position = prefill")


THINK = ("think", "respond")  # the prompts of the condition `think`


def induction(replacement: str | None = None, *, think: bool = False) -> Prompts:
    """The prompts of hint and reminder, for those that make no analyses of harmless answers.

    replacement: as of `prompts.load`. think: with those of the condition `think`. Raises UserError.
    """
    return load(PROMPTS, replacement).without("analyse_harmless", *(() if think else THINK))


class Mix(Section):
    """The training rows: analyses + safe pairs + helpful pairs. Ratios are rows per harmful instruction."""

    guided_template: bool = Field(
        False, description="train with the guided template (an ablation: the verdict leaks into the prompt)"
    )
    helpful: Source | None = Field(None, description="benign instructions with reference responses")
    analysis: Ratio = Field(
        1.0,
        description="copies of each analysis, of mistakes and of harmless answers; 0.5 = half of them, by id",
    )
    safe: Ratio = Field(1.0, description="copies of the safe pair of each instruction that has one")
    helpful_ratio: Ratio = Field(
        1.0, description="helpful pairs per harmful instruction, if there are enough"
    )


class MistakeAnalysis(Method):
    """Guided mistake induction, then analysis."""

    generated: ClassVar[Schema] = MISTAKES
    training_sets: ClassVar = (SFT,)
    default_arms: ClassVar = {
        "sft": {"kinds": ["safe", "helpful"]},
        "mistake_analysis": {"kinds": ["safe", "helpful", "analysis"]},
    }
    nothing: ClassVar = "no mistake was analyzed and no source has a safe response"
    mixing: ClassVar = frozenset({"mix"})
    example_kinds: ClassVar = {SFT.name: ("analysis", SAFE_ANALYSIS, "safe", "helpful")}
    made_from: ClassVar = {
        "safe": ("instructions", "safe_response"),
        "helpful": ("mix.helpful", "safe_response"),
    }

    starting: ClassVar = """
verify: {kind: refusal}  # was it harmful? by phrases: fast and crude; docs/judges.md has better
induce: {max_tokens: 512}
analyse: {max_tokens: 512}
# mix: {helpful: {path: data/benign_with_responses.jsonl}}  # keeps the model useful
"""

    name: Literal["mistake_analysis"] = Field("mistake_analysis", description="selects this method")
    mistake: Literal["induced", "own", "reference"] = Field(
        "induced",
        description=(
            "induced = the response under the hint; own = the response to the instruction alone, sampled like"
            " an induced one; reference = the source's unsafe response"
        ),
    )
    hint: Hint = Field(Hint(), description="the cue that induces a mistake")
    guided_analysis: bool = Field(
        True, description="in the analysis, tell the model that the response may be harmful"
    )
    analyse_safe: Fraction = Field(
        0.0,
        description=(
            "share of rows, by id, in which a harmless answer is analyzed as well: the row's own response if"
            " the judge calls it harmless, else the source's safe response. Above 0, a response that is"
            " judged harmless has no other analysis, and the examples are of kind `safe_analysis`"
        ),
    )
    verify: HarmlessnessJudge | None = Field(
        Refusal(), description="judge of whether the response is harmful; null = not judged"
    )
    verify_safe: HarmlessnessJudge | None = Field(
        None,
        description=(
            "judge of the source's safe responses: one that it does not call harmless is no example of kind"
            " `safe` and is not analyzed as a harmless answer; null = the source's labels are believed"
        ),
    )
    filter: bool = Field(
        False, description="analyze only mistakes judged harmful (the paper shows no filter)"
    )
    contradictions: Literal["keep", "drop"] = Field(
        "keep",
        description=(
            "what becomes of an analysis that pronounces another verdict on the response than the judge, or"
            " than the source's label of a safe response; they are counted in any case"
        ),
    )
    induce: Draw = Field(Draw(), description="how the harmful response is sampled")
    analyse: Draw = Field(Draw(), description="how the analysis is sampled")
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/mistake_analysis/prompts.yaml"
    )
    mix: Mix = Field(Mix(), description="the training rows that `mix` makes from the mistakes")

    @model_validator(mode="after")
    def _filter_needs_verdict(self) -> "MistakeAnalysis":
        if self.filter and self.verify is None:
            raise ValueError("filter needs a verdict: set verify, or filter: false")
        if self.contradictions == "drop" and self.verify is None:
            raise ValueError("contradictions = drop needs a verdict: set verify, or contradictions: keep")
        return self

    @property
    def kinds(self) -> list[str]:
        mix = self.mix
        made = {
            "analysis": mix.analysis,
            SAFE_ANALYSIS: mix.analysis and self.analyse_safe,
            "safe": mix.safe,
            "helpful": mix.helpful is not None and mix.helpful_ratio,
        }
        return [kind for kind, some in made.items() if some]

    @property
    def needs_unsafe(self) -> bool:
        return self.mistake == "reference"

    @property
    def needs_safe(self) -> bool:
        return bool(self.analyse_safe) and self.verify is None  # else the model's own may do

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        return {("user",): ""} | (self.hint.conversations() if self.mistake == "induced" else {})

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        field, samples, draws = super().repeats
        return field, samples, draws if self.mistake != "reference" else {"analyse": self.analyse}

    @property
    def continues_turns(self) -> bool:
        return self.mistake == "induced" and self.hint.continues_turns

    @classmethod
    def arms_by_default(cls, section: Any) -> dict[str, dict]:
        """With analyses of harmless answers, the arm that is trained on analyses is trained on those, too."""
        arms = super().arms_by_default(section)
        if not tag(section, "analyse_safe", None):
            return arms
        analysing = arms["mistake_analysis"]
        return {**arms, "mistake_analysis": {"kinds": [*analysing["kinds"], SAFE_ANALYSIS]}}

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        given = dump(self)
        if info.context == FOR_FINGERPRINT and not self.analyse_safe:
            given.pop("analyse_safe", None)  # finished outputs of older versions do not have it
        if info.context == FOR_FINGERPRINT and self.verify_safe is None:
            given.pop("verify_safe", None)
        return given

    def recipe(self, seed: int) -> Recipe:
        from pipeline.methods.mistake_analysis.recipe import MistakeAnalysisRecipe

        return MistakeAnalysisRecipe(self, seed)

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        from pipeline.methods.mistake_analysis import mixture
        from pipeline.sources import instructions

        counted = counts.of("mix.helpful") if self.mix.helpful else None
        helpful = instructions.well_formed(self.mix.helpful, counted)
        return mixture.examples(self, rows, helpful, seed, drops)

    def most_tokens(self) -> int:
        verdict = sum(judge.tokens() for judge in (self.verify, self.verify_safe) if judge)
        response = 0 if self.mistake == "reference" else self.induce.max_tokens
        analyses = self.analyse.max_tokens * (2 if self.analyse_safe else 1)
        return response + verdict + analyses

    def report(self, numbers: Mapping[str, Rows | None]) -> DataReport:
        from pipeline.methods.mistake_analysis import report

        return report.data(self, numbers)

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        from pipeline.methods.mistake_analysis import report

        return "Mistakes and their analyses", report.examples(dataset, count)

    def settings(self) -> dict[str, str]:
        hint = {"Hint": f"{self.hint.text or 'as in the prompt file'}; {self.hint.position}"}
        safe = {"Harmless answers": f"analyzed in {self.analyse_safe:.0%} of the rows, if there is one"}
        return {
            **(hint if self.mistake == "induced" else {"Mistakes": self.mistake}),
            "Induction": f"{self.induce.described()}, {self.samples} per instruction",
            "Analysis": f"{self.analyse.described()}, {'guided' if self.guided_analysis else 'unguided'}",
            "Filter": (
                "only mistakes judged harmful are analyzed"
                if self.filter
                else "none: every mistake is analyzed"
            ),
            "Training template": "guided" if self.mix.guided_template else "unguided",
            **(safe if self.analyse_safe else {}),
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        what = "a mistake was induced" if self.mistake == "induced" else "the response is a mistake"
        found: list[tuple[Judge, str, str]] = []
        if self.verify:
            found.append((self.verify, "harmlessness", f"whether {what}"))
        if self.verify_safe:
            found.append((self.verify_safe, "harmlessness", "the source's safe responses"))
        return found

    def check(
        self, field: str, model: Model, directory: str, generator: tuple[str, Model, str], models: Any
    ) -> list[str]:
        if self.continues_turns:
            _, asked, own = generator
            self.hint.check(field, asked, own, models)
        return []

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        texts = load(PROMPTS, self.prompts).without(*THINK)
        return texts if self.analyse_safe else induction(self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        own = {"mistake_analysis": self.texts().hash}
        judges = [judge for judge in (self.verify, self.verify_safe) if judge]
        return own | {name: hash for judge in judges for name, hash in judge.prompt_hashes().items()}
