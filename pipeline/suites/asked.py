"""How an arm is asked: with a text of its own in every suite, if it was trained to answer after one.

The text takes the place of the last user turn, and that turn's text stands in it as `{{ instruction }}`. What
a suite adds (a condition, the wrapping of an attack, a prefill) is there already. Steps in which an arm
speaks about an instruction or an answer (`Suite.plain_steps`) are left as they are.
"""

from collections.abc import Collection, Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.chat import Chat, Completion, Message, Recipe, Sampling, user
from pipeline.errors import UserError
from pipeline.prompts import Prompts

_PROBE = "qzinstructionqz"


def _holds_instruction(text: str) -> str:
    try:
        asked = Prompts({"ask": text}, "ask").render("ask", instruction=_PROBE)
    except UserError as e:
        raise ValueError(f"is no template: {e}") from None
    if _PROBE not in asked:
        raise ValueError("leaves the instruction out: write {{ instruction }} where it is to stand")
    return text


Ask = Annotated[str, Field(min_length=1), AfterValidator(_holds_instruction)]


def asked(
    recipe: Recipe, adapters: Mapping[str, str], asks: Mapping[str, str], plain: Collection[str] = ()
) -> Recipe:
    """The recipe of a suite, in which the arms of `asks` are asked with their texts.

    adapters: arm → adapter directory. asks: arm → text. plain: steps that are asked without it.
    """
    return AskedRecipe(recipe, adapters, asks, plain) if asks else recipe


class AskedRecipe:
    """Changes the calls to an arm's adapter. If rows have a column `messages`, it holds what was sent."""

    def __init__(
        self,
        recipe: Recipe,
        adapters: Mapping[str, str],
        asks: Mapping[str, str],
        plain: Collection[str] = (),
    ):
        self._recipe, self._adapters, self._plain = recipe, adapters, frozenset(plain)
        self._texts = {arm: Prompts({"ask": text}, f"arms.{arm}.ask") for arm, text in asks.items()}

    async def __call__(self, row: dict, chat: Chat) -> dict:
        arm = row.get("arm")
        if arm not in self._texts:
            return await self._recipe(row, chat)
        asking = _AskingChat(chat, self._adapters[arm], self._texts[arm], self._plain)
        result = await self._recipe(row, asking)
        if asking.sent and (row.get("messages") or result.get("messages")):
            result = {**result, "messages": asking.sent}
        return result


class _AskingChat:
    """A `Chat` that changes the calls to one adapter. sent: the last conversation of these calls."""

    def __init__(self, chat: Chat, adapter: str, texts: Prompts, plain: Collection[str]):
        self._chat, self._adapter, self._texts, self._plain = chat, adapter, texts, plain
        self.sent: list[Message] = []

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
        if adapter == self._adapter and model is None and step not in self._plain:
            messages = self.sent = self._with_text(messages)
        return await self._chat(messages, sampling, step=step, adapter=adapter, model=model, prefill=prefill)

    async def complete(
        self,
        text: str,
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
    ) -> list[Completion]:
        return await self._chat.complete(text, sampling, step=step, adapter=adapter, model=model)

    def _with_text(self, messages: list[Message]) -> list[Message]:
        last = max(place for place, message in enumerate(messages) if message["role"] == "user")
        changed = user(self._texts.render("ask", instruction=messages[last]["content"]))
        return [*messages[:last], changed, *messages[last + 1 :]]
