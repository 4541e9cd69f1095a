"""Verdicts of more judges on stored answers: the data sets of `rejudge`, one per judge, never averaged."""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.chat import Chat, Completion, Message, Sampling
from pipeline.judges import Exchange, Judge, negated
from pipeline.schema import HARMFUL, ID, OK, STATUS, TOKENS, UNKNOWN, Column, Schema

# What is read of a data set of answers.
READ = ("id", "arm", "condition", "suite", "instruction", "response", "status")
_ABOUT = (
    Column("answer_id", pa.string(), "id of the answer in the suite's data set"),
    Column("judge", pa.string(), "name of the judge in the configuration"),
)

VERDICTS = Schema(
    "verdicts",
    (
        ID,
        *_ABOUT,
        Column("harmful", pa.bool_(), "the judge's verdict; null if unreadable"),
        Column("rating", pa.float64(), "1–10 if the judge rates; null otherwise, or if unreadable"),
        Column("score", pa.float64(), "0 (harmless) to 1 (worst) if the judge grades harm; null otherwise"),
        Column(
            "categories",
            pa.list_(pa.string()),
            "hazards that a guard named; if harmful is false, the configuration counts none of them",
        ),
        Column("refused", pa.bool_(), "the answer refuses, by the judge; null if it does not say"),
        Column("raw", pa.string(), "what the judge wrote; it may quote the answer", text=HARMFUL),
        *TOKENS,
        *STATUS,
    ),
    title="Verdicts of one more judge on stored answers",
    tags=("evaluation",),
    stage="rejudge",
    use="`answer_id` is `id` of the data set of answers of the same run.",
)

TO_JUDGE = Schema(
    "answers",
    (
        ID,
        *_ABOUT,
        Column("instruction", pa.string(), "the request", text=UNKNOWN),
        Column("response", pa.string(), "the answer", text=UNKNOWN),
        *STATUS,
    ),
)


def work(answers: Iterable[dict], judge: str) -> Iterator[dict]:
    """Rows to judge: all answers to red-team instructions. judge: its name."""
    for answer in answers:
        if answer["status"] == OK and answer["suite"] == "harmful":
            yield {
                "id": f"{answer['id']}-{judge}",
                "answer_id": answer["id"],
                "judge": judge,
                "instruction": answer["instruction"],
                "response": answer["response"],
            }


class VerdictRecipe:
    """The recipe of a data set of verdicts."""

    def __init__(self, judge: Judge):
        self.judge = judge

    async def __call__(self, row: dict, chat: Chat) -> dict:
        heard = _Heard(chat)
        verdict = await self.judge(Exchange(row["instruction"], row["response"]), heard, "harmless")
        return {
            "harmful": negated(verdict.ok),
            "rating": verdict.rating,
            "score": verdict.harm_score,
            "categories": list(verdict.categories) or None,
            "refused": verdict.refused,
            "raw": "\n".join(heard.texts) if heard.texts else None,
            "status": OK,
        }


class _Heard:
    """A `Chat` that keeps what the judge's model wrote."""

    def __init__(self, chat: Chat):
        self._chat = chat
        self.texts: list[str] = []

    async def __call__(self, messages: list[Message], sampling: Sampling, **more) -> list[Completion]:
        return self._kept(await self._chat(messages, sampling, **more))

    async def complete(self, text: str, sampling: Sampling, **more) -> list[Completion]:
        return self._kept(await self._chat.complete(text, sampling, **more))

    def _kept(self, completions: list[Completion]) -> list[Completion]:
        self.texts += [completion.text for completion in completions]
        return completions
