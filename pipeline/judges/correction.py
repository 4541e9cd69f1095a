"""Does a continuation correct course? Phrases, a model's yes or no, or the toy world's own knowledge: one call, one verdict."""

import hashlib
import re
from typing import Protocol

from pipeline import config
from pipeline.chat import Chat, Completion, Message, Sampling, user
from pipeline.prompts import Prompts

_YES_NO = re.compile(r"""[\W_]*(yes|no)(?![^\W_])(?!["'*_]*\s?(?:or\b|/))""", re.IGNORECASE)


class CorrectionJudge(Protocol):
    async def __call__(self, instruction: str, prefill: str, continuation: str, chat: Chat, step: str) -> bool | None:
        """Whether the answer to `instruction` that began with `prefill` turns away from the harm in `continuation`.

        None where the verdict cannot be read. A model is asked through `chat` under the name `step`, or through a server of the judge's
        own; errors of either are passed on.
        """
        ...


def make_correction(judge: config.CorrectionJudge, prompts: Prompts) -> CorrectionJudge:
    """The judge that a configuration describes; `prompts` is the set `course_correction`. It can be pickled, and opens nothing before it is asked.

    Raises UserError where `prompts` lacks what the judge needs.
    """
    if isinstance(judge, config.YesNoJudge):
        return YesNo(judge, prompts)
    if isinstance(judge, config.ToyJudge):
        return judge_toy
    from pipeline.judges.correction_phrases import Phrases

    return Phrases(prompts.lines("triggers"))


async def judge_toy(_instruction: str, _prefill: str, continuation: str, _chat: Chat, _step: str) -> bool:
    from pipeline.toy.world import corrects

    return corrects(continuation)


class YesNo:
    """Asks the row's own model without any adapter, or a server of its own."""

    def __init__(self, judge: config.YesNoJudge, prompts: Prompts):
        self.prompts, self.endpoint = prompts, judge.endpoint
        self.sampling = Sampling(judge.draw.max_tokens, judge.draw.temperature, judge.draw.top_p)
        self._server = None
        prompts.render("corrects", instruction="", prefill="", continuation="")  # a wrong prompt file is found before any engine starts

    async def __call__(self, instruction: str, prefill: str, continuation: str, chat: Chat, step: str) -> bool | None:
        question = [user(self.prompts.render("corrects", instruction=instruction, prefill=prefill, continuation=continuation))]
        if self.endpoint is None:
            [answer] = await chat(question, self.sampling, step=step)
        else:
            answer = await self._ask_server(question)
        return parse_yes_no(answer.text)

    async def _ask_server(self, question: list[Message]) -> Completion:
        if self._server is None:
            from pipeline.inference.endpoint import EndpointModel

            self._server = EndpointModel(self.endpoint)
        digest = hashlib.blake2b(question[0]["content"].encode(), digest_size=8).digest()
        [answer] = await self._server.complete(question, self.sampling, seed=int.from_bytes(digest) >> 2, adapter=None)
        return answer

    def __getstate__(self) -> dict:
        """Without the connection, whose headers hold the key: each process opens its own."""
        return {**self.__dict__, "_server": None}


def parse_yes_no(text: str) -> bool | None:
    """True where the first word of an answer is yes, False where it is no, in any case and after any punctuation; None otherwise.

    An answer that only repeats the choice (`yes or no`, `yes/no`) is none.
    """
    found = _YES_NO.match(text)
    return None if found is None else found[1].lower() == "yes"
