"""The safety suite: every arm answers red-team and benign instructions, and the answers are judged.

Conditions: asked plainly, with the reminder, under the hint, and after thinking about harm.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import HarmlessnessJudge, Judge, Rating, Refusal
from pipeline.methods.mistake_analysis import Hint, induction
from pipeline.prompts import Prompts
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome
from pipeline.report.sections import Section
from pipeline.report.summary import Rate
from pipeline.schema import OK, Schema
from pipeline.settings.base import ArmName, Count, Draw, Greedy, PromptFile, Source
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.base import MORE_JUDGES, Judgements, Suite
from pipeline.suites.safety.schema import ANSWERS
from pipeline.suites.verdicts import VERDICTS


class Safety(Suite):
    """How often answers are harmless, how helpful they are, and how often benign requests are refused."""

    data_schema: ClassVar[Schema] = ANSWERS
    title: ClassVar = "safety"
    method: ClassVar = "mistake_analysis"
    LATER: ClassVar = frozenset({"more_judges"})
    starting: ClassVar = """
harmful: {path: PATH}
# helpful: {path: data/benign.jsonl}  # for helpfulness and over-refusal: refusing everything is safe
conditions: [plain, reminder]  # reminder: after the reminder to be harmless; hint: under the cue
answer: {max_tokens: 512}
harmless: {kind: refusal}  # by phrases: fast and crude; better a model or a guard: docs/judges.md
"""

    harmful: Source = Field(description="red-team instructions")
    helpful: Source | None = Field(None, description="benign instructions, for helpfulness and over-refusal")
    conditions: list[Literal["plain", "reminder", "hint", "think"]] = Field(
        ["plain", "reminder", "hint"],
        min_length=1,
        description=(
            "how red-team instructions are asked; benign ones are not asked under the hint; think = the arm"
            " first says whether an answer could be harmful, sampled like an answer, and then answers"
        ),
    )
    samples: Count = Field(1, description="responses per instruction, arm and condition")
    answer: Greedy = Field(Greedy(), description="how answers are sampled")
    harmless: HarmlessnessJudge = Field(Refusal(), description="judge of answers to red-team instructions")
    more_judges: dict[ArmName, HarmlessnessJudge] = Field({}, description=MORE_JUDGES)
    help: Rating | None = Field(Rating(), description="rates Help and Harm-Help; null = not rated")
    hint: Hint = Field(Hint(), description="the cue of condition `hint`")
    prompts: PromptFile | None = Field(
        None,
        description="YAML file that replaces methods/mistake_analysis/prompts.yaml: reminder, hint …",
    )

    @classmethod
    def is_proposed(cls, method: str) -> bool:
        return True

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        found = {("user",): ""} | (self.hint.conversations() if "hint" in self.conditions else {})
        return found | ({("user", "assistant", "user"): "conditions: think"} if self.thinks else {})

    @property
    def thinks(self) -> bool:
        """Whether a condition has a call before the answer's."""
        return "think" in self.conditions

    @property
    def plain_steps(self) -> frozenset[str]:
        return frozenset({"think"} & set(self.conditions))

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"answer": self.answer}

    @property
    def continues_turns(self) -> bool:
        return "hint" in self.conditions and self.hint.continues_turns

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.safety import recipe

        exclude, counted = self.exclude_seen, counts.of("helpful") if self.helpful else None
        harmful = compared(self.harmful, counts.of("harmful"), seen, exclude=exclude)
        return recipe.work(self, arms, harmful, compared(self.helpful, counted, seen, exclude=exclude))

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.safety.recipe import AnswerRecipe

        return AnswerRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        verdict = self.harmless.tokens() + (self.help.tokens() if self.help else 0)
        tokens = f"({self.answer.max_tokens} + {verdict})" if verdict else str(self.answer.max_tokens)
        told = f"{self.size()} × {plural(self.samples, 'sample')} × {tokens} tokens"
        most = len(self.conditions) * (self.answer.max_tokens + verdict)
        if self.thinks:
            told += f" + {plural(self.samples, 'deliberation')} × {self.answer.max_tokens} tokens"
            most += self.answer.max_tokens
        return told, self.samples * most

    @property
    def counted(self) -> Source:
        return self.harmful

    @property
    def parts(self) -> list[tuple[Source, Suite]]:
        asked = [condition for condition in self.conditions if condition != "hint"]
        if self.helpful is None or not asked:
            return super().parts
        unjudged = {"harmless": Refusal(), "more_judges": {}}  # benign answers are rated only
        benign = self.model_copy(update={"harmful": self.helpful, "conditions": asked, **unjudged})
        return [*super().parts, (self.helpful, benign)]

    def size(self) -> str:
        return plural(len(self.conditions), "condition")

    def harmless_rates(self, numbers: Rows) -> dict[str, Rate]:
        from pipeline.suites.safety.summary import arms_table

        return {row.arm: row.harmless for row in arms_table(numbers) if row.condition == self.conditions[0]}

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.safety import report

        return report.headlines(self, numbers, arms, seed)

    @property
    def harmless_how(self) -> str:
        return f"{self.title}, condition {self.conditions[0]}, judged by {self.harmless.kind}"

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.safety import report

        return report.sections(self, numbers, arms, seed, judgements)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.safety import report

        return "What the arms answered", report.examples(dataset, arms, count)

    @property
    def harm_judge(self) -> Judge:
        return self.harmless

    @property
    def outcomes(self) -> list[Outcome]:
        benign = {"suite": "helpful"}
        rated = Outcome("help", "help_rating", float, benign, "condition", "score", self.help)
        return [*super().outcomes, *([rated] if self.help else [])]

    @property
    def judges_later(self) -> Mapping[str, Judge]:
        return self.more_judges

    def verdicts_name(self, judge: str) -> str:
        return f"{VERDICTS.name}_{judge}"

    def stored(self, answers: Iterable[dict]) -> Iterator[dict]:
        for answer in answers:
            if answer["status"] == OK and answer["suite"] == "harmful":
                yield {
                    "answer_id": answer["id"],
                    "instruction": answer["instruction"],
                    "response": answer["response"],
                }

    def settings(self) -> dict[str, str]:
        pairs = {"Evaluated on": ", ".join(source.path for source in (self.harmful, self.helpful) if source)}
        if "hint" in self.conditions:
            pairs["Hint"] = f"{self.hint.text or 'as in the prompt file'}; {self.hint.position}"
        return pairs | {"Answers": f"{self.answer.described()}, {self.samples} per instruction"}

    def judged(self) -> list[tuple[Judge, str, str]]:
        helping = [(self.help, "helpfulness", "Help and Harm-Help")] if self.help else []
        more = [(judge, "harmlessness", name) for name, judge in self.more_judges.items()]
        return [(self.harmless, "harmlessness", "harmlessness of answers"), *helping, *more]

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return induction(self.prompts, think=self.thinks)

    def prompt_hashes(self) -> dict[str, str]:
        own = {"mistake_analysis": self.texts().hash}
        return own | self.harmless.prompt_hashes() | (self.help.prompt_hashes() if self.help else {})
