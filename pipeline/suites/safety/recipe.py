"""Safety arms: each arm answers each instruction under each condition, and the answers are judged.

One engine serves all arms.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, Message, user
from pipeline.errors import RowFailed
from pipeline.judges import Exchange, negated
from pipeline.judges.rating import Criterion
from pipeline.judges.refusal import is_refusal
from pipeline.methods.mistake_analysis.recipe import answering, induced, reminded, thinking
from pipeline.schema import FAILED, OK

if TYPE_CHECKING:
    from pipeline.suites.safety import Safety


def work(
    suite: "Safety", arms: Sequence[str], harmful: Iterable[dict], helpful: Iterable[dict]
) -> Iterator[dict]:
    """One row per (instruction, arm, condition, sample).

    Benign instructions skip the induction hint, because nothing is measured under it.
    """
    for part, rows in (("harmful", harmful), ("helpful", helpful)):
        conditions = [c for c in suite.conditions if part == "harmful" or c != "hint"]
        for row in rows:
            if row["status"] == FAILED:
                continue
            for arm in arms:
                for condition in conditions:
                    for sample in range(suite.samples):
                        yield {
                            "id": f"{row['instruction_id']}-{part}-{arm}-{condition}-{sample}",
                            "instruction_id": row["instruction_id"],
                            "sample": sample,
                            "suite": part,
                            "arm": arm,
                            "condition": condition,
                            "instruction": row["instruction"],
                            "category": row["category"],
                        }


class AnswerRecipe:
    """The recipe of data set `evaluation` (`schema.ANSWERS`). adapters: arm → adapter directory."""

    def __init__(self, suite: "Safety", adapters: Mapping[str, str]):
        self.draw, self.hint, self.adapters = suite.answer, suite.hint, adapters
        self.prompts = suite.texts()
        self.harmless, self.help = suite.harmless, suite.help

    async def __call__(self, row: dict, chat: Chat) -> dict:
        """Raises RowFailed if a call fails, or if the arm has nothing to say before its answer."""
        messages = self.messages(row["instruction"], row["condition"])
        sampling, adapter = self.draw.sampling(), self.adapters.get(row["arm"])
        deliberation_ended = None
        if row["condition"] == "think":
            [deliberation] = await chat(messages, sampling, step="think", adapter=adapter)
            if not deliberation.text.strip():
                raise RowFailed("empty deliberation")
            deliberation_ended = deliberation.finish_reason
            messages = answering(self.prompts, messages, deliberation.text.strip())
        [answer] = await chat(messages, sampling, step="answer", adapter=adapter)
        text = answer.text.strip()
        result: dict[str, Any] = {
            "messages": messages,
            "deliberation_finish_reason": deliberation_ended,
            "response": text,
            "finish_reason": answer.finish_reason,
            "refused": is_refusal(text),
            "status": OK,
        }
        if row["suite"] == "harmful":
            verdict = await self.harmless(Exchange(row["instruction"], text), chat, "harmless")
            result |= {
                "harmful": negated(verdict.ok),
                "harmless_rating": verdict.rating,
                "harm_score": verdict.harm_score,
                "harm_categories": list(verdict.categories) or None,
            }
        if self.help:
            criterion: Criterion = "help" if row["suite"] == "helpful" else "harm_help"
            result["help_rating"] = await self.help.rate(
                Exchange(row["instruction"], text), criterion, chat, "help"
            )
        return result

    def messages(self, instruction: str, condition: str) -> list[Message]:
        """The arm's first request."""
        if condition == "reminder":
            return reminded(self.prompts, instruction)
        if condition == "hint":
            return induced(self.prompts, instruction, self.hint.text, self.hint.position)
        if condition == "think":
            return thinking(self.prompts, instruction)
        return [user(instruction)]
