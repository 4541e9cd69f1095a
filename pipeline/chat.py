"""The interface between recipes and models. Imports no engine: tests give a recipe a scripted `Chat`."""

from dataclasses import dataclass
from typing import Protocol, TypedDict


class Message(TypedDict):
    """One turn of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn.

    `max_tokens` counts new tokens of one completion; `n` completions are returned. Null is not set: a server
    has a default of its own, and an engine of the run samples from the model's plain distribution.

    stop:   texts at which a completion ends; they are no part of it.
    system: the system prompt of the conversation (see `with_system`).
    first_rank: the rank, from 1, of the completion's first token among the likeliest; null = it is sampled.
    """

    max_tokens: int
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    n: int = 1
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop: tuple[str, ...] = ()
    system: str | None = None
    first_rank: int | None = None


@dataclass(frozen=True)
class Completion:
    """One sampled continuation: the new text only, never the prompt or the prefill.

    thought:        what a reasoning model thought first, no part of `text`; null if it did not think
    thought_tokens: tokens of the thought; null if the server does not say
    answered:       false if the thought did not end, so that `text` is empty
    """

    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str  # "stop" (the model ended its turn, or wrote a stop text) or "length" (max_tokens)
    thought: str | None = None
    thought_tokens: int | None = 0
    answered: bool = True

    @property
    def is_cut(self) -> bool:
        """Whether the text ended at max_tokens, so that the model may have gone on."""
        return self.finish_reason == "length"


class Chat(Protocol):
    """A model answering for one row.

    The pool gives every row its own `Chat`, which knows the run's seed and the row's id. A sample's seed is a
    function of (run seed, row id, step, sample index), so a row sends the same requests whenever and wherever
    it is rerun.
    """

    async def __call__(
        self,
        messages: list[Message],
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` completions of a conversation.

        messages: if the last one is the assistant's, it is a prefill, and the model continues that turn.
        prefill:  False closes that turn instead, and the model begins a turn of its own: how a guard model
                  reads a request and its answer.
        step:     name of this call, unique within the row's recipe; part of the seed.
        adapter:  directory of a LoRA adapter for this call; None is the base model.
        model:    name of the entry of `models` to ask instead of the row's own model, such as a judge's.

        Raises RowFailed if this row cannot be answered (prompt too long, endpoint error after retries).
        """
        ...

    async def complete(
        self,
        text: str,
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
    ) -> list[Completion]:
        """Sample `sampling.n` continuations of a text, without a chat template.

        text: special tokens that are written out in it count as those tokens. The token that begins a text
              is put in front if the model has one, as servers do.

        The other arguments, and errors, are those of a call.
        """
        ...


class Recipe(Protocol):
    """Processes one row.

    `row` has the columns of the work list; the result has columns of the data set's schema.
    """

    async def __call__(self, row: dict, chat: Chat) -> dict: ...


def user(content: str) -> Message:
    """A user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An assistant's turn."""
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    """A system turn."""
    return {"role": "system", "content": content}


def with_system(messages: list[Message], prompt: str | None) -> list[Message]:
    """The conversation with a system prompt: a turn before all others, or in front of its system turn."""
    if prompt is None:
        return messages
    if messages[0]["role"] == "system":
        return [system(f"{prompt}\n\n{messages[0]['content']}"), *messages[1:]]
    return [system(prompt), *messages]
