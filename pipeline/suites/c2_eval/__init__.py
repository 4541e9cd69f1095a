"""C²-Eval (Xu et al., EMNLP 2024, arXiv 2407.16637): how often a model turns away from a harmful
beginning."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import CorrectionJudge, Judge, Phrases
from pipeline.methods.course_correction import PROMPTS
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome, share_of
from pipeline.report.sections import Section
from pipeline.schema import OK, Schema
from pipeline.settings.base import ArmName, Count, Draw, Fraction, Natural, PromptFile, Source
from pipeline.settings.shown import plural
from pipeline.sources.counts import Accounts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.base import MORE_JUDGES, Exchanged, Judgements, Suite
from pipeline.suites.c2_eval.schema import CONTINUATIONS, CORRECTION_VERDICTS, path_id


class PathDraw(Draw):
    """As a `Draw`, with the paper's sampling: it does not follow the model's own, so that models compare."""

    max_tokens: Count = Field(32, description="maximum of new tokens per continuation, the paper's m")
    temperature: float | None = Field(
        0.8, ge=0, le=2, description="the paper's; 0 = greedy; null = the model's own"
    )
    top_p: float | None = Field(0.7, gt=0, le=1, description="the paper's; null = the model's own")
    top_k: Natural | None = Field(0, description="0 = all, as in the paper; null = the model's own")
    min_p: Fraction | None = Field(0.0, description="0 = any, as in the paper; null = the model's own")
    repetition_penalty: float | None = Field(
        1.0, gt=0, description="1 = none, as in the paper; null = the model's own"
    )


class C2Eval(Suite):
    """How often a model turns away after a harmful prefill."""

    data_schema: ClassVar[Schema] = CONTINUATIONS
    verdicts: ClassVar[Schema] = CORRECTION_VERDICTS
    title: ClassVar = "course correction"
    method: ClassVar = "course_correction"
    NEWER: ClassVar = Suite.NEWER | {"every_stage", "short", "first_ranks"}
    LATER: ClassVar = frozenset({"more_judges"})
    starting: ClassVar = """
entries: {path: PATH}  # requests with unsafe responses
judge: {kind: phrases}  # fast and crude; yes_no asks a model
"""

    entries: Source = Field(description="harmful requests with unsafe responses")
    unit: Literal["words", "tokens"] = Field("words", description="unit of the prefill's length")
    lengths: list[Count] = Field(
        [10, 20, 30, 40, 50, 60, 70, 80],
        min_length=1,
        description="k: units of the unsafe response prefilled",
    )
    short: Literal["drop", "per_k"] = Field(
        "drop",
        description=(
            "entries whose unsafe responses are no longer than the longest k: drop = left out; per_k ="
            " continued at the k that they are longer than, so that Corr@k of different k have different"
            " entries"
        ),
    )
    paths: Count = Field(20, description="b: continuations sampled per entry and k")
    first_ranks: list[Annotated[int, Field(ge=1, le=20)]] = Field(
        [],
        description=(
            "ranks of first tokens, such as [1, 5, 20]: one path for each, which begins with the token of"
            " that rank among the likeliest, instead of `paths` sampled ones"
        ),
    )
    draw: PathDraw = Field(PathDraw(), description="how continuations are sampled")
    judge: CorrectionJudge = Field(Phrases(), description="judge of whether a continuation corrects course")
    more_judges: dict[ArmName, CorrectionJudge] = Field({}, description=MORE_JUDGES)
    authors_rules: bool = Field(
        False,
        description=(
            "as the authors' scripts: words counted with the opener, an opener drawn per path, "
            "a response shorter than k used whole, the first unsafe response of any length, "
            "an unreadable verdict taken as a no"
        ),
    )
    every_stage: bool = Field(
        False,
        description=(
            "also evaluate the adapters after every stage of arms that train in stages, for the course of"
            " Corr@k over the stages (`train.curriculum: staged`)"
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
        if sorted(set(self.first_ranks)) != self.first_ranks:
            raise ValueError(f"first_ranks must rise and not repeat, not {self.first_ranks}")
        if self.first_ranks and ("paths" in self.model_fields_set or self.authors_rules):
            other = "authors_rules" if self.authors_rules else "paths"
            raise ValueError(f"first_ranks give one path for each rank: leave {other} out")
        if self.authors_rules and self.short != "drop":
            raise ValueError("authors_rules use a short response whole: leave short out")
        return self

    @property
    def needs_unsafe(self) -> list[str]:
        return ["entries"]

    @property
    def continues_turns(self) -> bool:
        return True

    @property
    def forces_first_token(self) -> str:
        return f"first_ranks = {self.first_ranks}" if self.first_ranks else ""

    @property
    def paths_of_a_row(self) -> int:
        """Continuations of an entry at one k."""
        return len(self.first_ranks) or self.paths

    @property
    def longest_turn(self) -> tuple[str, int, Draw]:
        return "lengths", self.lengths[-1], self.draw

    @property
    def reads_tokenizer(self) -> bool:
        return self.unit == "tokens"

    @property
    def asks_every_stage(self) -> bool:
        return self.every_stage

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "paths", 1 if self.first_ranks else self.paths, {"draw": self.draw}

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        from pipeline.suites.c2_eval import recipe

        entries = compared(self.entries, counts.of("entries"), seen, exclude=self.exclude_seen)
        return recipe.work(self, arms, seed, entries, tokenizer() if self.reads_tokenizer else None)

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        from pipeline.suites.c2_eval.recipe import ContinuationRecipe

        return ContinuationRecipe(self, adapters)

    def most_tokens(self) -> tuple[str, int]:
        verdict, most = self.judge.tokens(), self.draw.max_tokens
        tokens = f"({most} + {verdict})" if verdict else str(most)
        told = f"{len(self.lengths)} k × {plural(self.paths_of_a_row, 'path')} × {tokens} tokens"
        return told, len(self.lengths) * self.paths_of_a_row * (most + verdict)

    @property
    def counted(self) -> Source:
        return self.entries

    def size(self) -> str:
        return f"{plural(len(self.lengths), 'prefill')} × {plural(self.paths_of_a_row, 'path')}"

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.c2_eval import report

        return report.headlines(numbers, arms, seed, self.judge)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.c2_eval import report

        return report.sections(self, numbers, arms, seed, judgements)

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        from pipeline.suites.c2_eval import report

        return "Continuations of every arm", report.examples(dataset, arms, count)

    @property
    def outcomes(self) -> list[Outcome]:
        return [Outcome("corr_mean", "corrected", share_of, judge=self.judge)]

    def settings(self) -> dict[str, str]:
        rules = "; the authors' rules" if self.authors_rules else ""
        rules += "; short entries at the k that fit" if self.short == "per_k" else ""
        return {
            "Course correction on": self.entries.path,
            "Prefills": f"{', '.join(map(str, self.lengths))} {self.unit}{rules}",
            "Paths": f"{self._paths_told} per entry and k; {self.draw.described()}",
        }

    @property
    def judges_later(self) -> Mapping[str, Judge]:
        return self.more_judges

    def exchanges(self, row: dict) -> Iterator[Exchanged]:
        """One per path, which goes on in the prefilled turn."""
        for i, path in enumerate(row["paths"] or ()):
            begun = row["prefills"][min(i, len(row["prefills"]) - 1)]
            asked = [
                {"role": "user", "content": row["instruction"]},
                {"role": "assistant", "content": begun},
            ]
            verdict = row["corrected"][i]
            scores = {f"corr_at_{row['k']}": None if verdict is None else float(verdict)}
            cut = row["finish_reasons"][i] == "length"
            yield Exchanged(path_id(row["id"], i), asked, path, scores, cut)

    def stored(self, answers: Iterable[dict]) -> Iterator[dict]:
        """One row per path. One that nobody knows the end of, cut off in a thought, is left out."""
        for row in answers:
            if row["status"] != OK:
                continue
            prefills, paths = row["prefills"], row["paths"]
            for i, (path, corrected) in enumerate(zip(paths, row["corrected"], strict=True)):
                if path.strip() or corrected is not None:
                    yield {
                        "answer_id": path_id(row["id"], i),
                        "instruction": row["instruction"],
                        "response": path,
                        "prefill": prefills[min(i, len(prefills) - 1)],
                    }

    def verdict_recipe(self, judge: Any) -> Recipe:
        from pipeline.suites.c2_eval.recipe import CorrectionVerdicts

        return CorrectionVerdicts(judge, self)

    @property
    def _paths_told(self) -> str:
        ranks = ", ".join(map(str, self.first_ranks))
        return f"one for each rank of the first token ({ranks})" if ranks else str(self.paths)

    def judged(self) -> list[tuple[Judge, str, str]]:
        more = [(judge, "course correction", name) for name, judge in self.more_judges.items()]
        return [(self.judge, "course correction", "course correction of continuations"), *more]

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        return {"course_correction": self.texts().hash, **self.judge.prompt_hashes()}
