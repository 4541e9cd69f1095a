"""What `generate` makes of an instruction, one section per method, and the mixture that mistake analysis trains on."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from pipeline.judges import CorrectionJudge, HarmlessnessJudge, Phrases, Refusal
from pipeline.settings.base import AdapterPath, Count, Draw, Model, Natural, PromptFile, Ratio, Section, Source, tag


class Hint(Section):
    """The cue that induces a mistake. Exact wording and position are unknown from the paper, hence options."""

    text: str | None = Field(None, description="none = `hint` of the prompt file")
    position: Literal["suffix", "prefix", "system"] = "suffix"


class MistakeAnalysis(Section):
    """Guided mistake induction, then analysis (Chen et al., ICLR 2024, arXiv 2310.10477)."""

    name: Literal["mistake_analysis"] = "mistake_analysis"
    samples: Count = Field(1, description="mistakes per instruction")
    mistake: Literal["induced", "reference"] = Field("induced", description="`reference` = the source's own unsafe response")
    hint: Hint = Hint()
    guided_analysis: bool = Field(True, description="tell the model that the response may be harmful when it analyses it")
    verify: HarmlessnessJudge | None = Field(Refusal(), description="judge of whether the induced response is harmful; null = not judged")
    filter: bool = Field(False, description="analyse only mistakes judged harmful (the paper's figure draws no filter)")
    induce: Draw = Draw()
    analyse: Draw = Draw()
    prompts: PromptFile | None = Field(None, description="YAML file that replaces methods/mistake_analysis/prompts.yaml")

    @model_validator(mode="after")
    def _filter_needs_verdict(self) -> "MistakeAnalysis":
        if self.filter and self.verify is None:
            raise ValueError("filter needs a verdict: set verify, or filter: false")
        return self


class Aligned(Section):
    """The well-aligned model that goes on after a corrective trigger: another model, or an adapter on it."""

    model: Model | None = Field(None, description="null = the run's own model")
    adapter: AdapterPath | None = Field(None, description="directory of a LoRA adapter of that model")


class CourseCorrection(Section):
    """C²-Syn: responses that turn away sooner or later, ranked (Xu et al., EMNLP 2024, arXiv 2407.16637)."""

    name: Literal["course_correction"] = "course_correction"
    samples: Count = Field(1, description="groups of responses per request, each with triggers and continuations of its own")
    keywords: list[str] = Field(["how", "what"], description="the request holds one of them, in any case; empty = no condition")
    min_words: Natural = Field(80, description="the unsafe response has more words than this")
    cuts: Count = Field(4, description="initial harmful responses per request, each ending at a punctuation mark")
    aligned: Aligned = Aligned()
    continuation: Draw = Draw(max_tokens=128, temperature=0.7)
    generate_safe: bool = Field(True, description="where the source has no safe response, take the aligned model's own refusal")
    check: CorrectionJudge = Field(Phrases(), description="judge of whether a synthetic response really corrects course")
    prompts: PromptFile | None = Field(None, description="YAML file that replaces methods/course_correction/prompts.yaml")


Recipe = Annotated[
    Annotated[MistakeAnalysis, Tag("mistake_analysis")] | Annotated[CourseCorrection, Tag("course_correction")],
    Discriminator(lambda value: tag(value, "name", "mistake_analysis")),
]


class Mix(Section):
    """What the adapters are trained on: analyses + safe pairs + helpful pairs. Ratios are rows per harmful instruction."""

    guided_template: bool = Field(False, description="train with the guided template (an ablation: the verdict leaks into the prompt)")
    helpful: Source | None = Field(None, description="benign instructions with reference responses")
    analysis: Ratio = 1.0
    safe: Ratio = 1.0
    helpful_ratio: Ratio = 1.0
