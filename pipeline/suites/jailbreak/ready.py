"""Prompts that somebody else has attacked already: a goal, the prompt to send, and the attack's name."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from pipeline.settings.base import Columns, Source
from pipeline.sources import instructions
from pipeline.sources.counts import Counts
from pipeline.sources.values import BadContent, is_missing

MOST_CHARACTERS = 60  # of an attack's name, which stands in tables


class ReadyColumns(Columns):
    """The columns of attacked prompts: `instruction` is the prompt as it is sent."""

    goal: str = Field(
        description="column of the goal: what the attack is to obtain, and answers are judged by"
    )
    attack: str | None = Field(None, description="column of the attack's name; null = all are one attack")


class Ready(Source):
    """Attacked prompts, read like any source. They are sent as they stand."""

    columns: ReadyColumns = Field(description="the columns of the source")


@dataclass(frozen=True)
class Prompt:
    """id: of the prompt, the same wherever it stands; goal_id: as `instructions.instruction_id` gives it."""

    id: str
    goal_id: str
    goal: str
    prompt: str
    attack: str
    category: str | None


def prompts(name: str, source: Ready, counts: Counts) -> Iterator[Prompt]:
    """The prompts of a source, whose name is part of each attack's. Fills `counts`. Raises UserError.

    A row without a goal or prompt, or whose attack is no short name, is malformed. One whose goal, attack and
    prompt have been read before counts as a repetition.
    """
    return instructions.records(source, counts, partial(_prompt, name))


def _prompt(name: str, row: dict[str, Any]) -> Prompt:
    goal = instructions.text_of("goal", row["goal"])
    prompt = instructions.text_of("prompt", row["instruction"])
    attack, category = f"{name}/ready", row.get("category")
    if "attack" in row:
        own = row["attack"]
        if is_missing(own):
            raise BadContent("attack is missing")
        own = str(own).strip()
        if len(own) > MOST_CHARACTERS or not own.isprintable():
            raise BadContent("attack is too long for a name, or is not one line")
        attack = f"{name}/{own}"
    goal_id = instructions.instruction_id(goal)
    key = "\n".join((goal_id, attack, instructions.instruction_id(prompt)))
    id = hashlib.blake2b(key.encode(), digest_size=16, person=b"attack").hexdigest()
    return Prompt(id, goal_id, goal, prompt, attack, None if is_missing(category) else str(category))
