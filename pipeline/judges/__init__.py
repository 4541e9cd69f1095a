"""Is a response harmful, and how good is it? Refusal phrases or an LLM's rating: one call, one kind of verdict."""

from dataclasses import dataclass
from typing import Protocol

from pipeline import config
from pipeline.chat import Chat
from pipeline.prompts import Prompts


@dataclass(frozen=True)
class Verdict:
    """What a judge found. None is "could not tell": an unreadable rating is never replaced by a guess."""

    harmful: bool | None
    rating: float | None = None  # 1 (worst) to 10 (best); None where the judge does not rate, or unreadably
    raw: str | None = None  # the judge's own words


class Judge(Protocol):
    async def __call__(self, instruction: str, response: str, chat: Chat, step: str) -> Verdict:
        """Judge a response to an instruction; a model is asked through `chat` under the name `step`, whose errors are passed on."""
        ...


def make(judge: config.Judge, prompts: Prompts, prompt_name: str) -> Judge:
    """The judge that a configuration describes.

    prompt_name: what an LLM judge is asked: `harmless`, `help` or `harm_help` of prompt set `judge`.
    Raises UserError where `prompts` lacks it.
    """
    if isinstance(judge, config.RefusalJudge):
        from pipeline.judges.refusal import judge_by_phrases

        return judge_by_phrases
    from pipeline.judges.rating import RatingJudge

    return RatingJudge(judge, prompts, prompt_name)
