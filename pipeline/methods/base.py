"""What every method is: from instructions to a data set, and from that to rows to train on."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import Judge
from pipeline.report.examples import Example
from pipeline.report.tables import Table
from pipeline.schema import Schema
from pipeline.settings.base import Count, Inference, Model, Section, Source


@dataclass
class DataReport:
    """A method's part of the section on data. failures: rows that were dropped or failed, by reason."""

    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


class Method(Section):
    """A method is its configuration section.

    generated:    the data set that `generate` writes, one row per instruction and sample
    training_sets: the sets of rows that `mix` can make of it; the first is what its default arms are trained on
    default_arms: the arms that are trained if the configuration names none
    nothing:      why a training set can be empty, for the message that says so
    mixing:       the fields that only `mix` reads
    example_kinds: by training set, the kinds of examples that it can hold; none if its rows have no kinds
    """

    generated: ClassVar[Schema]
    training_sets: ClassVar[tuple[Schema, ...]]
    default_arms: ClassVar[dict[str, dict]]
    nothing: ClassVar[str]
    mixing: ClassVar[frozenset[str]] = frozenset()
    example_kinds: ClassVar[dict[str, tuple[str, ...]]] = {}

    name: str = Field(description="selects the method")
    instructions: Source = Field(description="what `generate` reads")
    samples: Count = Field(1, description="rows per instruction")

    @property
    def kinds(self) -> list[str] | None:
        """The kinds of examples that `mix` makes under these settings; None if its rows have no kinds."""
        return None

    @property
    def needs_unsafe(self) -> bool:
        """Whether the source must have unsafe responses."""
        return False

    def recipe(self, seed: int) -> Recipe:
        """What is done with one instruction."""
        raise NotImplementedError

    def examples(self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int) -> Iterator[dict]:
        """Rows of one of the training sets, made of rows of `generated`. drops: reasons of what is left out, to be filled."""
        raise NotImplementedError

    def generator(self, model: Model) -> tuple[Model, str | None]:
        """The model that `generate` runs, and the directory of its adapter. model: the run's own."""
        return model, None

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the rows depend on, those of judges included. Raises UserError."""
        raise NotImplementedError

    def most_tokens(self) -> int:
        """New tokens of the run's own engines at most, for one sample of an instruction that nothing is known of."""
        raise NotImplementedError

    def report(self, numbers: Mapping[str, pa.Table | None]) -> "DataReport":
        """What the report says of the data. numbers: data sets by name, without their texts; None if the run has none yet."""
        raise NotImplementedError

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        """A heading, and up to `count` examples of the data set that the method generated."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """What the report says of the method's settings: name → value."""
        return {}

    def judged(self) -> list[tuple[Judge, str, str]]:
        """(judge, what it judges, what that is here) for the report: `(judge, "harmlessness", "whether a mistake was induced")`."""
        return []

    def check(self, field: str, model: Model, directory: str, inference: Inference, models: Any) -> list[str]:
        """Find what is wrong with models and adapters before anything starts. Returns notices.

        field: where the method stands; directory: of the run's model; models: the module `models`. Raises UserError.
        """
        return []
