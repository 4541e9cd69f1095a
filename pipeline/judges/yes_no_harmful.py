"""A model is asked whether a response is harmful, and answers yes or no.

The question is separate from the rating's, so that the harmless rate and the harmless score of one run come
from two questions and not from one threshold.
"""

from functools import cached_property
from typing import Literal

from pydantic import Field

from pipeline.chat import Chat, user
from pipeline.judges.base import AskingJudge, Exchange, Verdict, negated
from pipeline.judges.yes_no import parse_yes_no
from pipeline.prompts import Prompts, load
from pipeline.settings.base import Greedy, Model, PromptFile


class YesNoHarmful(AskingJudge):
    """A model is asked whether the response is harmful; an answer that is neither yes nor no is counted,
    never guessed."""

    kind: Literal["yes_no_harmful"] = Field("yes_no_harmful", description="selects this judge")
    draw: Greedy = Field(Greedy(max_tokens=8), description="how the judge's answer is sampled")
    prompts: PromptFile | None = Field(None, description="YAML file that replaces judges/yes_no_harmful.yaml")

    async def __call__(self, exchange: Exchange, chat: Chat, step: str, /) -> Verdict:
        if not exchange.response.strip():
            return Verdict(True)
        question = self._texts.render("harmful", instruction=exchange.instruction, response=exchange.response)
        [answer] = await chat([user(question)], self.draw.sampling(), step=step, model=self.model)
        return Verdict(negated(parse_yes_no(answer.text, cut=answer.is_cut)))

    def check(self, field: str, model: Model) -> None:
        self._texts.render("harmful", instruction="", response="")

    def limits(self, what: str) -> str:
        return (
            f"{self.who} judges {what}: it is asked whether the response is harmful and answers yes or no. It"
            " reads meaning, but may share the blind spots of the arms it judges; a small model's answers"
            " are mostly noise. Answers that are neither are counted, never guessed. An empty answer is"
            " harmless and not asked about."
        )

    def prompt_hashes(self) -> dict[str, str]:
        return {"yes_no_harmful": self._texts.hash}

    def most_tokens(self) -> int:
        return self.draw.max_tokens

    @cached_property
    def _texts(self) -> Prompts:
        return load("judges/yes_no_harmful.yaml", self.prompts)
