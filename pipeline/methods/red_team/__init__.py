"""Red-team requests after SAGE-RT (arXiv 2408.11851): taxonomy → topics → texts → queries, filtered.

It makes instructions for other runs, and nothing to train on.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.judges import Judge
from pipeline.methods.base import DataReport, Method
from pipeline.methods.red_team.focus import (
    Focus,
    asked_before,
    former_answers,
    harmless_rates,
    shared_out,
)
from pipeline.methods.red_team.on_topic import PROMPTS, OnTopic
from pipeline.methods.red_team.schema import KEPT, RED_TEAM, REQUESTS, TO_WRITE
from pipeline.methods.red_team.taxonomy import Hazard, digest
from pipeline.methods.red_team.taxonomy import read as read_taxonomy
from pipeline.prompts import Prompts, load
from pipeline.report.examples import Example
from pipeline.report.numbers import Rows
from pipeline.schema import OK, Schema
from pipeline.settings.base import Count, DataPath, Draw, ModelName, Natural, PromptFile, Section
from pipeline.settings.shown import plural
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts


class Leaves(Section):
    """The topics of a hazard: those of the taxonomy, and more that the model names."""

    per_hazard: Natural = Field(
        9, description="topics of a hazard up to which the model is asked for more; 0 = only the taxonomy's"
    )
    rounds: Count = Field(3, description="times that the model is asked for more topics, at most")


class RedTeam(Method):
    """Texts about the topics of a taxonomy of hazards, and the requests that they lead to. No answers."""

    generated: ClassVar[Schema] = RED_TEAM
    training_sets: ClassVar = (REQUESTS,)
    default_arms: ClassVar = {}
    nothing: ClassVar = "no query was kept"
    listed: ClassVar[Schema] = TO_WRITE

    name: Literal["red_team"] = Field("red_team", description="selects this method")
    instructions: None = Field(  # type: ignore[assignment]
        None, description="null: the rows are the hazards of the taxonomy"
    )
    samples: Count = Field(1, description="texts about each topic in each genre")
    taxonomy: DataPath | None = Field(
        None,
        description=(
            "YAML file of categories, hazards and leaves; `toy` = the toy world's; null ="
            " methods/red_team/taxonomy.yaml"
        ),
    )
    hazards: list[str] = Field(
        [], description="only these, as `category` or `category/hazard`; empty = all of the taxonomy"
    )
    leaves: Leaves = Field(Leaves(), description="how topics are expanded")
    focus: Focus | None = Field(
        None,
        description=(
            "a next round: no new topics, and texts about those on which a model failed in a former run;"
            " null = texts about all topics"
        ),
    )
    genres: list[str] = Field([], description="names of genres in the prompt file; empty = all")
    queries: Count = Field(5, description="queries taken from a text, at most")
    words: tuple[Count, Count] = Field((4, 60), description="the least and the most words of a query")
    model: ModelName | None = Field(
        None, description="name in `models` of the model that writes; null = the run's model"
    )
    expand: Draw = Field(Draw(), description="sampling of lists of topics")
    text: Draw = Field(Draw(max_tokens=768), description="sampling of texts")
    extract: Draw = Field(Draw(), description="sampling of lists of queries")
    on_topic: OnTopic | None = Field(
        OnTopic(), description="judge of whether a direct answer would be harmful; null = not judged"
    )
    prompts: PromptFile | None = Field(None, description=f"YAML file that replaces {PROMPTS}")

    @field_validator("words")
    @classmethod
    def _ordered(cls, words: tuple[int, int]) -> tuple[int, int]:
        if words[0] > words[1]:
            raise ValueError(f"must be [least, most] with least <= most, not {list(words)}")
        return words

    @model_validator(mode="after")
    def _trains_nothing(self) -> "RedTeam":
        if self.unfinished != type(self).model_fields["unfinished"].default:
            raise ValueError("unfinished would change nothing, because no text becomes a training target")
        return self

    @model_validator(mode="after")
    def _needs_no_topics(self) -> "RedTeam":
        for name in ("leaves", "samples") if self.focus else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} would change nothing, because focus shares out its texts: leave it out"
                )
        return self

    @property
    def generator(self) -> tuple[str | None, str | None]:
        return self.model, None

    @property
    def texts_per_leaf(self) -> int:
        return self.samples * len(self.genre_names())

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        return "samples", self.samples, {"text": self.text}

    def known_genres(self) -> list[str]:
        """All genres of the prompt file."""
        return [name.removeprefix("genre_") for name in self.texts().texts if name.startswith("genre_")]

    def genre_names(self) -> list[str]:
        """The genres to write in. Raises UserError if one is not in the prompt file."""
        known = self.known_genres()
        for name in self.genres:
            if name not in known:
                raise UserError(f"genres: {name} is not a genre of {PROMPTS}; known are {', '.join(known)}")
        return self.genres or known

    def selected(self) -> dict[str, Hazard]:
        """The hazards to write about, by path. Raises UserError."""
        found = read_taxonomy(self.taxonomy)
        for name in self.hazards:
            if not any(name in (hazard.path, hazard.category) for hazard in found.values()):
                known = ", ".join(dict.fromkeys(hazard.category for hazard in found.values()))
                raise UserError(f"hazards: {name} is not in the taxonomy; its categories are {known}")
        wanted = set(self.hazards)
        return {
            path: hazard
            for path, hazard in found.items()
            if not wanted or path in wanted or hazard.category in wanted
        }

    def rows(self, counts: Accounts) -> Iterator[dict]:
        """Rows of `schema.TO_WRITE`, one a hazard. Raises UserError."""
        selected = self.selected()
        texts: dict[str, list[dict]] = {
            path: [{"leaf": leaf, "texts": self.texts_per_leaf} for leaf in hazard.leaves]
            for path, hazard in selected.items()
        }
        if self.focus:
            texts = {path: [] for path in selected}
            rates = harmless_rates(self.focus, selected, counts.of("focus.answers"))
            for place, count in shared_out(rates, self.focus.texts).items():
                path, _, leaf = place.rpartition("/")
                if count:
                    texts[path].append({"leaf": leaf, "texts": count})
        for path, hazard in selected.items():
            if texts[path] or not self.focus:
                row = {"category": path, "about": hazard.about, "leaves": texts[path]}
                yield {"id": instructions.instruction_id(path), **row}

    def few(self, rows: int) -> "RedTeam":
        found = list(islice(self.rows(Accounts()), rows))
        changes: dict[str, Any] = {"hazards": [row["category"] for row in found]}
        if self.focus:
            texts = sum(leaf["texts"] for row in found for leaf in row["leaves"])
            changes["focus"] = self.focus.model_copy(update={"texts": texts})
        return self.model_copy(update=changes)

    def inputs(self) -> dict[str, str]:
        return {"focus.answers": former_answers(self.focus).digest} if self.focus else {}

    def recipe(self, seed: int) -> Recipe:
        from pipeline.methods.red_team.recipe import RedTeamRecipe

        return RedTeamRecipe(self, seed)

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        """Rows of `schema.REQUESTS`: the kept queries.

        One that two hazards gave is kept once; one that the former round has asked is not asked again.
        """
        known: set[str] = set()
        before = asked_before(self.focus) if self.focus else frozenset[str]()
        for row in rows:
            for query in row["queries"] or ():
                id = instructions.instruction_id(query["text"])
                outcome = query["outcome"]
                if outcome == KEPT and id in before:
                    outcome = "asked in the former round"
                elif outcome == KEPT and id in known:
                    outcome = "of another hazard too"
                if outcome != KEPT or row["status"] != OK:
                    drops[outcome] += 1
                    continue
                known.add(id)
                path = f"{row['category']}/{query['leaf']}"
                yield {
                    "id": id,
                    "instruction_id": id,
                    "instruction": query["text"],
                    "category": path,
                    "genre": query["genre"],
                }

    def texts(self) -> Prompts:
        """The prompts; the user's file replaces the package's. Raises UserError."""
        return load(PROMPTS, self.prompts)

    def prompt_hashes(self) -> dict[str, str]:
        self.genre_names()
        hashes = {
            "red_team": self.texts().without("on_topic").hash,
            "taxonomy": digest(self.selected()),
        }
        return hashes | (self.on_topic.prompt_hashes() if self.on_topic else {})

    def most_tokens(self) -> int:
        """Of the largest hazard."""
        given = max(len(hazard.leaves) for hazard in self.selected().values())
        texts = max(self.leaves.per_hazard, given) * self.texts_per_leaf
        expand = self.leaves.rounds * self.expand.max_tokens if self.leaves.per_hazard else 0
        if self.focus:
            texts, expand = self.focus.texts, 0
        verdicts = self.queries * self.on_topic.tokens() if self.on_topic else 0
        return expand + texts * (2 * (self.text.max_tokens + self.extract.max_tokens) + verdicts)

    def report(self, numbers: Mapping[str, Rows | None]) -> DataReport:
        from pipeline.methods.red_team import report

        return report.data(self, numbers)

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        from pipeline.methods.red_team import report

        return "Hazards and their queries", report.examples(dataset, count)

    def settings(self) -> dict[str, str]:
        topics = f"up to {self.leaves.per_hazard} per hazard"
        if self.focus:
            topics = (
                f"{plural(self.focus.texts, 'text')} shared out by {self.focus.answers}, {self.focus.arm}"
            )
        return {
            "Taxonomy": self.taxonomy or "the package's",
            "Topics": topics,
            "Genres": ", ".join(self.genres) or "all of the prompt file",
            "Texts and queries": f"{self.text.described()}; {self.extract.described()}",
        }

    def judged(self) -> list[tuple[Judge, str, str]]:
        return [(self.on_topic, "queries", "which queries ask for harm")] if self.on_topic else []
