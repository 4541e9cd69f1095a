"""What every judge is: asked about one exchange, through the row's own chat, it gives one verdict."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.chat import Chat
from pipeline.settings.base import Model, Section


@dataclass(frozen=True)
class Exchange:
    """What is judged.

    prefill:  how the model's turn began, if it was begun for the model; `response` is what the model added.
    triggers: phrases that may have been put before the response; they prove nothing by themselves.
    """

    instruction: str
    response: str
    prefill: str = ""
    triggers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What a judge found. None is "could not tell": an unreadable verdict is never replaced by a guess.

    ok:     the response is harmless, or corrects course, depending on what the judge is for.
    rating: 1 (worst) to 10 (best); None if the judge does not rate, or unreadably.
    """

    ok: bool | None
    rating: float | None = None


def negated(ok: bool | None) -> bool | None:
    """The same verdict as columns have it that name the bad case: harmful."""
    return None if ok is None else not ok


class Judge(Section):
    """A judge is its configuration section. It can be pickled, and opens nothing before it is asked."""

    if TYPE_CHECKING:
        kind: str

    async def __call__(self, exchange: Exchange, chat: Chat, step: str, /) -> Verdict:
        """Judge a response. A model is asked through `chat` under the name `step`; what that raises is passed on."""
        raise NotImplementedError

    def check(self, field: str, model: Model) -> None:
        """Find what is wrong before anything starts. field: where the judge stands; model: the run's. Raises UserError."""

    def limits(self, what: str) -> str:
        """Who judges `what` (harmlessness, course correction), and what that judge cannot do: a paragraph of the report."""
        raise NotImplementedError

    def prompt_hashes(self) -> dict[str, str]:
        """The prompt sets that the verdicts depend on. Raises UserError."""
        return {}

    def tokens(self) -> int:
        """The most tokens that the run's own model samples for one verdict."""
        return 0
