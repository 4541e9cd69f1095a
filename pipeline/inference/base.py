"""The base class of engines: an engine answers the requests of `generate` and `evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import Field, model_validator

from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed, UserError
from pipeline.memory import Memory, Shape
from pipeline.settings.base import Count, Model, Section, span
from pipeline.settings.shown import plural

ROWS_PER_REQUEST = 1.5  # rows in flight per request answered at a time; extra rows fill slots between steps


class EngineDead(Exception):
    """The engine's process has died; this actor cannot restart it."""


class LanguageModel(Protocol):
    """An open engine, the model behind `Chat`."""

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` continuations. The same request with the same seed should give the same texts.

        prompt: a conversation, or a text without template. prefill: as in `Chat`, of a conversation.

        Raises RowFailed if this row cannot be answered, EngineDead if no row can.
        """
        ...


@dataclass(frozen=True)
class Served:
    """How a model is served.

    name:     of the model without an adapter
    sampling: what requests that do not say otherwise are sampled with; null = as the model's files say
    """

    name: str
    host: str
    port: int
    sampling: Mapping[str, float] | None = None


class Engine(Section):
    """An engine is its configuration section. It opens nothing before `open`.

    takes_adapters: requests may name LoRA adapters of the model
    reads_model:    the engine loads the files of the model and of adapters; if false, nothing checks them
    is_model:       a model writes the texts; if false, only generate, mix and report make sense
    is_client:      it holds no weights, so an actor opens it beside its own engine and no pass is needed
    libraries:      distributions that the engine runs on; the report lists their versions
    """

    takes_adapters: ClassVar[bool] = False
    reads_model: ClassVar[bool] = True
    is_model: ClassVar[bool] = True
    is_client: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = ()

    kind: str = Field(description="selects the engine")
    actors: Count | tuple[Count, Count] = Field(
        1, description="number of actors, each with one engine or client; [min, max] = autoscaling"
    )
    rows_per_commit: Count = Field(
        256,
        description="rows committed together; an interruption can lose this many per block in flight",
    )

    @property
    def gpus(self) -> int:
        """GPUs of one actor."""
        return 0

    @property
    def nodes(self) -> int:
        """Nodes of one actor's GPUs; each has as many of them."""
        return 1

    @property
    def fills_node(self) -> bool:
        """Whether an actor computes with all cores of its node, so that other models have none beside it."""
        return False

    @property
    def cache_gib(self) -> int:
        """Memory of one actor without GPUs, in GiB, beyond the process and the weights."""
        return 0

    @property
    def gpu_kind(self) -> str | None:
        """The kind of GPU that an actor asks for, by Ray's name; None = any."""
        return None

    @property
    def gpu_share(self) -> float:
        """The share of a GPU's memory that one actor may take."""
        return 1.0

    def footprint(
        self,
        shape: Shape,
        *,
        length: int,
        number: int,
        weights: int | None,
        adapters: int,
        adapter_parameters: int,
    ) -> Memory | None:
        """The memory of one actor on each of its GPUs; None if that is not known.

        length: tokens of a sequence at most. number: bytes of a number of the weights. weights: their bytes,
        if they are known from the files. adapters: how many are loaded, with so many parameters at most.
        """
        return None

    @property
    def requests(self) -> int:
        """The requests that one actor answers at a time."""
        raise NotImplementedError

    @property
    def rows_in_flight(self) -> int:
        """The most rows of one actor between their first and their last request."""
        return round(ROWS_PER_REQUEST * self.requests)

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> LanguageModel:
        """Start the engine, in the actor's process.

        model_dir: the directory or hub id of the model; adapters: directories of the LoRA adapters that
        requests may name. Raises RunFailed if it does not start.
        """
        raise NotImplementedError

    def server(
        self, model: Model, model_dir: str, adapters: Mapping[str, str], served: Served
    ) -> tuple[list[str], dict[str, str]]:
        """The command of an OpenAI-compatible server with the engine's settings, and its environment.

        adapters: local directories of LoRA adapters, by the names that clients ask for. Raises UserError if
        the engine has no server.
        """
        raise UserError(
            f"engine.kind = {self.kind}: has no server of its own; leave engine to the default, which has one"
        )

    def check(self, field: str) -> None:
        """Check the settings before anything starts. field: the engine's path. Raises UserError."""

    def check_build(self, field: str) -> None:
        """Check that what is installed here can run the engine. field: its path. Raises UserError."""

    def check_quantized(self, field: str, model: Model, settings: dict) -> None:
        """Raises UserError, naming the model's field, if the engine cannot load such quantized weights.

        settings: the model's `quantization_config`.
        """

    def check_prefill(self, field: str, asker: str) -> None:
        """Raises UserError, naming the field to change, if the engine cannot continue a prefilled turn.

        field: the engine's path. asker: the path of the section that needs it.
        """

    def check_first_rank(self, field: str, asker: str) -> None:
        """Raises UserError if the engine cannot begin a completion with a token of a rank.

        field: the engine's path. asker: the field of the section that needs it, with its value.
        """
        raise UserError(
            f"{asker}: {field}.kind = {self.kind} cannot be told the first token; use an engine that"
            " loads the model, or leave it out"
        )

    def determines(self) -> dict:
        """The engine settings that determine the texts, besides the model: a part of fingerprints."""
        return {"engine": self.kind}

    def author(self, model: Model) -> str:
        """Who writes the texts, for cards and reports."""
        return f"`{model.path}`" + (f" at revision `{model.revision}`" if model.revision else "")

    def described(self) -> str:
        """The engine in a line of `setbacks plan`."""
        return (
            f"{plural(self.actors_told, 'engine')} × {self.gpus or 'no'} GPU"
            f" = {plural(span(self.actors)[1] * self.gpus, 'GPU')}"
        )

    @property
    def actors_told(self) -> str:
        """The number of actors: `8`, `2–4`."""
        fewest, most = span(self.actors)
        return str(fewest) if fewest == most else f"{fewest}–{most}"

    @model_validator(mode="after")
    def _ordered(self) -> "Engine":
        if isinstance(self.actors, tuple) and self.actors[0] > self.actors[1]:
            raise ValueError(f"actors must be [min, max] with min <= max, not {list(self.actors)}")
        return self


class NoEngine(Engine):
    """What a pass runs on that asks no model, such as a judge that reads phrases."""

    reads_model: ClassVar = False

    kind: str = Field("none", description="no part of a configuration")

    @property
    def requests(self) -> int:
        return 64

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> "LanguageModel":
        return _Nobody()


class _Nobody:
    async def complete(self, *_arguments, **_more) -> list[Completion]:
        raise RowFailed("no model is open")
