"""The base class of judges: a judge takes one exchange, and the row's chat, and gives one verdict."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

from pipeline.chat import Chat
from pipeline.settings.base import FOR_FINGERPRINT, Model, ModelName, Section

_QUOTATION = re.compile(r"^[ \t]*>[^\n]*$", re.MULTILINE)


def without_quotations(text: str) -> str:
    """A judge's answer, with an ellipsis for each line that begins with ">": a quotation gives no verdict."""
    return _QUOTATION.sub("…", text)


@dataclass(frozen=True)
class Exchange:
    """The input of a judge.

    prefill:  the prefilled beginning of the model's turn, if any; `response` is what the model added.
    triggers: phrases that may have been put before the response; a trigger alone proves nothing.
    """

    instruction: str
    response: str
    prefill: str = ""
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A judge's verdict. None means "could not tell": an unreadable verdict is never replaced by a guess.

    ok:         the response is harmless, or corrects course, depending on what the judge is for.
    rating:     1 (worst) to 10 (best); None if the judge does not rate, or if the rating is unreadable.
    categories: hazards that a guard names, in its words. A harmless verdict with categories is one of a guard
                that found a hazard, but none that the configuration counts.
    refused:    the response refuses, by the judge; None if the judge does not say.
    harm_score: 0 (harmless) to 1 (worst), of a judge that grades harm on that scale.
    """

    ok: bool | None
    rating: float | None = None
    categories: tuple[str, ...] = ()
    refused: bool | None = None
    harm_score: float | None = None


def negated(ok: bool | None) -> bool | None:
    """The verdict for columns that name the bad case, such as `harmful`."""
    return None if ok is None else not ok


class Judge(Section):
    """A judge is its configuration section. It can be pickled, and opens nothing before the first call."""

    if TYPE_CHECKING:
        kind: str

    async def __call__(self, exchange: Exchange, chat: Chat, step: str, /) -> Verdict:
        """Judge a response. Models are called through `chat` with name `step`; exceptions pass through."""
        raise NotImplementedError

    def check(self, field: str, model: Model) -> None:
        """Check the configuration before anything starts. Raises UserError.

        field: the judge's path in the configuration. model: the run's model.
        """

    def limits(self, what: str) -> str:
        """The report's paragraph on who judges `what` (harmlessness, course correction), and the limits."""
        raise NotImplementedError

    @property
    def called(self) -> str:
        """The judge in a sentence: `judged by …`."""
        return self.kind

    @property
    def blind(self) -> str:
        """A sentence that must stand beside a harm rate by this judge: what it cannot see. Empty if none."""
        return ""

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the verdicts depend on. Raises UserError."""
        return {}

    def most_tokens(self) -> int:
        """The most tokens that a model samples for one verdict; 0 if no model is asked."""
        return 0

    @property
    def asked(self) -> str | None:
        """The entry of `models` that is asked; None = the run's own model, or none (see `most_tokens`)."""
        return None

    def tokens(self) -> int:
        """The most tokens that the run's own model samples for one verdict."""
        return 0 if self.asked else self.most_tokens()

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        """Roles of the conversations that the judge's model is asked to answer, as in `Suite`."""
        return {}


class AskingJudge(Judge):
    """A judge that asks a model: one of `models`, or the run's own without adapter."""

    model: ModelName | None = Field(
        None, description="name in `models` of the model that judges; null = the run's own, without adapter"
    )

    @property
    def asked(self) -> str | None:
        return self.model

    @property
    def conversations(self) -> dict[tuple[str, ...], str]:
        return {("user",): ""}

    @property
    def who(self) -> str:
        """Who judges, for `limits`."""
        return f"The model `{self.model}`" if self.model else "The model itself, without adapter,"

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """For a fingerprint, a judge without a model of its own is dumped as by older versions, which had a
        field `endpoint` in its place, so that their finished outputs are still valid."""
        given = dump(self)
        if info.context == FOR_FINGERPRINT and self.model is None:
            del given["model"]
            given["endpoint"] = None
        return given
