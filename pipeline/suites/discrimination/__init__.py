"""Discrimination against generation: can a model judge what it cannot avoid saying?

The preliminary study of the mistake analysis paper (Chen et al., ICLR 2024, arXiv 2310.10477): a model
answers red-team instructions and then analyzes its own answers, without and with the cue that they may be
harmful. A strong judge rates answers and analyses on the same scale.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import Judge
from pipeline.methods.mistake_analysis import induction
from pipeline.prompts import Prompts
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome
from pipeline.report.sections import Section
from pipeline.schema import Schema
from pipeline.settings.base import Count, Draw, Greedy, PromptFile, Source
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.base import Judgements, Suite
from pipeline.suites.discrimination.judges import Rater
from pipeline.suites.discrimination.schema import DISCRIMINATIONS, MODES

_ANALYSES = 2  # of every answer: unguided and guided
_VERDICTS = 3  # of the judge: on the answer and on both analyses


class Discrimination(Suite):
    """How well an arm answers, and how well it judges its own answers."""

    data_schema: ClassVar[Schema] = DISCRIMINATIONS
    title: ClassVar = "discrimination"
    method: ClassVar = "mistake_analysis"
    NEWER: ClassVar = Suite.NEWER | {"training"}

    instructions: Source = Field(description="red-team instructions; the paper's study has 500")
    training: Source | None = Field(
        None,
        description=(
            "instructions that the methods read, such as methods.NAME.instructions, to be asked beside"
            " `instructions`; the report has training and held-out instructions apart. null = not told apart"
        ),
    )
    samples: Count = Field(1, description="answers per instruction and arm")
    answer: Greedy = Field(Greedy(), description="how answers are sampled")
    analyse: Greedy = Field(Greedy(), description="how an arm's analyses of its answers are sampled")
    judge: Rater = Field(
        Rater(), description="rates answers and analyses; a strong model, and not the run's own"
    )
    allow_self_judging: bool = Field(
        False,
        description=(
            "let the run's own model rate its own answers and analyses; the report warns that such ratings"
            " show no more than how it likes its own texts"
        ),
    )
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces methods/mistake_analysis/prompts.yaml: the analyses"
    )

    @property
    def impartial(self) -> Mapping[str, Judge]:
        return {} if self.allow_self_judging else {"judge": self.judge}

    @property
    def plain_steps(self) -> frozenset[str]:
        return frozenset(MODES)

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"answer": self.answer}

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.discrimination import recipe

        counted = counts.of("training") if self.training else None
        return recipe.work(self, arms, recipe.instructions(self, counts.of("instructions"), counted, seen))

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.discrimination.recipe import DiscriminationRecipe

        return DiscriminationRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        own, verdict = self.answer.max_tokens + _ANALYSES * self.analyse.max_tokens, self.judge.tokens()
        parts = [f"{self.answer.max_tokens} + {_ANALYSES} × {self.analyse.max_tokens}"]
        parts += [f"{_VERDICTS} × {verdict}"] if verdict else []
        total = own + _VERDICTS * verdict
        return f"{plural(self.samples, 'sample')} × ({' + '.join(parts)}) tokens", self.samples * total

    @property
    def counted(self) -> Source:
        return self.instructions

    @property
    def parts(self) -> list[tuple[Source, Suite]]:
        return [*super().parts, *([(self.training, self)] if self.training else [])]

    @property
    def compares_seen(self) -> bool:
        return self.exclude_seen or self.training is not None

    def read(self, source: Source, counts: Counts, seen: Seen | None) -> Iterable[Any]:
        exclude = self.exclude_seen and source is not self.training
        return compared(source, counts, seen, exclude=exclude)

    def size(self) -> str:
        return f"{plural(self.samples, 'answer')} to every instruction, with {_ANALYSES} analyses"

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.discrimination import report

        return report.headlines(self, numbers, arms, seed)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.discrimination import report

        return report.sections(self, numbers, arms, seed)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.discrimination import report

        return "Answers and their analyses", report.examples(dataset, arms, count)

    @property
    def outcomes(self) -> list[Outcome]:
        columns = {
            "generation": "harmless_rating",
            "discrimination_unguided": "rating_unguided",
            "discrimination_guided": "rating_guided",
        }
        by = "split" if self.training else None
        return [
            Outcome(name, column, float, by=by, unit="score", judge=self.judge)
            for name, column in columns.items()
        ]

    def settings(self) -> dict[str, str]:
        paths = [source.path for source in (self.instructions, self.training) if source]
        return {
            "Discrimination on": "; ".join(paths),
            "Answers to be analyzed": f"{self.answer.described()}, {self.samples} per instruction",
            "Analyses of own answers": self.analyse.described(),
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.judge, "harmlessness", "own answers and analyses of them")]

    def texts(self) -> Prompts:
        """The questions of the analyses; the user's file replaces the package's. Raises UserError."""
        return induction(self.prompts).without("hint", "reminder", "suffix", "prefix")

    def prompt_hashes(self) -> dict[str, str]:
        return {"analyses": self.texts().hash, **self.judge.prompt_hashes()}
