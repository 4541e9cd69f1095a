"""C²-Eval (Xu et al., EMNLP 2024, arXiv 2407.16637): how often a model turns away from a harmful
beginning."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import CorrectionJudge, Judge, Phrases
from pipeline.methods.course_correction import PROMPTS
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.sections import Section
from pipeline.schema import Schema
from pipeline.settings.base import Count, Draw, PromptFile, Source
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts
from pipeline.suites.base import Judgements, Suite
from pipeline.suites.c2_eval.schema import CONTINUATIONS


class C2Eval(Suite):
    """How often a model turns away after a harmful prefill."""

    data_schema: ClassVar[Schema] = CONTINUATIONS
    title: ClassVar = "course correction"
    method: ClassVar = "course_correction"

    entries: Source = Field(description="harmful requests with unsafe responses")
    unit: Literal["words", "tokens"] = Field("words", description="unit of the prefill's length")
    lengths: list[Count] = Field(
        [10, 20, 30, 40, 50, 60, 70, 80],
        min_length=1,
        description="k: units of the unsafe response prefilled",
    )
    paths: Count = Field(20, description="b: continuations sampled per entry and k")
    draw: Draw = Field(
        Draw(max_tokens=32, temperature=0.8, top_p=0.7),
        description="how continuations are sampled; max_tokens is the paper's m",
    )
    judge: CorrectionJudge = Field(Phrases(), description="judge of whether a continuation corrects course")
    authors_rules: bool = Field(
        False,
        description=(
            "as the authors' scripts: words counted with the opener, an opener drawn per path, "
            "a response shorter than k used whole, the first unsafe response of any length, "
            "an unreadable verdict taken as a no"
        ),
    )
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/course_correction/prompts.yaml"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "C2Eval":
        if sorted(set(self.lengths)) != self.lengths:
            raise ValueError(f"lengths must rise and not repeat, not {self.lengths}")
        if self.authors_rules and self.unit != "words":
            raise ValueError("authors_rules count words: set unit: words")
        return self

    @property
    def needs_unsafe(self) -> list[str]:
        return ["entries"]

    @property
    def continues_turns(self) -> bool:
        return True

    @property
    def reads_tokenizer(self) -> bool:
        return self.unit == "tokens"

    def rows(self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any) -> Iterator[dict]:
        from pipeline.suites.c2_eval import recipe

        entries = instructions.well_formed(self.entries, counts.of("entries"))
        return recipe.work(self, arms, seed, entries, tokenizer() if self.reads_tokenizer else None)

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.c2_eval.recipe import ContinuationRecipe

        return ContinuationRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        verdict, most = self.judge.tokens(), self.draw.max_tokens
        tokens = f"({most} + {verdict})" if verdict else str(most)
        return f"{len(self.lengths)} k × {self.paths} paths × {tokens} tokens", len(
            self.lengths
        ) * self.paths * (most + verdict)

    @property
    def counted(self) -> Source:
        return self.entries

    def size(self) -> str:
        return f"{len(self.lengths)} prefills × {self.paths} paths"

    def report(
        self, numbers: pa.Table | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.c2_eval import report

        return report.sections(self, numbers, arms, seed)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.c2_eval import report

        return "Continuations of every arm", report.examples(dataset, arms, count)

    def settings(self) -> dict[str, str]:
        rules = "; the authors' rules" if self.authors_rules else ""
        return {
            "Course correction on": self.entries.path,
            "Prefills": f"{', '.join(map(str, self.lengths))} {self.unit}{rules}",
            "Paths": f"{self.paths} per entry and k; {self.draw.described()}",
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.judge, "course correction", "course correction of continuations")]

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        return {"course_correction": self.texts().hash, **self.judge.prompt_hashes()}
