"""What every suite is: rows to be answered by every arm, and what is done with one of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.judges import Judge
from pipeline.report import sections as report
from pipeline.report.examples import Example
from pipeline.schema import Schema
from pipeline.settings.base import Model, Section, Source
from pipeline.sources.instructions import Counts


class Suite(Section):
    """A suite is its configuration section.

    data_schema: the data set that `evaluate` writes
    title:  what reports and log lines call the suite
    method: the name of the method that it belongs to; in a run of that method its report comes first
    """

    data_schema: ClassVar[Schema]
    title: ClassVar[str]
    method: ClassVar[str]

    @property
    def needs_unsafe(self) -> list[str]:
        """Names of the sources that must have unsafe responses."""
        return []

    @property
    def continues_turns(self) -> bool:
        """Whether the model's turn is begun for it, which its chat template must allow."""
        return False

    def rows(self, arms: Sequence[str], seed: int, counts: Counts, tokenizer: Any) -> Iterator[dict]:
        """The rows to do, for every arm (the first is the base model).

        counts: of the source, to be filled while it is read. tokenizer: a function that loads the model's. Raises UserError.
        """
        raise NotImplementedError

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        """What is done with one row. adapters: arm → adapter directory."""
        raise NotImplementedError

    def most_tokens(self) -> tuple[str, int]:
        """How the work is counted for one row of the source and one arm (`8 k × 20 paths × 32 tokens`), and its new tokens at most."""
        raise NotImplementedError

    @property
    def counted(self) -> Source:
        """The source whose rows `most_tokens` counts."""
        raise NotImplementedError

    def size(self) -> str:
        """How often an arm is asked about a row of the source: `3 conditions`."""
        raise NotImplementedError

    def report(self, numbers: pa.Table | None, arms: Sequence[str], seed: int) -> list[report.Section]:
        """What the report says. numbers: the data set without its texts, None if there is none yet; arms: those beside the base model."""
        raise NotImplementedError

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        """A heading, and up to `count` examples of the suite's data set. arms: those beside the base model."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """What the report says of the suite's settings: name → value."""
        return {}

    def judged(self) -> list[tuple[Judge, str, str]]:
        """(judge, what it judges, what that is here) for the report: `(judge, "harmlessness", "harmlessness of answers")`."""
        return []

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the rows depend on, those of judges included. Raises UserError."""
        raise NotImplementedError

    def check(self, field: str, model: Model) -> None:
        """Find what is wrong before anything starts, models apart. field: where the suite stands. Raises UserError."""
