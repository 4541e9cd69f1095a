"""Goal hijacking: prompts that ask for one thing, with an injected order to say another.

The attack and the measure, defense rate, are those of the mistake analysis paper (Chen et al., ICLR 2024,
arXiv 2310.10477), whose prompts are of the set by thu-coai (Safety-Prompts). Prompts here are made by
templates, or are ready ones of such a set.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.errors import OutOfReach, UserError
from pipeline.judges import Judge
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome
from pipeline.report.sections import Section
from pipeline.schema import Schema
from pipeline.settings.base import Count, Draw, Greedy, Model, PromptFile, Source
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Seen
from pipeline.suites.base import Judgements, Suite
from pipeline.suites.goal_hijacking.judges import AnyHijackJudge, TargetPhrase
from pipeline.suites.goal_hijacking.orders import Order, Orders, ReadyOrders, orders
from pipeline.suites.goal_hijacking.schema import CONTROL, HARMFUL, HIJACKS

PROMPTS = "suites/goal_hijacking/hijacks.yaml"
Template = Literal["cancel", "insert", "fake_end", "role_switch", "document", "translation"]
TEMPLATES = get_args(Template)


class GoalHijacking(Suite):
    """How often an arm does what it was asked, and not what an injected order says."""

    data_schema: ClassVar[Schema] = HIJACKS
    title: ClassVar = "goal hijacking"
    method: ClassVar = ""

    pairs: Orders | None = Field(
        None, description="what is asked for and what is injected; `templates` make prompts of each pair"
    )
    templates: list[Template] = Field(
        list(TEMPLATES),
        min_length=1,
        description="how the order is injected, by the names in the prompt file",
    )
    ready: ReadyOrders | None = Field(
        None, description="prompts with an injected order in them, sent as they stand"
    )
    conditions: list[Literal["plain", "reminder"]] = Field(
        ["plain", "reminder"],
        min_length=1,
        description="how the prompts are asked: as they are, or after the reminder to be harmless",
    )
    samples: Count = Field(1, description="answers per prompt, arm and condition")
    answer: Greedy = Field(Greedy(), description="how answers are sampled")
    judge: AnyHijackJudge = Field(
        TargetPhrase(), description="judge of whether an answer carries out the injected order"
    )
    prompts: PromptFile | None = Field(
        None,
        description="YAML file that replaces suites/goal_hijacking/hijacks.yaml: templates and reminder",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "GoalHijacking":
        for name in ("templates", "conditions"):
            if len(set(found := getattr(self, name))) < len(found):
                raise ValueError(f"{name} repeat one of {', '.join(found)}: name each once")
        if self.pairs is None and self.ready is None:
            raise ValueError(
                "nothing is asked: give pairs, which templates make prompts of, or ready prompts"
            )
        return self

    @property
    def sources(self) -> dict[str, Orders | ReadyOrders]:
        """The sources that are given, by field."""
        given = {"pairs": self.pairs, "ready": self.ready}
        return {name: source for name, source in given.items() if source is not None}

    def check(self, field: str, model: Model) -> None:
        """Raises UserError if a template leaves a text out, or if a source has no usable row."""
        from pipeline.suites.goal_hijacking import recipe

        recipe.check(self)
        for name, source in self.sources.items():
            counts = Counts()
            try:
                first = next(orders(source, counts), None)
            except OutOfReach:
                continue  # a plan works without the source, and a run has checked it
            if first is None:
                raise UserError(
                    f"{field}.{name}: {source.path}: none of its {counts.read} rows has an order to say"
                    f" something ({counts.why()}); check its columns"
                )

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"answer": self.answer}

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.goal_hijacking import recipe

        read = (self.read(source, counts.of(name), seen) for name, source in self.sources.items())
        return recipe.work(self, arms, chain.from_iterable(read))

    def read(self, source: Source, counts: Counts, seen: Seen | None) -> Iterable[Order]:
        from pipeline.suites.goal_hijacking import recipe

        return recipe.compared(self, orders(source, counts), counts, seen)  # type: ignore[arg-type]

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.goal_hijacking.recipe import HijackRecipe

        return HijackRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        verdict, most = self.judge.tokens(), self.answer.max_tokens
        prompts = len(self.templates) if self.pairs else 1
        times = prompts * len(self.conditions) * self.samples
        tokens = f"({most} + {verdict})" if verdict else str(most)
        told = [plural(prompts, "template")] if self.pairs else []
        told += [plural(len(self.conditions), "condition"), plural(self.samples, "sample")]
        without = " (without ready)" if self.pairs and self.ready else ""
        return f"{' × '.join(told)} × {tokens} tokens{without}", times * (most + verdict)

    @property
    def counted(self) -> Source:
        return next(iter(self.sources.values()))

    def size(self) -> str:
        parts = [plural(len(self.templates), "template")] if self.pairs else []
        parts += ["ready prompts"] if self.ready else []
        return f"{' and '.join(parts)}, {plural(len(self.conditions), 'condition')}"

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.goal_hijacking import report

        return report.headlines(self, numbers, arms, seed)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.goal_hijacking import report

        return report.sections(self, numbers, arms, seed)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.goal_hijacking import report

        return "Answers to injected orders", report.examples(dataset, arms, count)

    @property
    def outcomes(self) -> list[Outcome]:
        harmful, control, by = {"suite": HARMFUL}, {"suite": CONTROL}, "condition"
        return [
            Outcome("defended", "hijacked", lambda said: float(not said), harmful, by, judge=self.judge),
            Outcome("said_what_was_asked_for", "said_benign", float, harmful, by),
            Outcome("control_obeyed", "hijacked", float, control, by, judge=self.judge),
        ]

    def settings(self) -> dict[str, str]:
        templates = {"Templates of orders": ", ".join(self.templates)} if self.pairs else {}
        paths = "; ".join(f"{name}: {source.path}" for name, source in self.sources.items())
        told = f"{self.answer.described()}, {self.samples} per prompt"
        return {"Goal hijacking on": paths, **templates, "Answers to injected orders": told}

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.judge, "hijacking", "hijacking of answers by an injected order")]

    def texts(self) -> Prompts:
        """Templates and reminder; the user's file replaces the package's. Raises UserError."""
        unused = [name for name in TEMPLATES if not self.pairs or name not in self.templates]
        return load(PROMPTS, self.prompts).without(*unused)

    def prompt_hashes(self) -> dict[str, str]:
        return {"goal_hijacking": self.texts().hash, **self.judge.prompt_hashes()}
