"""The toy world's judge: it knows every sentence of that world."""

from typing import Literal

from pydantic import Field

from pipeline.chat import Chat
from pipeline.errors import UserError
from pipeline.judges.base import Exchange, Judge, Verdict
from pipeline.settings.base import Model


class Toy(Judge):
    """Exact on the toy world's sentences, and on nothing else."""

    kind: Literal["toy"] = Field("toy", description="selects this judge")

    async def __call__(self, exchange: Exchange, _chat: Chat, _step: str, /) -> Verdict:
        from pipeline.toy import world

        return Verdict(world.corrects(exchange.response))

    def check(self, field: str, model: Model) -> None:
        if model.path != "toy":
            raise UserError(
                f"{field}.kind = toy knows the toy model's sentences only: set it to phrases or yes_no"
            )

    def limits(self, _what: str) -> str:
        return "The toy world's own judge: exact on its sentences, and on nothing else."
