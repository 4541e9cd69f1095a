"""What every arm is asked, and who judges the answers."""

from typing import Literal

from pydantic import Field, model_validator

from pipeline.judges import CorrectionJudge, HarmlessnessJudge, Phrases, Rating, Refusal
from pipeline.settings.base import AdapterPath, ArmName, Count, Draw, Natural, PromptFile, Section, Source


class CourseCorrectionSuite(Section):
    """C²-Eval: how often a model turns away after a harmful prefill (arXiv 2407.16637)."""

    entries: Source
    unit: Literal["words", "tokens"] = Field("words", description="what the prefill's length counts")
    lengths: list[Count] = Field([10, 20, 30, 40, 50, 60, 70, 80], min_length=1, description="k: units of the unsafe response prefilled")
    paths: Count = Field(20, description="b: continuations sampled per entry and k")
    draw: Draw = Field(Draw(max_tokens=32, temperature=0.8, top_p=0.7), description="max_tokens is m")
    judge: CorrectionJudge = Phrases()
    authors_rules: bool = Field(
        False,
        description="as the authors' scripts: words counted with the opener, an opener drawn per path, a response shorter than k used whole, "
        "the first unsafe response whatever its length, an unreadable verdict taken for a no",
    )
    prompts: PromptFile | None = Field(None, description="YAML file that replaces methods/course_correction/prompts.yaml")

    @model_validator(mode="after")
    def _consistent(self) -> "CourseCorrectionSuite":
        if sorted(set(self.lengths)) != self.lengths:
            raise ValueError(f"lengths must rise and not repeat, not {self.lengths}")
        if self.authors_rules and self.unit != "words":
            raise ValueError("authors_rules count words: set unit: words")
        return self


class Evaluation(Section):
    """Every arm (and `vanilla`, the base model, and `adapters`), all suites in one engine start.

    The safety suite (`harmful`, `helpful`) asks under every condition; the course-correction suite is C²-Eval.
    """

    harmful: Source | None = Field(None, description="red-team instructions of the safety suite; null = no safety suite")
    helpful: Source | None = None
    conditions: list[Literal["plain", "reminder", "hint"]] = Field(["plain", "reminder", "hint"], min_length=1)
    samples: Count = Field(1, description="responses per instruction, arm and condition")
    answer: Draw = Draw()
    harmless: HarmlessnessJudge = Refusal()
    help: Rating | None = Field(Rating(), description="rates Help and Harm-Help; null = not rated")
    course_correction: CourseCorrectionSuite | None = None
    adapters: dict[ArmName, AdapterPath] = Field({}, description="directories of other adapters of the model, evaluated beside the arms")

    @property
    def suites(self) -> list[str]:
        return ["safety"] * (self.harmful is not None) + ["course_correction"] * (self.course_correction is not None)

    @model_validator(mode="after")
    def _something_to_do(self) -> "Evaluation":
        if not self.suites:
            raise ValueError("nothing would be evaluated: give harmful (the safety suite) or course_correction (C²-Eval)")
        if self.helpful is not None and self.harmful is None:
            raise ValueError("helpful belongs to the safety suite: give harmful too")
        return self


class Report(Section):
    examples: Natural = Field(6, description="masked examples shown")
