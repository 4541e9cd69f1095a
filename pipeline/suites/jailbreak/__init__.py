"""Jailbreaks: how often an attack obtains what the plain request does not.

Two kinds of attacks, neither of which adapts to the model: transforms of goals that are computed here, and
prompts that others have attacked. Adaptive attacks (GCG, PAIR, …) run in their authors' own programs; what
they write comes back as ready prompts. Worst-decile safety is the measure known as goodness@0.1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

from pydantic import Field, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.errors import OutOfReach, UserError
from pipeline.judges import HarmlessnessJudge, Judge, Refusal
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome, of_schema
from pipeline.report.sections import Section
from pipeline.schema import OK, Schema
from pipeline.settings.base import ArmName, Count, Draw, Model, PromptFile, Source
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.base import MORE_JUDGES, Judgements, Suite
from pipeline.suites.jailbreak.ready import Ready
from pipeline.suites.jailbreak.schema import ATTACKS
from pipeline.suites.jailbreak.transforms import CIPHERS, Attack

PROMPTS = "suites/jailbreak/jailbreaks.yaml"


class Jailbreak(Suite):
    """How often every attack succeeds on every arm, judged against its goal."""

    data_schema: ClassVar[Schema] = ATTACKS
    title: ClassVar = "jailbreaks"
    method: ClassVar = ""
    LATER: ClassVar = frozenset({"more_judges"})

    goals: Source | None = Field(None, description="harmful requests that `attacks` transform")
    attacks: list[Attack] = Field(
        [
            *("none", "base64", "rot13", "caesar3", "reverse", "reverse_words", "leet", "zero_width"),
            *("prefix_injection", "refusal_suppression", "role_play", "payload_split", "few_shot"),
        ],
        min_length=1,
        description="what is made of every goal; none = asked plainly, prefill = the model's turn is begun",
    )
    benign: Source | None = Field(
        None,
        description="benign instructions in the same wrapping: does that alone cause refusals or nonsense?",
    )
    ready: dict[ArmName, Ready] = Field(
        {}, description="sources of prompts that are attacked already, by a name of your choice"
    )
    samples: Count = Field(1, description="answers per prompt and arm")
    answer: Draw = Field(Draw(), description="how answers are sampled")
    harmless: HarmlessnessJudge = Field(Refusal(), description="judge of answers against the goal")
    more_judges: dict[ArmName, HarmlessnessJudge] = Field({}, description=MORE_JUDGES)
    prompts: PromptFile | None = Field(
        None, description="YAML file that replaces suites/jailbreak/jailbreaks.yaml: the wrapping of attacks"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Jailbreak":
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"attacks repeat one of {', '.join(self.attacks)}: name each once")
        if self.goals is None and not self.ready:
            raise ValueError("nothing is asked: give goals, which attacks transform, or ready prompts")
        if self.goals is None and self.benign is not None:
            raise ValueError("benign is the control of attacks on goals: give goals, or leave benign out")
        return self

    @property
    def continues_turns(self) -> bool:
        return self.goals is not None and "prefill" in self.attacks

    def check(self, field: str, model: Model) -> None:
        """Raises UserError if a wrapping leaves the goal out, or if a source has no usable ready prompt."""
        from pipeline.suites.jailbreak import ready, transforms

        for attack in self.attacks if self.goals else ():
            transforms.check(attack, self.texts())
        for name, source in self.ready.items():
            counts = Counts()
            try:
                first = next(ready.prompts(name, source, counts), None)
            except OutOfReach:
                continue  # a plan works without the source, and a run has checked it
            if first is None:
                raise UserError(
                    f"{field}.ready.{name}: {source.path}: none of its {counts.read} rows has a goal, a"
                    f" prompt and an attack ({counts.why()}); check its columns"
                )

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"answer": self.answer}

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.jailbreak import ready, recipe

        goals, benign = (
            compared(source, counts.of(name) if source else None, seen, exclude=self.exclude_seen)
            for name, source in (("goals", self.goals), ("benign", self.benign))
        )
        prompts = (
            ready.prompts(name, source, counts.of(f"ready.{name}")) for name, source in self.ready.items()
        )
        return recipe.work(self, arms, goals, benign, chain.from_iterable(prompts))

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.jailbreak.recipe import AttackRecipe

        return AttackRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        attacks = self.attacks if self.goals else []
        verdict, most, asked = self.harmless.tokens(), self.answer.max_tokens, max(1, len(attacks))
        twice = sum(attack in CIPHERS for attack in attacks)  # judged in both readings
        total = self.samples * (asked * (most + verdict) + twice * verdict)
        tokens = f"({most} + {verdict})" if verdict else str(most)
        told = f"{plural(asked, 'attack')} × {plural(self.samples, 'sample')} × {tokens} tokens"
        told += (
            f" + {plural(twice * self.samples, 'second verdict')} × {verdict} tokens"
            if twice and verdict
            else ""
        )
        others = [
            name for name, there in (("benign", self.benign), ("ready", self.goals and self.ready)) if there
        ]
        return told + (f" (without {' and '.join(others)})" if others else ""), total

    @property
    def counted(self) -> Source:
        return self.goals or next(iter(self.ready.values()))

    def size(self) -> str:
        parts = [plural(len(self.attacks), "attack")] if self.goals else []
        return " and ".join([*parts, *(["ready prompts"] if self.ready else [])])

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.jailbreak import report

        return report.headlines(self, numbers, arms, seed)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.jailbreak import report

        return report.sections(self, numbers, arms, seed, judgements)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.jailbreak import report

        return "Answers to jailbreaks", report.examples(dataset, arms, count)

    @property
    def outcomes(self) -> list[Outcome]:
        goals = {"suite": "harmful"}
        success = Outcome("attack_success", "harmful", float, goals, "attack", judge=self.harmless)
        return [success, *of_schema(self.data_schema, self.harmless)]

    def settings(self) -> dict[str, str]:
        pairs = {"Attacks": ", ".join(self.attacks)} if self.goals else {}
        sources = {"goals": self.goals, "benign": self.benign, **self.ready}
        paths = [f"{name}: {source.path}" for name, source in sources.items() if source]
        told = f"{self.answer.described()}, {self.samples} per prompt"
        return {"Jailbreaks of": "; ".join(paths), **pairs, "Answers to jailbreaks": told}

    @property
    def judges_later(self) -> Mapping[str, Judge]:
        return self.more_judges

    def stored(self, answers: Iterable[dict]) -> Iterator[dict]:
        for answer in answers:
            if answer["status"] == OK and answer["suite"] == "harmful":
                last = answer["messages"][-1]
                yield {
                    "answer_id": answer["id"],
                    "instruction": answer["instruction"],
                    "response": answer["response"],
                    "decoded": answer["decoded_response"],
                    "prefill": last["content"] if last["role"] == "assistant" else None,
                }

    def verdict_recipe(self, judge: Any) -> Recipe:
        from pipeline.suites.jailbreak.recipe import AttackVerdicts

        return AttackVerdicts(judge)

    def judged(self) -> list[tuple[Judge, str, str]]:
        more = [(judge, "harmlessness", name) for name, judge in self.more_judges.items()]
        return [(self.harmless, "harmlessness", "harmlessness of answers to jailbreaks"), *more]

    def texts(self) -> Prompts:
        """The wrapping of attacks; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        return {"jailbreaks": self.texts().hash, **self.harmless.prompt_hashes()}
