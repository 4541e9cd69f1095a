"""Discrimination: each arm answers each instruction and analyzes its answer, and a judge rates all three."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, user
from pipeline.gates import verdict_of_analysis
from pipeline.judges import Exchange
from pipeline.judges.refusal import is_refusal
from pipeline.methods.mistake_analysis.recipe import question
from pipeline.schema import OK
from pipeline.sources.counts import Counts
from pipeline.sources.overlap import Seen
from pipeline.suites.discrimination.schema import HELD_OUT, MODES, NEAR, TRAINING

if TYPE_CHECKING:
    from pipeline.suites.discrimination import Discrimination


def instructions(
    suite: "Discrimination", counts: Counts, of_training: Counts | None, seen: Seen | None
) -> Iterator[dict]:
    """The rows of the suite's sources, with `split` if it tells training and held-out instructions apart.

    What the methods have read decides, and not which source a row is of; only without methods, that does. A
    row of `training` that also stands in `instructions` is asked once, and counted as a duplicate.
    """
    if suite.training is None or of_training is None:
        yield from ({**row, "split": None} for row in suite.read(suite.instructions, counts, seen))
        return
    known: set[str] = set()
    splits = {"same": TRAINING, "near": NEAR, None: HELD_OUT}
    for row in suite.read(suite.instructions, counts, seen):
        known.add(row["instruction_id"])
        yield {**row, "split": splits[seen.found(row["instruction"])] if seen else HELD_OUT}
    for row in suite.read(suite.training, of_training, seen):
        found = seen.found(row["instruction"]) if seen else None
        if row["instruction_id"] in known:
            of_training.repeat(row, found)
        else:
            yield {**row, "split": splits[found] if seen else TRAINING}


def work(suite: "Discrimination", arms: Sequence[str], rows: Iterable[dict]) -> Iterator[dict]:
    """One row per (instruction, arm, sample)."""
    for row in rows:
        for arm in arms:
            for sample in range(suite.samples):
                yield {
                    "id": f"{row['instruction_id']}-{arm}-{sample}",
                    "instruction_id": row["instruction_id"],
                    "sample": sample,
                    "arm": arm,
                    "instruction": row["instruction"],
                    "category": row["category"],
                    "split": row["split"],
                }


class DiscriminationRecipe:
    """The recipe of data set `discriminations` (`schema.DISCRIMINATIONS`). adapters: arm → its directory.

    Six calls: the answer, two analyses by the same arm, and three ratings. An empty answer is neither rated
    nor analyzed, and an empty analysis is not rated.
    """

    def __init__(self, suite: "Discrimination", adapters: Mapping[str, str]):
        self.answer, self.analyse, self.judge = suite.answer, suite.analyse, suite.judge
        self.prompts, self.adapters = suite.texts(), adapters

    async def __call__(self, row: dict, chat: Chat) -> dict:
        adapter = self.adapters.get(row["arm"])
        [answer] = await chat(
            [user(row["instruction"])], self.answer.sampling(), step="answer", adapter=adapter
        )
        text = answer.text.strip()
        result: dict[str, Any] = {
            "response": text,
            "empty": not text,
            "refused": is_refusal(text),
            "cut": ["answer"] if answer.is_cut else [],
            "status": OK,
        }
        if not text:
            return result
        exchange = Exchange(row["instruction"], text)
        for mode in MODES:
            asked = question(self.prompts, row["instruction"], text, guided=mode == "guided")
            [analysis] = await chat([user(asked)], self.analyse.sampling(), step=mode, adapter=adapter)
            result |= {
                f"analysis_{mode}": analysis.text.strip(),
                f"verdict_{mode}": verdict_of_analysis(analysis.text),
            }
            result["cut"] += [mode] if analysis.is_cut else []
        rating = await self.judge.rate(exchange, "harmless", chat, "harmless")
        result["harmless_rating"] = rating
        result["harmful"] = None if rating is None else rating < self.judge.threshold
        for mode in MODES:
            if own := result[f"analysis_{mode}"]:
                result[f"rating_{mode}"] = await self.judge.rate_analysis(exchange, own, chat, f"rate_{mode}")
        return result
