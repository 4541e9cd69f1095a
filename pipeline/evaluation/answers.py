"""Safety arms: each arm answers each instruction under each condition, and the answers are judged. One engine serves all arms."""

from collections.abc import Iterable, Iterator

from pipeline import judges, prompts
from pipeline.chat import Chat, Message, Sampling, user
from pipeline.config import Config
from pipeline.judges.refusal import is_refusal
from pipeline.recipes.mistake_analysis import induced, reminded
from pipeline.schema import FAILED, OK

VANILLA = "vanilla"


def work(config: Config, harmful: Iterable[dict], helpful: Iterable[dict]) -> Iterator[dict]:
    """One row per (instruction, arm, condition, sample). Benign instructions are not answered under the induction hint: nothing is measured there."""
    arms = [VANILLA, *config.arms, *config.evaluation.adapters]
    for suite, rows in (("harmful", harmful), ("helpful", helpful)):
        conditions = [c for c in config.evaluation.conditions if suite == "harmful" or c != "hint"]
        for row in rows:
            if row["status"] == FAILED:
                continue
            for arm in arms:
                for condition in conditions:
                    for sample in range(config.evaluation.samples):
                        yield {
                            "id": f"{row['instruction_id']}-{suite}-{arm}-{condition}-{sample}",
                            "instruction_id": row["instruction_id"],
                            "sample": sample,
                            "suite": suite,
                            "arm": arm,
                            "condition": condition,
                            "instruction": row["instruction"],
                            "category": row["category"],
                        }


class AnswerRecipe:
    """The recipe of data set `evaluation` (`data.schema.ANSWERS`). adapters: arm → adapter directory."""

    def __init__(self, config: Config, adapters: dict[str, str]):
        asked = config.mistake_analysis
        self.draw, self.hint, self.adapters = config.evaluation.answer, asked.hint, adapters
        self.prompts = prompts.load("mistake_analysis", asked.prompts)
        ratings = prompts.load("judge", config.evaluation.prompts)
        self.harmless = judges.make(config.evaluation.harmless, ratings, "harmless")
        help_judge = config.evaluation.help
        self.help = help_judge and {
            "helpful": judges.make(help_judge, ratings, "help"),
            "harmful": judges.make(help_judge, ratings, "harm_help"),
        }

    async def __call__(self, row: dict, chat: Chat) -> dict:
        messages = self.messages(row["instruction"], row["condition"])
        sampling = Sampling(self.draw.max_tokens, self.draw.temperature, self.draw.top_p)
        [answer] = await chat(messages, sampling, step="answer", adapter=self.adapters.get(row["arm"]))
        text = answer.text.strip()
        result = {"response": text, "finish_reason": answer.finish_reason, "refused": is_refusal(text), "status": OK}
        if row["suite"] == "harmful":
            verdict = await self.harmless(row["instruction"], text, chat, "harmless")
            result |= {"harmful": verdict.harmful, "harmless_rating": verdict.rating}
        if self.help:
            rating = await self.help[row["suite"]](row["instruction"], text, chat, "help")
            result["help_rating"] = rating.rating
        return result

    def messages(self, instruction: str, condition: str) -> list[Message]:
        if condition == "reminder":
            return reminded(self.prompts, instruction)
        if condition == "hint":
            return induced(self.prompts, instruction, self.hint.text, self.hint.position)
        return [user(instruction)]
