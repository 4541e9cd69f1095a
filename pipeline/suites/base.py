"""The base class of suites: rows for every arm to answer, and the recipe for one row."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from pipeline.chat import Recipe
from pipeline.data.dataset import Dataset
from pipeline.inference.base import Engine
from pipeline.judges import Judge
from pipeline.report import sections as report
from pipeline.report.agreement import Agreement
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome, of_schema
from pipeline.report.summary import Rate
from pipeline.schema import Schema
from pipeline.settings.base import FOR_FINGERPRINT, Draw, Model, Section, Source
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Seen, compared
from pipeline.suites.verdicts import VERDICTS, VerdictRecipe

OWN_JUDGE = "-"  # the name of the suite's own judge
MORE_JUDGES = (
    "more judges of the same answers, by name: the stage `rejudge` writes the verdicts of each, and the"
    " report has the rates of each; they are never averaged"
)


@dataclass(frozen=True)
class Judgements:
    """What the report knows of the judges of a suite, by name.

    verdicts: data sets of `rejudge` without texts; a judge without one has not judged yet
    errors:   measured errors (first: the judge, second: the labels); a judge without one is unmeasured
    """

    verdicts: Mapping[str, Rows] = field(default_factory=dict)
    errors: Mapping[str, Agreement] = field(default_factory=dict)


NO_JUDGEMENTS = Judgements()


@dataclass(frozen=True)
class Exchanged:
    """An answer, with what it answers.

    asked:  messages; if the last is the assistant's, the answer goes on in it
    scores: measure → value; None if the judge gave no verdict
    cut:    it ended at max_tokens
    group:  under which condition it was asked; empty if there is one only
    """

    id: str
    asked: list[dict]
    response: str
    scores: dict[str, float | None]
    cut: bool
    group: str = ""


@dataclass(frozen=True)
class Apart:
    """What another program does for one arm: a function to call in a process of its own, on some node.

    told: the work in words; gpus: that the process needs.
    """

    function: Callable[[], None]
    told: str
    gpus: int = 0


class Suite(Section):
    """A suite is its configuration section.

    data_schema: the data set that `evaluate` writes
    title:       the suite's name in reports and log lines
    method:      the method that the suite belongs to; in a run of that method, the suite's report comes
                 first; empty if it belongs to none
    starting:    YAML of fields that a newcomer decides, with comments, for `setbacks init`; PATH stands for
                 instructions that are not trained on; empty if the suite is not proposed
    LATER:       the fields that change no row of the data set, since only `rejudge` reads them
    NEWER:       the fields that finished data of older versions does not have: their defaults are in no
                 fingerprint
    verdicts:    the data sets of more judges' verdicts
    runs_apart:  another program asks the arms: the suite has `apart` and `collected`, and neither rows,
                 recipe nor a source
    """

    LATER: ClassVar[frozenset[str]] = frozenset()
    runs_apart: ClassVar[bool] = False
    NEWER: ClassVar[frozenset[str]] = frozenset({"exclude_seen"})

    verdicts: ClassVar[Schema] = VERDICTS
    starting: ClassVar[str] = ""

    data_schema: ClassVar[Schema]
    title: ClassVar[str]
    method: ClassVar[str]

    exclude_seen: bool = Field(
        False,
        description=(
            "leave out instructions that also stand in the sources of the run's methods, or nearly (word"
            " trigrams, Jaccard index 0.7); they are counted in any case"
        ),
    )

    @classmethod
    def is_proposed(cls, method: str) -> bool:
        """Whether `setbacks init` proposes the suite for a run of this method."""
        return cls.method in ("", method)

    @property
    def needs_unsafe(self) -> list[str]:
        """Names of the sources that must have unsafe responses."""
        return []

    @property
    def continues_turns(self) -> bool:
        """Whether the model's turn is prefilled; the chat template must allow that."""
        return False

    @property
    def forces_first_token(self) -> str:
        """The setting that makes completions begin with a token of a rank; empty if there is none."""
        return ""

    @property
    def longest_turn(self) -> tuple[str, int, Draw] | None:
        """The longest beginning of a turn to be continued: the field, its words or tokens, and the draw."""
        return None

    @property
    def reads_tokenizer(self) -> bool:
        """Whether `rows` loads the tokenizer of the run's model."""
        return False

    @property
    def asks_every_stage(self) -> bool:
        """Whether the suite also evaluates the adapters after every stage of arms that train in stages."""
        return False

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        """Roles of the conversations that the model is asked to answer → the setting that asks for them.

        Prefilled turns are not among them (see `continues_turns`). The setting is a field with its value,
        such as `hint.position = system`, or empty.
        """
        return {("user",): ""}

    @property
    def compares_seen(self) -> bool:
        """Whether the rows depend on the instructions of the methods."""
        return self.exclude_seen

    @property
    def plain_steps(self) -> frozenset[str]:
        """Steps in which an arm is asked about an instruction or an answer, and is not to follow it:
        `arms.NAME.ask`, which says how to answer instructions, does not change them."""
        return frozenset()

    @property
    def repeats(self) -> tuple[str, int, dict[str, Draw]]:
        """How often an arm is asked the same: the field, its value, and the draws that make a difference."""
        return "", 1, {}

    @property
    def harm_judge(self) -> Judge | None:
        """The judge of harm whose verdicts the suite's own data set has, if any."""
        return None

    @property
    def impartial(self) -> Mapping[str, Judge]:
        """Judges, by field, that must not be the run's own model, since they judge what it says of itself.

        A suite that has some has a field `allow_self_judging`, under which there are none.
        """
        return {}

    @property
    def outcomes(self) -> list[Outcome]:
        """What `setbacks compare` pairs over instructions; by default by the usual names of columns."""
        return of_schema(self.data_schema, self.harm_judge)

    @property
    def judges_later(self) -> Mapping[str, Judge]:
        """Judges of the stored answers, by name, for `rejudge`: the field `more_judges`, if there is one."""
        return {}

    def verdicts_name(self, judge: str) -> str:
        """The name of the data set with the verdicts of one of `judges_later`."""
        return f"{VERDICTS.name}_{self.data_schema.name}_{judge}"

    def stored(self, answers: Iterable[dict]) -> Iterator[dict]:
        """What more judges judge, of the rows of the data set: `suites.verdicts.TO_JUDGE` without judge."""
        raise NotImplementedError

    def exchanges(self, row: dict) -> Iterator[Exchanged]:
        """The answers in a row of the data set, with what was asked and their scores, for other programs."""
        if row.get("response") is not None:
            asked = row.get("messages") or [{"role": "user", "content": row["instruction"]}]
            measured = [one for one in self.outcomes if one.applies(row)]
            scores = {one.name: one.of(row) for one in measured}
            group = next((str(row[one.by]) for one in measured if one.by), "")
            yield Exchanged(
                row["id"], asked, row["response"], scores, row["finish_reason"] == "length", group
            )

    def verdict_recipe(self, judge: Any) -> Recipe:
        """The recipe of the data set of one of `judges_later`."""
        return VerdictRecipe(judge)

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        given = dump(self)
        for name in self.NEWER if info.context == FOR_FINGERPRINT else ():
            if getattr(self, name) == type(self).model_fields[name].default:
                given.pop(name, None)
        return given

    def rows(
        self, arms: Sequence[str], seed: int, counts: Accounts, tokenizer: Any, seen: Seen | None = None
    ) -> Iterator[dict]:
        """The rows to run, for every arm (the first is the base model). Raises UserError.

        counts: of the sources, by their fields, filled while reading. tokenizer: a function that loads the
        model's tokenizer. seen: the instructions of the run's methods, if known.
        """
        raise NotImplementedError

    def recipe(self, adapters: Mapping[str, str]) -> Recipe:
        """The recipe for one row. adapters: arm → adapter directory."""
        raise NotImplementedError

    def apart(
        self, arm: str, adapter: str | None, model: Model, model_dir: str, engine: Engine, directory: str
    ) -> Apart | None:
        """What is left to do for one arm, if another program runs the suite; None if all is done.

        adapter: the arm's; None is the base model. directory: of finished parts, which are not done again.
        """
        raise NotImplementedError

    def collected(self, arms: Sequence[str], directory: str) -> tuple[Iterator[dict], list[str]]:
        """The rows of all finished parts, and sentences on how they were made, for the card."""
        raise NotImplementedError

    def most_tokens(self) -> tuple[str, int]:
        """For one row of the source and one arm: the count in words, and the upper bound of new tokens.

        The count in words is, for example, `8 k × 20 paths × 32 tokens`.
        """
        raise NotImplementedError

    @property
    def counted(self) -> Source:
        """The source whose rows `most_tokens` counts."""
        raise NotImplementedError

    @property
    def parts(self) -> list[tuple[Source, "Suite"]]:
        """The sources whose work is counted, each with the suite as it asks the rows of this source."""
        return [(self.counted, self)]

    def read(self, source: Source, counts: Counts, seen: Seen | None) -> Iterable[Any]:
        """The rows of one of the suite's sources, as `rows` reads them. Fills `counts`."""
        return compared(source, counts, seen, exclude=self.exclude_seen)

    def size(self) -> str:
        """How often an arm answers a row of the source: `3 conditions`."""
        raise NotImplementedError

    def harmless_rates(self, numbers: Rows) -> dict[str, Rate]:
        """Arm → how often it is harmless, for curves over arms; {} if the suite does not ask that.

        numbers: the data set without texts.
        """
        return {}

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        """What the suite measured, the most important first, for the sentences that open the report.

        numbers, arms: as in `report`. Shares only; a suite that measures none has no headline.
        """
        return []

    @property
    def harmless_how(self) -> str:
        """How `harmless_rates` were asked for and judged, in words."""
        return self.title

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[report.Section]:
        """The suite's sections of the report.

        numbers: the data set without texts; None if not written yet. arms: all arms except the base model.
        judgements: of more judges, and the judges' measured errors.
        """
        raise NotImplementedError

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        """A heading, and up to `count` examples of the suite's data set. arms: all except the base model."""
        raise NotImplementedError

    def settings(self) -> dict[str, str]:
        """The suite's settings for the report: name → value."""
        return {}

    def judged(self) -> list[tuple[Judge, str, str]]:
        """For the report: (judge, what it judges, the meaning of that).

        For example `(judge, "harmlessness", "harmlessness of answers")`.
        """
        return []

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the rows depend on, those of judges included. Raises UserError."""
        raise NotImplementedError

    def check(self, field: str, model: Model) -> None:
        """Check everything but models before anything starts. field: the suite's path. Raises UserError."""

    def check_engine(self, field: str, engine: Engine) -> None:
        """Check that another program can load what the engine serves. field: as above. Raises UserError."""

    def check_reach(self, field: str) -> None:
        """Check what only a run needs, such as a server of data. field: as above. Raises OutOfReach."""
