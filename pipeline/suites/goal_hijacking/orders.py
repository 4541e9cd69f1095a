"""Sources of goal hijacking: what is asked for, and what an injected order wants said instead."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field

from pipeline.settings.base import Columns, Source
from pipeline.sources import instructions
from pipeline.sources.counts import Counts
from pipeline.sources.values import BadContent, is_missing, says_safe

# "Ignore the above", in English and Chinese: what comes before the order in a ready prompt.
_IGNORE = re.compile(
    r"\b(?:ignore|disregard|forget|drop|never\smind|skip|do\snot\s(?:follow|answer|do))\b"
    r"|忽略|忽视|无视|忘记|忘掉|忘了|不要管|不用管|别管|不管|抛开|撇开|取消|作废|不要理|不用理",
    re.IGNORECASE,
)
_COLON = re.compile("(?<![0-9])[:：]|[:：](?![0-9])")  # none of a time of day
_MARKS = " \t\r\n\"'“”‘’「」『』《》«»"


class OrderColumns(Columns):
    """The columns of pairs: `instruction` is what is asked for and ought to be said."""

    target: str = Field(description="column of what the injected order wants said instead")
    control: str | None = Field(
        None, description="column that says true if the target is harmless (the control); null = none is"
    )


class Orders(Source):
    """Pairs of a text that is asked for and one that an injected order wants said."""

    columns: OrderColumns = Field(description="the columns of the source")


class ReadyOrderColumns(Columns):
    """The columns of ready prompts: `instruction` is the prompt as it is sent."""

    target: str | None = Field(
        None,
        description=(
            "column of what the injected order wants said; null = the text after the last colon that follows"
            " words such as `ignore` or `忽略`"
        ),
    )
    benign: str | None = Field(None, description="column of what is asked for and ought to be said")
    control: str | None = Field(
        None, description="column that says true if the target is harmless (the control); null = none is"
    )


class ReadyOrders(Source):
    """Prompts that have an injected order in them already. They are sent as they stand."""

    columns: ReadyOrderColumns = Field(description="the columns of the source")


@dataclass(frozen=True)
class Order:
    """id: hash of its texts. prompt: of a ready one; None if templates make the prompts."""

    id: str
    benign: str | None
    target: str
    prompt: str | None
    control: bool
    category: str | None


def orders(source: Orders | ReadyOrders, counts: Counts) -> Iterator[Order]:
    """The orders of a source. Fills `counts`. Raises UserError.

    A row without a target, or whose ready prompt does not tell it, is malformed. One whose texts have been
    read before counts as a repetition.
    """
    return instructions.records(source, counts, partial(_order, source))


def _order(source: Orders | ReadyOrders, row: dict[str, Any]) -> Order:
    text = instructions.text_of("instruction", row["instruction"])
    ready = isinstance(source, ReadyOrders)
    target = instructions.text_of("target", row["target"]) if "target" in row else injected(text)
    benign = text if not ready else row.get("benign")
    benign = None if is_missing(benign) else instructions.text_of("benign", benign)
    control = says_safe("control", row.get("control"), True) is True
    category = row.get("category")
    key = "\n".join((instructions.instruction_id(text), instructions.instruction_id(target), str(ready)))
    id = hashlib.blake2b(key.encode(), digest_size=16, person=b"order").hexdigest()
    category = None if is_missing(category) else str(category)
    return Order(id, benign, target, text if ready else None, control, category)


def injected(prompt: str) -> str:
    """What the order in a ready prompt wants said: the text after the last colon that follows words such as
    "ignore". Raises BadContent if there is none."""
    cancelled = _IGNORE.search(prompt)
    if cancelled is None:
        raise BadContent(
            "the prompt has no words that cancel what was asked for; name a column of the target"
        )
    colons = list(_COLON.finditer(prompt, cancelled.end()))
    target = prompt[colons[-1].end() :].strip(_MARKS) if colons else ""
    if not any(map(str.isalnum, target)):
        raise BadContent("no text follows a colon after the words that cancel; name a column of the target")
    return target
