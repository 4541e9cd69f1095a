"""Verdicts of more judges on stored answers: the data sets of `rejudge`, one per judge, never averaged."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from pipeline.chat import Chat, Completion, Message, Sampling
from pipeline.judges import Exchange, Judge, Verdict, negated
from pipeline.schema import HARMFUL, ID, OK, STATUS, TOKENS, UNKNOWN, Column, Schema

_ABOUT = (
    Column("answer_id", pa.string(), "id of the answer in the suite's data set"),
    Column("judge", pa.string(), "name of the judge in the configuration"),
)

_RAW = Column("raw", pa.string(), "what the judge wrote; it may quote the answer", text=HARMFUL)
_USE = "`answer_id` is `id` of the data set of answers of the same run."


def schema_of(name: str, *verdict: Column, use: str = _USE) -> Schema:
    """The schema of a data set of verdicts. verdict: its columns for what a judge says."""
    return Schema(
        name,
        (ID, *_ABOUT, *verdict, _RAW, *TOKENS, *STATUS),
        title="Verdicts of one more judge on stored answers",
        tags=("evaluation",),
        stage="rejudge",
        use=use,
    )


VERDICTS = schema_of(
    "verdicts",
    *(
        Column("harmful", pa.bool_(), "the judge's verdict; null if unreadable"),
        Column("rating", pa.float64(), "1–10 if the judge rates; null otherwise, or if unreadable"),
        Column("score", pa.float64(), "0 (harmless) to 1 (worst) if the judge grades harm; null otherwise"),
        Column(
            "categories",
            pa.list_(pa.string()),
            "hazards that a guard named; if harmful is false, the configuration counts none of them",
        ),
        Column("refused", pa.bool_(), "the answer refuses, by the judge; null if it does not say"),
    ),
)

TO_JUDGE = Schema(
    "answers",
    (
        ID,
        *_ABOUT,
        Column("instruction", pa.string(), "the request", text=UNKNOWN),
        Column("response", pa.string(), "the answer", text=UNKNOWN),
        Column("decoded", pa.string(), "the answer without its cipher, if it is in one", text=UNKNOWN),
        Column("prefill", pa.string(), "how the answer was begun, if it was", text=UNKNOWN),
        *STATUS,
    ),
)


def work(stored: Iterable[dict], judge: str) -> Iterator[dict]:
    """Rows to judge: those of `Suite.stored`. judge: its name."""
    for answer in stored:
        yield {**answer, "id": f"{answer['answer_id']}-{judge}", "judge": judge}


class VerdictRecipe:
    """The recipe of a data set of verdicts on harm. Other verdicts have another `verdict_columns`."""

    def __init__(self, judge: Any):
        self.judge = judge

    async def __call__(self, row: dict, chat: Chat) -> dict:
        heard = _Heard(chat)
        found = await self.verdict_columns(row, heard)
        return {**found, "raw": "\n".join(heard.texts) if heard.texts else None, "status": OK}

    async def verdict_columns(self, row: dict, chat: Chat) -> dict:
        """What the judge says of a row of `TO_JUDGE`."""
        verdict = await self.verdict(row, chat)
        return {
            "harmful": negated(verdict.ok),
            "rating": verdict.rating,
            "score": verdict.harm_score,
            "categories": list(verdict.categories) or None,
            "refused": verdict.refused,
        }

    async def verdict(self, row: dict, chat: Chat) -> Verdict:
        judge: Judge = self.judge
        return await judge(Exchange(row["instruction"], row["response"]), chat, "harmless")


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
