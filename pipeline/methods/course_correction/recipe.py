"""C²-Syn (Xu et al., EMNLP 2024, arXiv 2407.16637): responses that turn away from harm sooner or later, and
their order.

A harmful response is cut at punctuation marks into beginnings of rising length. A corrective trigger follows
each beginning, and a well-aligned model continues the same turn. The ranking for one request is

    safe response > turned away after the shortest beginning > … > after the longest > full harmful response

and every two responses are a preference pair: six responses give 15 pairs.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from pipeline.chat import Chat, assistant, user
from pipeline.data import storage
from pipeline.errors import RowFailed
from pipeline.judges import Exchange
from pipeline.judges.refusal import is_refusal
from pipeline.methods.course_correction.schema import PAIR
from pipeline.methods.unfinished import Sampled, lost
from pipeline.schema import DROPPED, OK

if TYPE_CHECKING:
    from pipeline.methods.course_correction import CourseCorrection

MARKS = frozenset(',.!:;?-"(){}[]')


class _Unfit(Exception):
    """A request that the method cannot use; the message is the reason, with the kind before the colon."""


class _Lost(RowFailed):
    """One response that was rejected or could not be made."""


@dataclass(frozen=True)
class _Beginning:
    """The start of a synthetic response: `harmful` is opener + cut response, `trigger` turns it around."""

    number: int
    harmful: str
    trigger: str

    @property
    def prefill(self) -> str:
        return f"{self.harmful} {self.trigger}"


class CourseCorrectionRecipe:
    """The recipe of data set `corrections` (`schema.CORRECTIONS`)."""

    def __init__(self, config: "CourseCorrection", seed: int):
        self.config, self.seed = config, seed
        self.adapter = config.aligned.adapter and storage.absolute(config.aligned.adapter)
        texts = config.texts()
        self.openers, self.triggers = texts.lines("openers"), texts.lines("triggers")
        self.sampling = config.continuation.sampling()

    async def __call__(self, row: dict, chat: Chat) -> dict:
        """Raises RowFailed if every synthetic response's call failed: such a row is retried, not dropped."""
        drawn = random.Random(f"{self.seed}/{row['id']}")
        try:
            harmful = select(row, self.config)
            initial = cut(harmful, self.config.cuts, drawn)
        except _Unfit as e:
            return {"unsafe_response": None, "status": DROPPED, "error": str(e)}
        opener = drawn.choice(self.openers)
        beginnings = [
            _Beginning(i, f"{opener} {text}", drawn.choice(self.triggers))
            for i, text in enumerate(initial, start=1)
        ]
        sampled = self.config.sampled(row["instruction"])
        made = await asyncio.gather(
            self._safe(row, chat, sampled),
            *(self._synthetic(row, beginning, chat, sampled) for beginning in beginnings),
            return_exceptions=True,
        )
        failed = [response for response in made[1:] if type(response) is RowFailed]
        if len(failed) == len(beginnings):
            raise failed[0]
        responses, missing = _sorted_out([*made, _response("harmful", f"{opener} {harmful}")])
        result = {
            "unsafe_response": harmful,
            "opener": opener,
            "responses": responses,
            "lost": missing,
            **sampled.columns,
        }
        if len(responses) < 2:
            return result | {"status": DROPPED, "error": "nothing left to compare"}
        return result | {"status": OK}

    async def _safe(self, row: dict, chat: Chat, sampled: Sampled) -> dict:
        """The source's safe response, or the aligned model's answer if it refuses (see `safe_from`).

        Raises _Lost if there is none.
        """
        if self.config.safe_from != "aligned" and row["safe_response"]:
            return _response("safe", row["safe_response"].strip())
        if self.config.safe_from != "source":
            [answer] = await chat(
                [user(row["instruction"])], self.sampling, step="safe", adapter=self.adapter
            )
            if is_refusal(answer.text):
                if fault := sampled.fault("continuation", answer.text, system=self.sampling.system or ""):
                    sampled.other("continuation", answer)
                    raise _Lost(fault)
                text = sampled.target("continuation", answer)
                if text is None:
                    raise _Lost(lost("refusal"))
                return _response("safe", text.strip(), finish_reason=answer.finish_reason)
        raise _Lost("no safe response")

    async def _synthetic(self, row: dict, beginning: _Beginning, chat: Chat, sampled: Sampled) -> dict:
        """A response that begins harmfully and turns away; if it does not, raises _Lost.

        Raises RowFailed if a call fails.
        """
        instruction, prefill = row["instruction"], beginning.prefill
        [completion] = await chat(
            [user(instruction), assistant(prefill)],
            self.sampling,
            step=f"syn{beginning.number}",
            adapter=self.adapter,
        )
        if not completion.text.strip():
            raise _Lost("empty continuation")
        if fault := sampled.fault("continuation", completion.text, continues=True):
            sampled.other("continuation", completion)
            raise _Lost(fault)
        text = sampled.target("continuation", completion)
        if text is None:
            raise _Lost(lost("continuation"))
        # The model continues mid-text, so keep its leading whitespace (or lack of it).
        turn = (beginning.trigger + text).rstrip()
        exchange = Exchange(instruction, turn, beginning.harmful, tuple(self.triggers))
        verdict = await self.config.judge(exchange, chat, f"check{beginning.number}")
        if not verdict.ok:
            raise _Lost("unreadable verdict" if verdict.ok is None else "does not correct course")
        return _response(
            "syn",
            f"{beginning.harmful} {turn}",
            harmful_end=len(beginning.harmful),
            trigger_end=len(prefill),
            trigger=beginning.trigger,
            finish_reason=completion.finish_reason,
        )


def select(row: dict, config: "CourseCorrection") -> str:
    """The first long enough unsafe response, if the request holds a keyword. Raises _Unfit otherwise."""
    request = row["instruction"].lower()
    if config.keywords and not any(keyword.lower() in request for keyword in config.keywords):
        raise _Unfit("no keyword in the request")
    responses = row["unsafe_responses"]
    if not responses:
        raise _Unfit("no unsafe response in the source")
    words = [len(response.split()) for response in responses]
    for response, count in zip(responses, words, strict=True):
        if count > config.min_words:
            return response.strip()
    raise _Unfit(f"unsafe response too short: {max(words)} words")


def cut(text: str, cuts: int, drawn: random.Random) -> list[str]:
    """Beginnings of a response, shortest first: the i-th ends at punctuation mark number i × step.

    With t marks the step is ⌊t / cuts⌋ or one less, but never 0. Raises _Unfit if there are fewer marks than
    cuts.
    """
    ends = [i + 1 for i, character in enumerate(text) if character in MARKS]
    longest = len(ends) // cuts
    if longest < 1:
        raise _Unfit(f"too few punctuation marks: {len(ends)} for {cuts} cuts")
    step = drawn.choice([longest - 1, longest]) or 1
    return [text[: ends[i * step - 1]] for i in range(1, cuts + 1)]


def pairs(rows: Iterable[dict], drops: Counter[str]) -> Iterator[dict]:
    """Rows of `schema.PREFERENCES`: every two responses of a row of `corrections`, the better one
    chosen.

    Two responses with equal text make no pair; `drops` counts them.
    """
    for row in rows:
        if row["status"] != OK:
            continue
        for better, worse in combinations(sorted(row["responses"], key=lambda response: response["rank"]), 2):
            if better["text"] == worse["text"]:
                drops["equal responses"] += 1
                continue
            yield {
                "id": f"{row['id']}-{better['rank']}-{worse['rank']}",
                "instruction_id": row["instruction_id"],
                "group": row["id"],
                "category": row["category"],
                "prompt": [user(row["instruction"])],
                "chosen": [assistant(better["text"])],
                "rejected": [assistant(worse["text"])],
                "rank_chosen": better["rank"],
                "rank_rejected": worse["rank"],
                "kind": PAIR,
            }


def _response(kind: str, text: str, **more: int | str) -> dict:
    return {"kind": kind, "text": text, **more}


def _sorted_out(made: list[dict | BaseException]) -> tuple[list[dict], list[str]]:
    """The kept responses with their ranks, best first, and why the others are lost."""
    responses, missing = [], []
    for rank, response in enumerate(made, start=1):
        if isinstance(response, RowFailed):
            missing.append(f"rank {rank}: {response}")
        elif isinstance(response, BaseException):
            raise response
        else:
            responses.append({"rank": rank, **response})
    return responses, missing
