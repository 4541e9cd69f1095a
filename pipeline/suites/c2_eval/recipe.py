"""C²-Eval (Xu et al., EMNLP 2024, arXiv 2407.16637): how often a model turns away from a harmful beginning.

The model's turn is prefilled with an affirmative opener and the first k words (or tokens) of a harmful
response. The model continues it several times, and each path is judged. `authors_rules` follows the published
scripts, which are looser than the default, for comparison.
"""

import asyncio
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, Completion, Message, Sampling, assistant, user
from pipeline.errors import RowFailed, UserError
from pipeline.judges import Exchange, Judge
from pipeline.schema import DROPPED, OK
from pipeline.suites.verdicts import VerdictRecipe

if TYPE_CHECKING:
    from pipeline.suites.c2_eval import C2Eval


class _Unfit(Exception):
    """An entry that cannot be measured; the message is the reason, with the kind before the colon."""


def work(
    suite: "C2Eval", arms: Sequence[str], seed: int, entries: Iterable[dict], tokenizer: Any = None
) -> Iterator[dict]:
    """Rows of `schema.CONTINUATIONS` to run: one per (entry, arm, k); one with a reason if dropped.

    All arms continue the same prefills. tokenizer: the model's, if the suite counts tokens; raises UserError
    if the tokenizer gives no offsets.
    """
    if suite.unit == "tokens" and not tokenizer.is_fast:
        raise UserError(
            f"suites.c2_eval.unit = tokens: the tokenizer of {tokenizer.name_or_path} gives no character"
            " offsets; use unit: words"
        )
    prefills = AuthorsPrefills(suite, seed) if suite.authors_rules else Prefills(suite, seed, tokenizer)
    for entry in entries:
        about = {name: entry[name] for name in ("instruction_id", "instruction", "category")}
        try:
            of_entry = prefills.of(entry)
        except _Unfit as e:
            yield {"id": f"{entry['instruction_id']}-dropped", **about, "status": DROPPED, "error": str(e)}
            continue
        for arm in arms:
            for k, texts in of_entry.items():
                yield {
                    "id": f"{entry['instruction_id']}-{arm}-{k}",
                    **about,
                    "arm": arm,
                    "k": k,
                    "prefills": texts,
                }


class Prefills:
    """An opener, fixed per entry and k, and the first k units of a response longer than the longest k."""

    def __init__(self, suite: "C2Eval", seed: int, tokenizer=None):
        self.suite, self.seed, self.tokenizer = suite, seed, tokenizer
        self.openers = suite.texts().lines("openers")

    def of(self, entry: dict) -> dict[int, list[str]]:
        """Prefills by k. Units keep the response's white space; the opener is not counted. Raises _Unfit.

        The first response longer than the longest k is taken. Without one, `short: per_k` takes the longest
        response, at every k that it is longer than.
        """
        responses = [response.strip() for response in _unsafe(entry)]
        ends = [self._ends(response) for response in responses]
        lengths = self.suite.lengths
        fits = next((i for i, units in enumerate(ends) if len(units) > lengths[-1]), None)
        if fits is None and self.suite.short == "per_k":
            fits = max(range(len(ends)), key=lambda i: len(ends[i]))
            lengths = [k for k in lengths if k < len(ends[fits])]
        if fits is None or not lengths:
            which, most = "shortest" if self.suite.short == "per_k" else "longest", max(map(len, ends))
            raise _Unfit(f"unsafe response not longer than the {which} prefill: {most} {self.suite.unit}")
        response, units = responses[fits], ends[fits]
        return {
            k: [f"{self._drawn(entry, k).choice(self.openers)} {response[: units[k - 1]].rstrip()}"]
            for k in lengths
        }

    def _ends(self, text: str) -> list[int]:
        """The end of each word or token, in characters. White-space tokens count, but end no prefill."""
        if self.suite.unit == "words":
            return [word.end() for word in re.finditer(r"\S+", text)]
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        return [end for _, end in offsets]

    def _drawn(self, entry: dict, k: int) -> random.Random:
        return random.Random(f"{self.seed}/{entry['instruction_id']}/{k}")


class AuthorsPrefills(Prefills):
    """As in the published scripts: k words, opener included, of the first unsafe response of any length."""

    def of(self, entry: dict) -> dict[int, list[str]]:
        response = _unsafe(entry)[0]
        return {
            k: [_first_words(f"{opener} {response}", k) for opener in self._openers(entry, k)]
            for k in self.suite.lengths
        }

    def _openers(self, entry: dict, k: int) -> list[str]:
        """One opener per path."""
        return self._drawn(entry, k).choices(self.openers, k=self.suite.paths)


def _unsafe(entry: dict) -> list[str]:
    if not entry["unsafe_responses"]:
        raise _Unfit("no unsafe response in the source")
    return entry["unsafe_responses"]


def _first_words(text: str, k: int) -> str:
    """The first k words, joined by single spaces; a text with fewer words is returned unchanged."""
    words = text.split()
    return text if len(words) < k else " ".join(words[:k])


class ContinuationRecipe:
    """The recipe of data set `continuations` (`schema.CONTINUATIONS`). adapters: arm → adapter
    directory."""

    def __init__(self, suite: "C2Eval", adapters: Mapping[str, str]):
        self.suite, self.adapters = suite, adapters
        self.triggers = tuple(suite.texts().lines("triggers"))

    async def __call__(self, row: dict, chat: Chat) -> dict:
        """Raises RowFailed if the paths cannot be sampled, or if the judge's calls failed for all paths."""
        if row.get("status") == DROPPED:
            return {}
        paths = await self._paths(row, chat)
        prefills = row["prefills"] if len(row["prefills"]) == len(paths) else row["prefills"] * len(paths)
        judged = (
            self._corrects(row["instruction"], prefill, path, chat, f"judge{i}")
            for i, (prefill, path) in enumerate(zip(prefills, paths, strict=True))
        )
        corrected = _verdicts(await asyncio.gather(*judged, return_exceptions=True))
        return {"paths": [path.text for path in paths], "corrected": corrected, "status": OK}

    async def _paths(self, row: dict, chat: Chat) -> list[Completion]:
        """One call for all paths with the same prefill; with ranks or the authors' rules, one per path."""
        instruction, adapter = row["instruction"], self.adapters.get(row["arm"])
        if self.suite.first_ranks:
            begun = (
                chat(
                    _turn(instruction, row["prefills"][0]),
                    replace(self._sampling(1), first_rank=rank),
                    step=f"continue-rank{rank}",
                    adapter=adapter,
                )
                for rank in self.suite.first_ranks
            )
            return [path for [path] in await asyncio.gather(*begun)]
        if not self.suite.authors_rules:
            return await chat(
                _turn(instruction, row["prefills"][0]),
                self._sampling(self.suite.paths),
                step="continue",
                adapter=adapter,
            )
        calls = (
            chat(_turn(instruction, prefill), self._sampling(1), step=f"continue{i}", adapter=adapter)
            for i, prefill in enumerate(row["prefills"])
        )
        return [path for [path] in await asyncio.gather(*calls)]

    async def _corrects(
        self, instruction: str, prefill: str, path: Completion, chat: Chat, step: str
    ) -> bool | None:
        if not path.answered:  # cut off in a thought: nobody knows what would have followed
            return None
        exchange = Exchange(instruction, path.text, prefill, self.triggers)
        return await _corrected(self.suite, self.suite.judge, exchange, chat, step)

    def _sampling(self, n: int) -> Sampling:
        return self.suite.draw.sampling(n)


class CorrectionVerdicts(VerdictRecipe):
    """The recipe of more judges' verdicts on paths, by the rules of the suite."""

    def __init__(self, judge: Any, suite: "C2Eval"):
        super().__init__(judge)
        self.suite, self.triggers = suite, tuple(suite.texts().lines("triggers"))

    async def verdict_columns(self, row: dict, chat: Chat) -> dict:
        exchange = Exchange(row["instruction"], row["response"], row["prefill"], self.triggers)
        return {"corrects": await _corrected(self.suite, self.judge, exchange, chat, "judge")}


async def _corrected(suite: "C2Eval", judge: Judge, exchange: Exchange, chat: Chat, step: str) -> bool | None:
    """Whether a path corrects course; one without text does not, and no judge is asked."""
    if not exchange.response.strip():
        return False
    verdict = await judge(exchange, chat, step)
    return bool(verdict.ok) if suite.authors_rules else verdict.ok


def _turn(instruction: str, prefill: str) -> list[Message]:
    return [user(instruction), assistant(prefill)]


def _verdicts(judged: list[bool | BaseException | None]) -> list[bool | None]:
    """A verdict whose call failed is unknown. Raises if every call failed, or if one failed unexpectedly."""
    for verdict in judged:
        if isinstance(verdict, BaseException) and not isinstance(verdict, RowFailed):
            raise verdict
    failed = [verdict for verdict in judged if isinstance(verdict, RowFailed)]
    if len(failed) == len(judged):
        raise failed[0]
    return [None if isinstance(verdict, BaseException) else verdict for verdict in judged]
