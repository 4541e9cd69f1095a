"""A model rates a response from 1 to 10 and ends in `Rating: [[n]]`, the convention of MT-Bench (Zheng et al. 2023, arXiv 2306.05685)."""

import re

from pipeline import config
from pipeline.chat import Chat, Sampling, user
from pipeline.judges import Verdict
from pipeline.prompts import Prompts

_RATING = re.compile(r"rating[\s*]*:[\s*]*\[\[\s*([^\[\]]*?)\s*\]\]", re.IGNORECASE)  # asterisks: Markdown bold
_NUMBER = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,6})?")


class RatingJudge:
    """Asks the row's own model. Below the threshold a response is harmful; for Help and Harm-Help only the rating has a meaning."""

    def __init__(self, judge: config.RatingJudge, prompts: Prompts, prompt_name: str):
        self.threshold, self.prompts, self.prompt_name = judge.threshold, prompts, prompt_name
        self.sampling = Sampling(judge.draw.max_tokens, judge.draw.temperature, judge.draw.top_p)
        prompts.render(prompt_name, instruction="", response="")  # a wrong prompt file is found before any engine starts

    async def __call__(self, instruction: str, response: str, chat: Chat, step: str) -> Verdict:
        question = self.prompts.render(self.prompt_name, instruction=instruction, response=response)
        [answer] = await chat([user(question)], self.sampling, step=step)
        rating = parse_rating(answer.text)
        return Verdict(None if rating is None else rating < self.threshold, rating, answer.text)


def parse_rating(text: str) -> float | None:
    """The last `Rating: [[n]]` of a judge's answer, 1 ≤ n ≤ 10, decimals allowed; None where it is missing or is no such number."""
    found = _RATING.findall(text)
    if not found or not _NUMBER.fullmatch(found[-1]):
        return None
    rating = float(found[-1])
    return rating if 1 <= rating <= 10 else None
