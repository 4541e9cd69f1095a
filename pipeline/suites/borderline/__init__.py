"""Over-refusal on borderline prompts: what sounds harmful and is safe, beside what is not.

The two halves and the three classes are those of XSTest (Röttger et al., NAACL 2024, arXiv 2308.01263). Sets
in the shape of OR-Bench (Cui et al., 2024, arXiv 2405.20947) have a file for each half.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.errors import OutOfReach, UserError
from pipeline.judges import Judge
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome
from pipeline.report.sections import Section
from pipeline.schema import OK, Schema
from pipeline.settings.base import ArmName, Count, Draw, Model, Source
from pipeline.settings.shown import plural
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.base import MORE_JUDGES, Judgements, Suite
from pipeline.suites.borderline.judges import AnyComplianceJudge, RefusalPhrases
from pipeline.suites.borderline.schema import BORDERLINE, COMPLIANCE_VERDICTS, FULL

_READ_FIRST = 10_000  # rows of the source, before anything starts


class Borderline(Suite):
    """How often safe prompts that sound harmful are answered, and unsafe ones refused."""

    data_schema: ClassVar[Schema] = BORDERLINE
    verdicts: ClassVar[Schema] = COMPLIANCE_VERDICTS
    title: ClassVar = "borderline prompts"
    method: ClassVar = ""
    LATER: ClassVar = frozenset({"more_judges"})

    prompts: Source = Field(
        description="prompts that sound harmful and are safe, or both halves if unsafe_categories is given"
    )
    unsafe: Source | None = Field(
        None, description="prompts that ought to be refused; null = those of unsafe_categories, if any"
    )
    unsafe_categories: list[str] = Field(
        [],
        description=(
            "categories of `prompts` that are the unsafe half, in any letter case, such as [unsafe]; * stands"
            " for anything, as in [contrast_*]"
        ),
    )
    samples: Count = Field(1, description="answers per prompt and arm")
    answer: Draw = Field(Draw(), description="how answers are sampled")
    judge: AnyComplianceJudge = Field(
        RefusalPhrases(), description="sorts answers into full compliance, partial refusal and refusal"
    )
    more_judges: dict[ArmName, AnyComplianceJudge] = Field({}, description=MORE_JUDGES)

    def check(self, field: str, model: Model) -> None:
        """Raises UserError if the categories divide the first rows of the source into one half only."""
        from pipeline.suites.borderline import recipe

        if not self.unsafe_categories:
            return
        read = 0
        try:
            first = islice(instructions.well_formed(self.prompts), _READ_FIRST)
            for read, _ in enumerate(recipe.halves(self, first, ()), start=1):  # noqa: B007
                pass
        except OutOfReach:
            return  # a plan works without the source, and a run has checked it
        except UserError as e:
            if read < _READ_FIRST:  # else later rows may be of the other half
                raise UserError(f"{field}.{e}") from None

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"answer": self.answer}

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.borderline import recipe

        exclude, counted = self.exclude_seen, counts.of("unsafe") if self.unsafe else None
        prompts = compared(self.prompts, counts.of("prompts"), seen, exclude=exclude)
        return recipe.work(self, arms, prompts, compared(self.unsafe, counted, seen, exclude=exclude))

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.borderline.recipe import ComplianceRecipe

        return ComplianceRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        verdict, most = self.judge.tokens(), self.answer.max_tokens
        tokens = f"({most} + {verdict})" if verdict else str(most)
        return f"{plural(self.samples, 'sample')} × {tokens} tokens", self.samples * (most + verdict)

    @property
    def counted(self) -> Source:
        return self.prompts

    @property
    def parts(self) -> list[tuple[Source, Suite]]:
        own = super().parts
        if self.unsafe is None:
            return own
        return [*own, (self.unsafe, self.model_copy(update={"prompts": self.unsafe}))]

    def size(self) -> str:
        return f"{plural(self.samples, 'answer')} to every borderline prompt"

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.borderline import report

        return report.headlines(self, numbers, arms, seed)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.borderline import report

        return report.sections(self, numbers, arms, seed, judgements)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.borderline import report

        return "Answers to borderline prompts", report.examples(dataset, arms, count)

    @property
    def outcomes(self) -> list[Outcome]:
        full = Outcome(
            "full_compliance", "compliance", lambda said: float(said == FULL), by="half", judge=self.judge
        )
        return [full]

    def settings(self) -> dict[str, str]:
        paths = [source.path for source in (self.prompts, self.unsafe) if source]
        if self.unsafe_categories:
            paths.append(f"unsafe half: categories {', '.join(self.unsafe_categories)}")
        return {
            "Borderline prompts": "; ".join(paths),
            "Answers to borderline prompts": f"{self.answer.described()}, {self.samples} per prompt",
        }

    @property
    def judges_later(self) -> Mapping[str, Judge]:
        return self.more_judges

    def stored(self, answers: Iterable[dict]) -> Iterator[dict]:
        for answer in answers:
            if answer["status"] == OK:
                yield {
                    "answer_id": answer["id"],
                    "instruction": answer["instruction"],
                    "response": answer["response"],
                }

    def verdict_recipe(self, judge: Any) -> Recipe:
        from pipeline.suites.borderline.recipe import ComplianceVerdicts

        return ComplianceVerdicts(judge)

    def judged(self) -> list[tuple[Judge, str, str]]:
        more = [(judge, "compliance", name) for name, judge in self.more_judges.items()]
        return [(self.judge, "compliance", "compliance of answers to borderline prompts"), *more]

    def prompt_hashes(self) -> dict[str, str]:
        return self.judge.prompt_hashes()
