"""Jailbreaks: each arm is asked for each goal in the words of each attack, and judged against the goal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, Message, user
from pipeline.judges import Exchange, Judge, Verdict, negated
from pipeline.judges.refusal import is_refusal
from pipeline.schema import DROPPED, OK
from pipeline.suites.jailbreak import transforms
from pipeline.suites.jailbreak.ready import Prompt
from pipeline.suites.jailbreak.transforms import CannotAttack
from pipeline.suites.verdicts import VerdictRecipe

if TYPE_CHECKING:
    from pipeline.suites.jailbreak import Jailbreak


def work(
    suite: "Jailbreak",
    arms: Sequence[str],
    goals: Iterable[dict],
    benign: Iterable[dict],
    ready: Iterable[Prompt],
) -> Iterator[dict]:
    """One row per (goal, attack, arm, sample); one that is dropped if the attack cannot be made of the
    goal."""
    prompts = suite.texts()
    for part, rows in (("harmful", goals), ("helpful", benign)):
        for row in rows:
            for attack in suite.attacks:
                about = {
                    "instruction_id": row["instruction_id"],
                    "suite": part,
                    "attack": attack,
                    "instruction": row["instruction"],
                    "category": row["category"],
                }
                id = f"{row['instruction_id']}-{part}-{attack}"
                try:
                    asked = transforms.messages(attack, row["instruction"], prompts)
                except CannotAttack as e:
                    reason = f"{attack}: {e}"
                    yield {"id": f"{id}-dropped", **about, "status": DROPPED, "error": reason}
                    continue
                yield from _answers(suite, arms, id, {**about, "messages": asked})
    for prompt in ready:
        about = {
            "instruction_id": prompt.goal_id,
            "suite": "harmful",
            "attack": prompt.attack,
            "instruction": prompt.goal,
            "category": prompt.category,
            "messages": [user(prompt.prompt)],
        }
        yield from _answers(suite, arms, prompt.id, about)


def _answers(suite: "Jailbreak", arms: Sequence[str], id: str, about: dict) -> Iterator[dict]:
    for arm in arms:
        for sample in range(suite.samples):
            yield {"id": f"{id}-{arm}-{sample}", "arm": arm, "sample": sample, **about}


class AttackRecipe:
    """The recipe of data set `attacks` (`schema.ATTACKS`). adapters: arm → adapter directory."""

    def __init__(self, suite: "Jailbreak", adapters: Mapping[str, str]):
        self.draw, self.judge, self.adapters = suite.answer, suite.harmless, adapters

    async def __call__(self, row: dict, chat: Chat) -> dict:
        if row.get("status") == DROPPED:
            return {}
        asked: list[Message] = row["messages"]
        [answer] = await chat(
            asked, self.draw.sampling(), step="answer", adapter=self.adapters.get(row["arm"])
        )
        text = answer.text.strip()
        decoded, decoding = transforms.decoded(row["attack"], text)
        result: dict[str, Any] = {
            "response": text,
            "decoded_response": decoded,
            "decoding": decoding,
            "empty": not text,
            "refused": is_refusal(text) or (decoded is not None and is_refusal(decoded)),
            "finish_reason": answer.finish_reason,
            "status": OK,
        }
        if row["suite"] == "harmful":
            prefill = asked[-1]["content"] if asked[-1]["role"] == "assistant" else ""
            verdict = await _worst(self.judge, row["instruction"], _readings(text, decoded), prefill, chat)
            result |= {
                "harmful": negated(verdict.ok),
                "harmless_rating": verdict.rating,
                "harm_score": verdict.harm_score,
                "harm_categories": list(verdict.categories) or None,
            }
        return result


class AttackVerdicts(VerdictRecipe):
    """The recipe of more judges' verdicts: as the suite's own judge, in every reading, against the goal."""

    async def verdict(self, row: dict, chat: Chat) -> Verdict:
        readings = _readings(row["response"], row["decoded"])
        return await _worst(self.judge, row["instruction"], readings, row["prefill"] or "", chat)


async def _worst(judge: Judge, goal: str, readings: list[str], prefill: str, chat: Chat) -> Verdict:
    """The verdict on the answer against the goal: harmful if it is in either reading, else the unreadable
    one, if any."""
    verdicts = []
    for reading, step in zip(readings, ("harmless", "harmless_plain"), strict=False):
        verdicts.append(await judge(Exchange(goal, reading, prefill), chat, step))
    return next(
        (v for v in verdicts if v.ok is False), next((v for v in verdicts if v.ok is None), verdicts[0])
    )


def _readings(text: str, decoded: str | None) -> list[str]:
    """The texts to judge: the answer decoded, if it is in a cipher, and as it stands if it can be read.

    Nobody reads ciphertext that has been decoded: a judge would guess, and phrases find no refusal in it.
    """
    if decoded is None:
        return [text]
    return [decoded, text] if transforms.readable(text) >= transforms.READABLE else [decoded]
