"""The training rows: conversations in which a phrase of feedback announces the response that follows it."""

import random
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from pipeline.chat import Message, assistant, user
from pipeline.methods.conversations import times
from pipeline.schema import UNSAFE_TARGET

if TYPE_CHECKING:
    from pipeline.methods.chain_of_hindsight import ChainOfHindsight

SAFE, UNSAFE = "hindsight", f"hindsight{UNSAFE_TARGET}"  # kinds, by the response that is the target
FORMS = {"good": ("good",), "bad": ("bad",), "good_bad": ("good", "bad"), "bad_good": ("bad", "good")}


def conversations(method: "ChainOfHindsight", rows: Iterable[dict], seed: int) -> Iterator[dict]:
    """Rows of `schema.SFT`, for each comparison and form.

    An example's loss is on its last turn. A form of two responses that both carry loss is therefore two
    examples, the conversation up to the first response and all of it: the same tokens carry loss, each once.
    """
    texts, mix = method.texts(), method.mix
    phrases = {side: texts.lines(side) for side in ("good", "bad")}
    for row in rows:
        responses = {"good": row["safe_response"], "bad": row["unsafe_response"]}
        for form in mix.forms:
            for copy in range(times(row["id"], f"{SAFE}-{form}", mix.ratio, seed)):
                drawn = random.Random(f"{seed}/{row['id']}/{form}/{copy}")
                messages: list[Message] = []
                for side in FORMS[form]:
                    phrase = drawn.choice(phrases[side])
                    if not messages:
                        phrase = texts.render("asked", instruction=row["instruction"], phrase=phrase)
                    messages += [user(phrase), assistant(responses[side])]
                    if side == "bad" and mix.loss == "safe":
                        continue
                    kind = SAFE if side == "good" else UNSAFE
                    yield {
                        "id": f"{row['id']}-{kind}-{form}-{copy}",
                        "instruction_id": row["instruction_id"],
                        "kind": kind,
                        "category": row["category"],
                        "messages": list(messages),
                    }
