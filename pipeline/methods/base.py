"""The base class of methods: from instructions to a data set, and from the data set to training rows."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.gates import Gates
from pipeline.inference import Engine
from pipeline.judges import Judge
from pipeline.methods.unfinished import Sampled, Unfinished
from pipeline.report.examples import Example
from pipeline.report.numbers import Rows
from pipeline.report.tables import Table
from pipeline.schema import INSTRUCTIONS, Schema
from pipeline.settings.base import Count, Draw, Fraction, Model, Section, Source
from pipeline.sources import instructions
from pipeline.sources.counts import Accounts


@dataclass
class DataReport:
    """A method's part of the report's section on data. failures: dropped and failed rows, by reason."""

    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)


class Method(Section):
    """A method is its configuration section.

    generated:     the data set that `generate` writes, one row per instruction and sample
    listed:        the rows that `generate` starts from (see `rows`)
    training_sets: the sets of rows that `mix` can make from `generated`; the default arms train on the first.
                   One that no trainer accepts is made for other runs to read
    default_arms:  the arms to train if the configuration names none
    nothing:       why a training set can be empty, for the error message
    mixing:        the fields that only `mix` reads
    starting:      YAML of fields that a newcomer decides, with comments, for `setbacks init`
    OPERATIONAL:   the fields that change no row
    example_kinds: by training set, the kinds of examples that it can hold; empty if its rows have no kinds
    if_named:      kinds of examples that `mix` makes only if an arm names them
    made_from:     by kind of example, the source and its response that the kind is made from, if from one
    """

    generated: ClassVar[Schema]
    listed: ClassVar[Schema] = INSTRUCTIONS
    training_sets: ClassVar[tuple[Schema, ...]]
    default_arms: ClassVar[dict[str, dict]]
    nothing: ClassVar[str]
    mixing: ClassVar[frozenset[str]] = frozenset()
    starting: ClassVar[str] = ""
    OPERATIONAL: ClassVar[frozenset[str]] = frozenset({"engine", "min_usable"})
    example_kinds: ClassVar[dict[str, tuple[str, ...]]] = {}
    if_named: ClassVar[frozenset[str]] = frozenset()
    made_from: ClassVar[dict[str, tuple[str, str]]] = {}

    name: str = Field(description="selects the method")
    instructions: Source = Field(description="what `generate` reads")
    samples: Count = Field(1, description="rows per instruction")
    engine: Engine | None = Field(
        None, description="what answers in `generate`; null = the run's engine, which always evaluates"
    )
    unfinished: Unfinished = Field(
        "trim",
        description=(
            "what becomes of a training target that ended at max_tokens: trim = cut back to its last whole"
            " sentence, dropped if it has none; drop; keep = used as it is, so models learn to stop in"
            " mid-sentence"
        ),
    )
    gates: Gates | None = Field(
        Gates(),
        description=(
            "quality gates on sampled texts; a row whose text fails one is dropped with the reason, keeps its"
            " texts, and is not trained on; null = no gates"
        ),
    )
    min_usable: Fraction = Field(
        0.25,
        description=(
            "the least share of rows that must be usable (neither dropped nor failed) for `mix` and `train`"
            " to go on; rows that the method does not select do not count"
        ),
    )

    @property
    def kinds(self) -> list[str] | None:
        """The kinds of examples that `mix` makes under these settings; None if its rows have no kinds."""
        return None

    @property
    def needs_unsafe(self) -> bool:
        """Whether the source must have unsafe responses."""
        return False

    @property
    def needs_safe(self) -> bool:
        """Whether the source must have safe responses."""
        return False

    @property
    def asks_model(self) -> bool:
        """Whether the recipe asks its model; without one, `generate` starts no engine for the method."""
        return True

    @property
    def widest_gap(self) -> int:
        """The most that the ranks of a preference pair differ."""
        return 1

    @property
    def continues_turns(self) -> bool:
        """Whether the recipe prefills the model's turn; the engine and the chat template must allow that."""
        return False

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        """Roles of the conversations that the model is asked to answer → the setting that asks for them.

        Prefilled turns are not among them: `check` checks those. The setting is a field with its value, such
        as `hint.position = system`, or empty.
        """
        return {("user",): ""}

    @property
    def training_conversations(self) -> dict[tuple[str, ...], str]:
        """Roles of the conversations that `mix` makes → the setting that asks for them, or empty."""
        return {("user", "assistant"): ""}

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        """How often an instruction is used: the field, its value, and the draws that make a difference."""
        draws = {
            name: one for name in type(self).model_fields if isinstance(one := getattr(self, name), Draw)
        }
        return "samples", self.samples, draws

    @classmethod
    def arms_by_default(cls, section: Any) -> dict[str, dict]:
        """The default arms of the method's section, which may be parsed YAML that is not yet validated."""
        return cls.default_arms

    def rows(self, counts: Accounts) -> Iterator[dict]:
        """The rows of `listed` that `generate` works on. counts: filled with those of the sources read.

        Raises UserError if a source cannot be read.
        """
        source = instructions.read(self.instructions, counts.of("instructions"))
        return instructions.repeated(source, self.samples)

    def few(self, rows: int) -> "Method":
        """The method with about `rows` rows to do, for a preview; sources are limited already."""
        return self

    def inputs(self) -> dict[str, str]:
        """Digests of what other runs have made and `rows` reads, by field. Raises UserError."""
        return {}

    @classmethod
    def asks(cls, section: Any) -> dict[str, str]:
        """By kind of example, how arms that are trained on it are asked (`arms.NAME.ask`), unless they say.

        section: as of `arms_by_default`.
        """
        return {}

    def sampled(self, instruction: str) -> Sampled:
        """For the recipe: keeps account of the texts that a row samples."""
        return Sampled(self.unfinished, self.gates, instruction)

    def recipe(self, seed: int) -> Recipe:
        """The recipe for one instruction."""
        raise NotImplementedError

    def examples(
        self, schema: Schema, rows: Iterable[dict], drops: Counter[str], seed: int, counts: Accounts
    ) -> Iterator[dict]:
        """Rows of one training set, made from rows of `generated`.

        drops: filled with reasons of drops. counts: filled with those of the sources that `mix` reads.
        """
        raise NotImplementedError

    def mixing_of(self, schema: Schema) -> frozenset[str]:
        """The fields of `mixing` that decide the rows of one training set."""
        return self.mixing

    @property
    def generator(self) -> tuple[str | None, str | None]:
        """The entry of `models` that `generate` runs (None = the run's model), and its adapter."""
        return None, None

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the rows depend on, those of judges included. Raises UserError."""
        raise NotImplementedError

    def most_tokens(self) -> int:
        """Upper bound of the new tokens of the run's engines for one sample of any instruction."""
        raise NotImplementedError

    def report(self, numbers: Mapping[str, Rows | None]) -> "DataReport":
        """The report's part on the data. numbers: data sets by name, without texts; None if not written."""
        raise NotImplementedError

    def examples_shown(self, dataset: Dataset, count: int) -> tuple[str, list[Example]]:
        """A heading, and up to `count` examples of the data set that the method generated."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """The method's settings for the report: name → value."""
        return {}

    def judged(self) -> list[tuple[Judge, str, str]]:
        """For the report: (judge, what it judges, the meaning of that).

        For example `(judge, "harmlessness", "whether a mistake was induced")`.
        """
        return []

    def check(
        self, field: str, model: Model, directory: str, generator: tuple[str, Model, str], models: Any
    ) -> list[str]:
        """Check models and adapters before an engine reads them. Returns notices. Raises UserError.

        field: the method's configuration path; directory: of the run's model; generator: the model that
        `generate` runs: its configuration path, itself, its directory; models: the module `models`.
        """
        return []
