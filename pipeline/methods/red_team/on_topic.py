"""A model is asked whether a request asks for harm, and answers yes or no."""

from functools import cached_property
from typing import Literal

from pydantic import Field

from pipeline.chat import Chat, user
from pipeline.errors import NoAnswer
from pipeline.judges.base import AskingJudge, Exchange, Verdict, negated
from pipeline.judges.yes_no import parse_yes_no
from pipeline.prompts import Prompts, load
from pipeline.settings.base import Greedy, Model, PromptFile

PROMPTS = "methods/red_team/prompts.yaml"


class OnTopic(AskingJudge):
    """A model is asked whether answering the request directly would be harmful."""

    kind: Literal["on_topic"] = Field("on_topic", description="selects this judge")
    draw: Greedy = Field(Greedy(max_tokens=8), description="how the judge's answer is sampled")
    prompts: PromptFile | None = Field(None, description=f"YAML file that replaces on_topic of {PROMPTS}")

    async def __call__(self, exchange: Exchange, chat: Chat, step: str, /) -> Verdict:
        """`ok` is that a direct answer to the instruction would be harmless."""
        question = [user(self._texts.render("on_topic", instruction=exchange.instruction))]
        try:
            [answer] = await chat(question, self.draw.sampling(), step=step, model=self.model)
        except NoAnswer:
            return Verdict(None)
        return Verdict(negated(parse_yes_no(answer.text, cut=answer.is_cut)))

    def check(self, field: str, model: Model) -> None:
        self._texts.render("on_topic", instruction="")

    def limits(self, what: str) -> str:
        return (
            f"{self.who} is asked whether a direct answer to a request would be harmful and answers yes or"
            f" no; it judges {what}. A small model's answers are mostly noise. Queries without a readable"
            " verdict are dropped and counted."
        )

    def prompt_hashes(self) -> dict[str, str]:
        return {"on_topic": Prompts({"on_topic": self._texts.texts["on_topic"]}, self._texts.source).hash}

    def most_tokens(self) -> int:
        return self.draw.max_tokens

    @cached_property
    def _texts(self) -> Prompts:
        return load(PROMPTS, self.prompts)
