"""The base of all configuration sections: models, sources, servers, sampling."""

import datetime
import unicodedata
from enum import Enum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.chat import Sampling
from pipeline.settings import presets


class Section(BaseModel):
    """Base of every section: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


FOR_FINGERPRINT = {"for": "fingerprint"}  # the context of a dump whose values decide what data holds

Fraction = Annotated[float, Field(ge=0, le=1)]
Ratio = Annotated[float, Field(ge=0)]


def _no_flag(value: Any) -> Any:
    """Python takes true for 1."""
    if isinstance(value, bool):
        raise ValueError("should be a whole number")
    return value


Natural = Annotated[int, Field(ge=0, lt=2**31), BeforeValidator(_no_flag)]
Count = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(_no_flag)]
Seed = Annotated[int, Field(ge=0, lt=2**63), BeforeValidator(_no_flag)]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9_]+$", max_length=60)]


def _can_be_a_name(value: str) -> str:
    if any(unicodedata.category(character) == "Cc" for character in value):
        raise ValueError("holds a control character, such as a line end; take it out")
    if len(value.encode()) > 1000 or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("is longer than a path or name can be: 1000 bytes, and 255 between slashes")
    return value


# Name of a file, directory, data set, server or model. Names that no file system accepts are refused here.
Name = Annotated[str, Field(min_length=1), AfterValidator(_can_be_a_name)]
NameOrEmpty = Annotated[str, AfterValidator(_can_be_a_name)]


class PathKind(Enum):
    """The target of a path, set by the type of its field (see `walk`)."""

    ADAPTER = "directory of a PEFT LoRA adapter"
    PROMPTS = "YAML file of prompts"
    DATA = "file or data set that is read beside the sources; `toy` is the toy world's"


class NameKind(Enum):
    """What a name refers to, set by the type of its field (see `walk`)."""

    MODEL = "an entry of `models`"


ModelName = Annotated[ArmName, NameKind.MODEL]
AdapterPath = Annotated[Name, PathKind.ADAPTER]
PromptFile = Annotated[Name, PathKind.PROMPTS]
DataPath = Annotated[Name, PathKind.DATA]


Scalar = bool | int | float | str | None
# What a rendering itself sets.
_RESERVED = {
    "messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "strftime_now", "raise_exception",
    "bos_token", "eos_token", "pad_token", "unk_token", "load_audio_from_video", "processor_kwargs",
}  # fmt: skip


def _can_be_arguments(value: dict[str, Scalar]) -> dict[str, Scalar]:
    for name in value:
        if not name.isidentifier() or name in _RESERVED:
            why = "every rendering sets it itself" if name in _RESERVED else "it is not a name"
            raise ValueError(f"holds {name}, which is no argument of a chat template ({why}); leave it out")
    return value


class Model(Section):
    """A chat model: its files, precision, and how its chat template is rendered."""

    path: Name = Field(
        description="`toy`, a local directory or a hub id",
    )
    revision: Name | None = Field(None, description="hub revision (commit, tag or branch)")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "bfloat16",
        description="type of the weights in an engine and of the base weights in training; auto = as stored",
    )
    max_length: Count | None = Field(
        None,
        description="tokens of prompt + completion; null = the model's own limit",
    )
    chat_template_kwargs: Annotated[dict[str, Scalar], AfterValidator(_can_be_arguments)] = Field(
        {},
        description=(
            "arguments of the chat template wherever it renders, such as `enable_thinking: false` (vLLM's and"
            " TRL's name)"
        ),
    )
    date: datetime.date | None = Field(
        None,
        description=(
            "the day that a chat template takes for today; null = the day on which the run directory began"
        ),
    )

    _named: tuple[str | None] | None = PrivateAttr(None)  # the revision of the configuration, if pinned

    def at(self, commit: str) -> "Model":
        """The model at a commit of its hub, which its revision meant when the run began."""
        pinned = self.model_copy(update={"revision": commit})
        pinned._named = (self.revision,)
        return pinned

    def identity(self) -> dict:
        """The settings that determine what the model writes, for fingerprints.

        Without the date and the commit: a run directory keeps its own for good.
        """
        facts = self.model_dump(mode="json", exclude={"date"})
        if self._named is not None:
            [facts["revision"]] = self._named
        if not self.chat_template_kwargs:
            del facts["chat_template_kwargs"]  # finished outputs of older versions do not have it
        return facts

    def __hash__(self) -> int:  # a mapping has none of its own
        return hash(self.model_dump_json())


class Columns(Section):
    """The columns of a source whose shape is not recognized automatically."""

    instruction: str = Field(description="column of the instruction")
    input: str | None = Field(None, description="text appended to the instruction (Alpaca's `input`)")
    safe_response: str | None = Field(None, description="column of the safe (or helpful) response")
    unsafe_response: str | None = Field(None, description="column of the unsafe response")
    category: str | None = Field(None, description="column of the harm category or topic")


class Source(Section):
    """A set of instructions: file, directory or glob (Parquet, Arrow, JSONL, JSON, CSV, TSV; local, s3://,
    gs://, hf://), `hub:NAME` for a data set through `datasets`, `preset:NAME` for a public one that is known
    here, or `toy:SPLIT`.

    Of a directory, the files of one split are read if names of files or directories say their split, or if
    its README does. A file or a glob is read as it is."""

    path: Name = Field(description="file, directory or glob; `hub:NAME`; `preset:NAME`; `toy:SPLIT`")
    split: Name = Field("train", description="split of a hub data set, or of a directory that has splits")
    config: Name | None = Field(
        None, description="configuration of a hub data set, or of a directory whose README lists several"
    )
    limit: Count | None = Field(None, description="read at most this many distinct instructions")
    columns: Columns | None = Field(None, description="the columns of the source; null = recognized by name")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        """A preset is written out, so that fingerprints, cards and config.yaml hold what was read."""
        return presets.expanded(given)


class Endpoint(Section):
    """An OpenAI-compatible server. The key is read from the environment and never stored."""

    # How a server is asked, which changes none of its texts.
    OPERATIONAL: ClassVar = ("api_key_env", "concurrency", "retries", "timeout_s", "prefill")

    url: Name = Field(pattern=r"^https?://", description="base URL, ending in /v1")
    model: Name = Field(description="the server's name of the model")
    api_key_env: Name | None = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the key; null = no key",
    )
    concurrency: Count = Field(64, description="requests in flight per actor")
    retries: Natural = Field(6, description="tries after the first, with exponential back-off")
    timeout_s: float = Field(120, gt=0, description="time limit of one try in seconds")
    prefill: bool = Field(False, description="the server can continue an assistant turn (vLLM's can)")

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """For a fingerprint (`FOR_FINGERPRINT`), operational fields have their defaults."""
        given = dump(self)
        if info.context != FOR_FINGERPRINT:
            return given
        default = {name: type(self).model_fields[name].default for name in self.OPERATIONAL}
        return {**given, **default}


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Draw(Section):
    """How one step's completions are sampled.

    A value that is null is the model's own, of its generation_config.json (`do_sample: false` is temperature
    0), or neutral if that file does not say. What was used is in the run's config.yaml and in the cards. A
    server is not sent what is null: its defaults apply, which on vLLM are its model's.
    """

    # What the model's distribution is sampled with unless its files say otherwise.
    NEUTRAL: ClassVar[dict[str, float]] = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0
    }  # fmt: skip

    max_tokens: Count = Field(512, description="maximum of new tokens per completion")
    temperature: float | None = Field(None, ge=0, le=2, description="0 = greedy; null = the model's own")
    top_p: float | None = Field(
        None, gt=0, le=1, description="probability mass to sample from; 1 = all of it; null = the model's own"
    )
    top_k: Natural | None = Field(
        None, description="number of likeliest tokens to sample from; 0 = all; null = the model's own"
    )
    min_p: Fraction | None = Field(
        None,
        description=(
            "the least probability of a token, as a share of the likeliest one's; 0 = any; null = the model's"
            " own"
        ),
    )
    repetition_penalty: float | None = Field(
        None, gt=0, description="above 1, tokens that already occur are less likely; null = the model's own"
    )
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ] = Field([], description="texts at which a completion ends, finished; they are not part of it")
    system: str | None = Field(
        None,
        min_length=1,
        description="system prompt of this step; a system turn of the step's own follows it; null = none",
    )

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def described(self) -> str:
        """The settings in words, for reports."""
        values = {name: getattr(self, name) for name in self.NEUTRAL}
        told = [
            f"{name.replace('_', '-' if name != 'repetition_penalty' else ' ')} {value:g}"
            for name, value in values.items()
            if value is not None and (name in ("temperature", "top_p") or value != self.NEUTRAL[name])
        ]
        if unset := [name for name in ("temperature", "top_p") if values[name] is None]:
            told.append(f"{' and '.join(unset).replace('_', '-')} by the default of model or server")
        told += [f"at most {self.max_tokens} tokens"]
        told += [f"stop at {', '.join(map(repr, self.stop))}"] if self.stop else []
        return ", ".join(told + (["with a system prompt"] if self.system else []))

    def sampling(self, n: int = 1) -> Sampling:
        """Sampling settings of a call for n completions."""
        return Sampling(
            n=n, stop=tuple(self.stop), **self.model_dump(include={"max_tokens", "system", *self.NEUTRAL})
        )

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """For a fingerprint (`FOR_FINGERPRINT`), later fields only if they change texts.

        A greedy choice is that of the likeliest token, whatever top_p, top_k and min_p.
        """
        given = dump(self)
        if info.context != FOR_FINGERPRINT:
            return given
        if self.is_greedy:
            given |= {name: self.NEUTRAL[name] for name in ("top_p", "top_k", "min_p") if name in given}
        neutral: dict[str, Any] = {**self.NEUTRAL, "stop": [], "system": None}
        return {
            name: value
            for name, value in given.items()
            if name in ("max_tokens", "temperature", "top_p") or value not in (None, neutral[name])
        }


class Greedy(Draw):
    """As a `Draw`, but greedy unless told otherwise: evaluation and judges."""

    temperature: float | None = Field(0.0, ge=0, le=2, description="0 = greedy; null = the model's own")


def span(count: int | tuple[int, int]) -> tuple[int, int]:
    """Minimum and maximum of a count, which may be a [min, max] range."""
    return count if isinstance(count, tuple) else (count, count)


def tag(value: Any, field: str, default: str | None) -> Any:
    """The tag that selects a member of a union: the value of `field`, or its default."""
    return value.get(field, default) if isinstance(value, dict) else getattr(value, field, default)
