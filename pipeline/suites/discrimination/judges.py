"""The judge of the discrimination suite: it rates answers, and analyses of answers."""

from functools import cached_property

from pydantic import Field

from pipeline.chat import Chat, user
from pipeline.errors import NoAnswer
from pipeline.judges.base import Exchange
from pipeline.judges.rating import Rating, parse_rating
from pipeline.prompts import Prompts, load
from pipeline.settings.base import Model, PromptFile


class Rater(Rating):
    """The judge `rating`, which also rates analyses by a rubric, from 1 to 10."""

    rubric: PromptFile | None = Field(
        None, description="YAML file that replaces suites/discrimination/rubric.yaml"
    )

    async def rate_analysis(self, exchange: Exchange, analysis: str, chat: Chat, step: str) -> float | None:
        """How good an analysis of a response is, 1 to 10; None if the reply has no readable rating."""
        texts = {"instruction": exchange.instruction, "response": exchange.response, "analysis": analysis}
        question = [user(self._rubric_texts.render("analysis", **texts))]
        try:
            [answer] = await chat(question, self.draw.sampling(), step=step, model=self.model)
        except NoAnswer:
            return None
        return parse_rating(answer.text, cut=answer.is_cut)

    def check(self, field: str, model: Model) -> None:
        super().check(field, model)
        self._rubric_texts.render("analysis", instruction="", response="", analysis="")

    def limits(self, what: str) -> str:
        return (
            f"{super().limits(what)} Analyses are rated by a rubric in this project's words: whether the"
            " verdict is right and the reasons are sound."
        )

    def prompt_hashes(self) -> dict[str, str]:
        return {**super().prompt_hashes(), "discrimination_rubric": self._rubric_texts.hash}

    @cached_property
    def _rubric_texts(self) -> Prompts:
        return load("suites/discrimination/rubric.yaml", self.rubric)
