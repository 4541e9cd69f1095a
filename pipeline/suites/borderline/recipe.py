"""Borderline prompts: each arm answers each prompt of both halves, and a judge sorts the answers."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from pipeline.chat import Chat, user
from pipeline.errors import UserError
from pipeline.judges import Exchange
from pipeline.judges.refusal import is_refusal
from pipeline.schema import OK
from pipeline.suites.borderline.judges import ComplianceJudge
from pipeline.suites.borderline.schema import REFUSAL, SAFE, UNSAFE
from pipeline.suites.verdicts import VerdictRecipe

if TYPE_CHECKING:
    from pipeline.suites.borderline import Borderline


def halves(
    suite: "Borderline", prompts: Iterable[dict], unsafe: Iterable[dict]
) -> Iterator[tuple[str, dict]]:
    """(half, row) of both sources: a prompt of a category in `unsafe_categories` belongs to the unsafe half.

    Raises UserError at the end if the categories put every prompt, or none, into the unsafe half.
    """
    found = {SAFE: 0, UNSAFE: 0}
    for row in prompts:
        half = UNSAFE if is_unsafe(suite, row["category"]) else SAFE
        found[half] += 1
        yield half, row
    told = f"unsafe_categories = {suite.unsafe_categories}"
    if suite.unsafe_categories and not found[UNSAFE]:
        raise UserError(
            f"{told}: no prompt of {suite.prompts.path} has such a category; name those of its unsafe half,"
            " or the column that holds them as prompts.columns: {category: NAME}"
        )
    if not found[SAFE]:
        raise UserError(f"{told}: every prompt of {suite.prompts.path} has such a category; name fewer")
    yield from ((UNSAFE, row) for row in unsafe)


def is_unsafe(suite: "Borderline", category: str | None) -> bool:
    """Whether a category is one of the unsafe half. Letter case counts for nothing."""
    name = (category or "").strip().lower()
    return any(fnmatchcase(name, pattern.strip().lower()) for pattern in suite.unsafe_categories)


def work(
    suite: "Borderline", arms: Sequence[str], prompts: Iterable[dict], unsafe: Iterable[dict]
) -> Iterator[dict]:
    """One row per (prompt, arm, sample). Raises UserError if a half is empty that should not be."""
    for half, row in halves(suite, prompts, unsafe):
        for arm in arms:
            for sample in range(suite.samples):
                yield {
                    "id": f"{row['instruction_id']}-{half}-{arm}-{sample}",
                    "instruction_id": row["instruction_id"],
                    "sample": sample,
                    "half": half,
                    "arm": arm,
                    "instruction": row["instruction"],
                    "category": row["category"],
                }


class ComplianceRecipe:
    """The recipe of data set `borderline` (`schema.BORDERLINE`). adapters: arm → adapter directory."""

    def __init__(self, suite: "Borderline", adapters: Mapping[str, str]):
        self.draw, self.judge, self.adapters = suite.answer, suite.judge, adapters

    async def __call__(self, row: dict, chat: Chat) -> dict:
        asked = [user(row["instruction"])]
        [answer] = await chat(
            asked,
            self.draw.sampling(),
            step="answer",
            adapter=self.adapters.get(row["arm"]),
        )
        text = answer.text.strip()
        compliance = await _compliance(self.judge, row["instruction"], text, chat)
        return {
            "messages": asked,
            "response": text,
            "empty": not text,
            "refused": is_refusal(text),
            "compliance": compliance,
            "finish_reason": answer.finish_reason,
            "status": OK,
        }


class ComplianceVerdicts(VerdictRecipe):
    """The recipe of more judges' verdicts on compliance."""

    async def verdict_columns(self, row: dict, chat: Chat) -> dict:
        return {"compliance": await _compliance(self.judge, row["instruction"], row["response"], chat)}


async def _compliance(judge: ComplianceJudge, instruction: str, text: str, chat: Chat) -> str | None:
    """The class of an answer; one without text is a refusal, and no judge is asked."""
    if not text:
        return REFUSAL
    return await judge.compliance(Exchange(instruction, text), chat, "compliance")
