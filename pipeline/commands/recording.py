"""What a recipe would ask of a model: its calls, recorded without an engine."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.chat import Completion, Message, Recipe, Sampling, user, with_system
from pipeline.errors import RowFailed
from pipeline.schema import FAILED


@dataclass(frozen=True)
class Call:
    """A conversation to send. new_tokens: at most; unknown: tokens of its texts not yet written, at most."""

    step: str
    messages: list[Message]
    new_tokens: int
    unknown: int = 0

    @property
    def characters(self) -> int:
        return sum(len(message["content"]) for message in self.messages)


class RecordingChat:
    """A `Chat` that records the calls of a recipe and answers with placeholders for a model's texts.

    writes: the placeholder of a step's text, which has at most so many tokens; default: one that names the
    step.
    """

    def __init__(self, writes: Callable[[str, int], str] = lambda step, _: f"<what is written for {step}>"):
        self._writes = writes
        self.calls: list[Call] = []  # calls to the run's own engines
        self.named: Counter[str] = Counter()  # new tokens of other models, at most, by name in `models`
        self._standing_in: dict[str, int] = {}  # placeholder → maximum of tokens of the text that it replaces

    async def __call__(
        self,
        messages,
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
        prefill: bool = True,
    ) -> list[Completion]:
        messages = with_system(messages, sampling.system)
        text = "\n".join(message["content"] for message in messages)
        unknown = sum(tokens for stand_in, tokens in self._standing_in.items() if stand_in in text)
        if model is None:
            self.calls.append(Call(step, messages, sampling.max_tokens * sampling.n, unknown))
        else:
            self.named[model] += sampling.max_tokens * sampling.n
        stand_in = self._writes(step, sampling.max_tokens)
        self._standing_in[stand_in] = sampling.max_tokens
        return [Completion(stand_in, 0, 0, "stop")] * sampling.n

    async def complete(
        self,
        text: str,
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
    ) -> list[Completion]:
        """Recorded as a user's turn: its length is that of the text and of the template's few tokens."""
        return await self([user(text)], sampling, step=step, adapter=adapter, model=model)


def run(recipe: Recipe, rows: Iterable[tuple[dict, RecordingChat]]) -> list[dict]:
    """What the recipe makes of each row with its chat; of one that fails, its status and error."""
    return asyncio.run(_each(recipe, rows))


async def _each(recipe: Recipe, rows: Iterable[tuple[dict, RecordingChat]]) -> list[dict]:
    return [await _made(recipe, row, chat) for row, chat in rows]


async def _made(recipe: Recipe, row: dict, chat: RecordingChat) -> dict:
    try:
        return await recipe(row, chat)
    except RowFailed as e:
        return {"status": FAILED, "error": str(e)}
