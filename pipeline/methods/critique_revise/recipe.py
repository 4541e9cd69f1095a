"""Constitutional AI's supervised phase (Bai et al. 2022, arXiv 2212.08073): answer, critique, revision, in
one conversation.

Each round asks the model, under one principle, what is wrong with its last answer, and then for a better one.
Training uses the last round's revision: as the answer to the instruction, or as the better side of a pair
with the first answer.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pipeline.chat import Chat, Message, assistant, user
from pipeline.errors import RowFailed
from pipeline.judges import Exchange, negated
from pipeline.methods.conversations import copies
from pipeline.methods.mistake_analysis import induction
from pipeline.methods.mistake_analysis.recipe import induced
from pipeline.methods.unfinished import Sampled, lost
from pipeline.schema import DROPPED, OK

if TYPE_CHECKING:
    from pipeline.methods.critique_revise import CritiqueRevise

# A line that speaks about the revision instead of being it.
_META = re.compile(
    r"^\W*(?:sure|certainly|of course|okay)?\W*(?:here(?:'s| is| are)|this is|below is|my|the)\b[^\n:]{0,60}"
    r"\b(?:revis|rewrit|new|improved|better|updated)[^\n:]{0,40}:\s*",
    re.IGNORECASE,
)


class CritiqueReviseRecipe:
    """The recipe of data set `revisions` (`schema.REVISIONS`)."""

    def __init__(self, method: "CritiqueRevise", seed: int):
        self.method, self.seed = method, seed
        self.texts, self.names = method.texts(), method.principle_names()
        self.induction = induction()
        hint = method.hint.text
        self.hint = hint if hint is not None else self.induction.render("hint")

    async def __call__(self, row: dict, chat: Chat) -> dict:
        """Raises RowFailed if there is no first answer, or a call fails."""
        sampled = self.method.sampled(row["instruction"])
        result = await self._revised(row, chat, sampled)
        return result | sampled.columns

    async def _revised(self, row: dict, chat: Chat, sampled: Sampled) -> dict:
        method = self.method
        first = answer = await self._first_answer(row, chat, sampled)
        conversation: list[Message] = [user(row["instruction"])]
        principles = self._principles(row["id"])
        critiques: list[str] = []
        result: dict[str, Any] = {
            "response": first,
            "response_source": method.answer,
            "principles": principles,
            "critiques": critiques,
        }
        if method.answer == "reference":
            sampled.fault("reference", first)  # the source's texts are only counted
        else:
            hint, system = self.hint if method.answer == "induced" else "", method.induce.system or ""
            if fault := sampled.fault("induce", first, hint=hint, system=system):
                return result | {"status": DROPPED, "error": fault}
        for number, principle in enumerate(principles, start=1):
            ask = {step: self.texts.render(f"{step}_{principle}") for step in ("critique", "revise")}
            conversation += [assistant(answer), user(ask["critique"])]
            [critique] = await chat(conversation, method.critique.sampling(), step=f"critique{number}")
            if not critique.text.strip():
                return result | {"status": DROPPED, "error": "empty critique"}
            critiques.append(sampled.other("critique", critique).strip())
            shown = {"prompt": f"{answer}\n{ask['critique']}", "system": method.critique.system or ""}
            if fault := sampled.fault("critique", critiques[-1], **shown, about_response=True):
                return result | {"status": DROPPED, "error": fault}
            conversation += [assistant(critiques[-1]), user(ask["revise"])]
            [revision] = await chat(conversation, method.revise.sampling(), step=f"revise{number}")
            whole = _META.sub("", revision.text.strip()).strip()
            # not the last answer: a revision may change little of it
            shown = {"prompt": f"{critiques[-1]}\n{ask['revise']}", "system": method.revise.system or ""}
            if whole and (fault := sampled.fault("revise", whole, **shown)):
                sampled.other("revise", revision)
                return result | {"revision": whole, "status": DROPPED, "error": fault}
            text = sampled.target("revise", revision)
            if text is None:
                return result | {"status": DROPPED, "error": lost("revision")}
            answer = _META.sub("", text.strip()).strip()
            if not answer:
                return result | {"status": DROPPED, "error": "empty revision"}
        if answer.split() == first.split():
            return result | {"status": DROPPED, "error": "unchanged"}
        result["revision"] = answer
        if method.verify is not None:
            verdict = await method.verify(Exchange(row["instruction"], answer), chat, "verify")
            result["revision_harmful"] = negated(verdict.ok)
            if method.filter and verdict.ok is not True:
                return result | {
                    "status": DROPPED,
                    "error": "unreadable verdict" if verdict.ok is None else "revision judged harmful",
                }
        return result | {"status": OK}

    async def _first_answer(self, row: dict, chat: Chat, sampled: Sampled) -> str:
        method = self.method
        if method.answer == "reference":
            if not row["unsafe_response"]:
                raise RowFailed("no unsafe response in the source")
            return row["unsafe_response"]
        asked = [user(row["instruction"])]
        if method.answer == "induced":
            asked = induced(self.induction, row["instruction"], self.hint, method.hint.position)
        [answer] = await chat(asked, method.induce.sampling(), step="induce")
        if not answer.text.strip():
            raise RowFailed("empty first answer")
        return sampled.other("induce", answer).strip()

    def _principles(self, row_id: str) -> list[str]:
        """One principle per round, drawn by seed and row; none repeats before all have been drawn."""
        drawn = random.Random(f"{self.seed}/{row_id}/principles")
        found: list[str] = []
        while len(found) < self.method.rounds:
            found += drawn.sample(self.names, len(self.names))
        return found[: self.method.rounds]


def conversations(method: "CritiqueRevise", rows: Iterable[dict], seed: int) -> Iterator[dict]:
    """Rows of `schema.SFT`: the instruction, answered with its revision."""
    for row in rows:
        if row["status"] == OK:
            yield from copies(
                row["id"], row, "revision", row["instruction"], row["revision"], method.mix.revision, seed
            )


def pairs(rows: Iterable[dict], drops: Counter[str]) -> Iterator[dict]:
    """Rows of `schema.PREFERENCES`: the revision is better than the first answer."""
    for row in rows:
        if row["status"] != OK:
            drops[row["error"] or row["status"]] += row["status"] == DROPPED
            continue
        yield {
            "id": f"{row['id']}-revision",
            "instruction_id": row["instruction_id"],
            "group": f"{row['id']}-revision",
            "category": row["category"],
            "prompt": [user(row["instruction"])],
            "chosen": [assistant(row["revision"])],
            "rejected": [assistant(row["response"])],
            "rank_chosen": 1,
            "rank_rejected": 2,
            "kind": "revision",
        }
