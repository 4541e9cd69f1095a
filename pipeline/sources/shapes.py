"""Shapes of common data sets: the columns with the instruction, the reference responses and the category.

A shape is recognized by its column names. Which response fills which field:

PKU-SafeRLHF  a response marked safe is the safe one (of two, the one named by `safer_response_id`), one
              marked unsafe the unsafe one (of two, the one not named; in `unsafe_responses` both, in their
              order). Both safe: no unsafe response; both unsafe: no safe one.
HH-RLHF       `chosen` ends in the safe response and `rejected` in the unsafe one. This is a preference, not a
              label. Of a dialogue of several turns the instruction is the whole transcript before that
              response, which answers no single turn.
messages      the first user turn is the instruction, the assistant turn right after it the safe response;
              later turns are not read.
Alpaca        `input` is appended to the instruction after an empty line, `output` is the safe response
              (AlpacaEval and seed tasks too).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.base import Columns
from pipeline.settings.shown import shown


class BadContent(Exception):
    """A row whose content does not match its shape; the message is the reason, without the text."""


@dataclass(frozen=True)
class Fields:
    """One row's content as found: not yet checked for type, length or encoding.

    unsafe_responses: all of them, if the shape can have several; the preferred one is `unsafe_response`.
    """

    instruction: Any
    safe_response: Any = None
    unsafe_response: Any = None
    category: Any = None
    unsafe_responses: Sequence[Any] = ()


@dataclass(frozen=True)
class Shape:
    """`fields` reads a row that has some of `columns`. It raises BadContent if the row does not match."""

    name: str
    columns: frozenset[str]
    fields: Callable[[dict], Fields]


def recognize(found: Iterable[str], mapping: Columns | None, where: str) -> Shape:
    """The shape of a source with these columns, or the one that the configuration's `columns` describes.

    Raises UserError, naming the columns found, if the shape is unknown or a mapped column is missing.
    """
    found = set(found)
    listed = _listed(found)
    if mapping is not None:
        named = {field: column for field, column in mapping.model_dump().items() if column is not None}
        for field, column in named.items():
            if column not in found:
                raise UserError(
                    f"{where}: columns.{field} = {shown(column, 60)} is not one of its columns; found are"
                    f" {listed}"
                )
        return Shape("columns", frozenset(named.values()), lambda row: _mapped(row, named))
    for required, shape in _SHAPES:
        if required <= found:
            return shape
    raise UserError(
        f"{where}: no known shape has the columns {listed}; name the column of the instruction, as in"
        " columns: {instruction: NAME}"
    )


def _listed(columns: set[str], most: int = 20) -> str:
    names = [shown(name, 60) for name in sorted(columns)]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"


def _mapped(row: dict, named: dict[str, str]) -> Fields:
    values: dict[str, Any] = {field: row.get(column) for field, column in named.items()}
    return Fields(**values | {"instruction": _joined(values["instruction"], values.pop("input", None))})


def _own(row: dict) -> Fields:
    return Fields(
        row.get("instruction"), row.get("safe_response"), row.get("unsafe_response"), row.get("category")
    )


def _prompt(row: dict) -> Fields:
    return Fields(row.get("prompt"), category=row.get("category"))


def _alpaca(row: dict) -> Fields:
    return Fields(
        _joined(row.get("instruction"), row.get("input")), row.get("output"), category=row.get("category")
    )


def _seed_task(row: dict) -> Fields:
    """Self-Instruct's seed tasks keep inputs and outputs in a list; the first instance is used."""
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(first, dict):
        raise BadContent("instances holds no input and output")
    return _alpaca({"instruction": row.get("instruction"), **{k: first.get(k) for k in ("input", "output")}})


def _pku(row: dict) -> Fields:
    safe = [_truth(row.get(f"is_response_{i}_safe")) for i in (0, 1)]
    safer = 1 if str(row.get("safer_response_id")) == "1" else 0

    def pick(label: bool, preferred: int) -> int | None:
        return next((i for i in (preferred, 1 - preferred) if safe[i] is label), None)

    safe_id, unsafe_id = pick(True, safer), pick(False, 1 - safer)
    about = unsafe_id if unsafe_id is not None else safer  # a safe response has no harm category
    return Fields(
        row.get("prompt"),
        safe_response=None if safe_id is None else row.get(f"response_{safe_id}"),
        unsafe_response=None if unsafe_id is None else row.get(f"response_{unsafe_id}"),
        category=row.get(f"response_{about}_harm_category"),
        unsafe_responses=[row.get(f"response_{i}") for i in (0, 1) if safe[i] is False],
    )


def _truth(value: Any) -> bool | None:
    """A label; CSV files store it as text."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())


def _hh(row: dict) -> Fields:
    context, chosen = _dialogue("chosen", row.get("chosen"))
    rejected_context, rejected = _dialogue("rejected", row.get("rejected"))
    if context == rejected_context:
        return Fields(context, safe_response=chosen, unsafe_response=rejected)
    # a few pairs diverge earlier, so `rejected` answers something else
    return Fields(context, safe_response=chosen)


def _dialogue(column: str, value: Any) -> tuple[str, str | None]:
    """A transcript or list of messages as the text before the last assistant turn, and that turn."""
    turns = _turns(column, value)
    response = turns.pop()[1] if turns[-1][0] == "Assistant" else None
    if not turns or turns[-1][0] != "Human":
        raise BadContent(f"{column} has no human turn before its last response")
    if len(turns) == 1:
        return turns[0][1], response
    return "\n\n".join(f"{speaker}: {text}" for speaker, text in turns), response


def _turns(column: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, list):
        speakers = {"user": "Human", "assistant": "Assistant"}
        return [
            (speakers[role], text) for role, text in _messages(column, value) if role in speakers
        ] or _no_turns(column)
    if not isinstance(value, str):
        raise BadContent(f"{column} is {_kind(value)}, not a transcript")
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", value)
    if before.strip() or not parts:
        raise BadContent(f"{column} is not a transcript of Human: and Assistant: turns")
    return [(speaker, text.strip()) for speaker, text in zip(parts[::2], parts[1::2], strict=True)]


def _no_turns(column: str) -> list:
    raise BadContent(f"{column} has no user turn")


def _conversation(row: dict) -> Fields:
    turns = _messages("messages", row.get("messages"))
    first = next((i for i, (role, _) in enumerate(turns) if role == "user"), None)
    if first is None:
        raise BadContent("messages has no user turn")
    following = turns[first + 1] if first + 1 < len(turns) else ("", None)
    response = following[1] if following[0] == "assistant" else None
    return Fields(turns[first][1], safe_response=response, category=row.get("category"))


def _messages(column: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise BadContent(f"{column} is not a list of messages")
    for message in value:
        if not isinstance(message.get("content"), str) or not isinstance(message.get("role"), str):
            raise BadContent(f"{column} has a message without role or text content")
    return [(message["role"], message["content"]) for message in value]


def _joined(instruction: Any, input: Any) -> Any:
    """The instruction with its input after an empty line.

    The caller rejects an instruction that is not text.
    """
    if not isinstance(instruction, str) or input is None:
        return instruction
    if not isinstance(input, str):
        raise BadContent(f"input is {_kind(input)}, not a string")
    return f"{instruction}\n\n{input}" if input.strip() else instruction


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _shape(name: str, required: str, more: str, fields: Callable[[dict], Fields]) -> tuple[set[str], Shape]:
    return set(required.split()), Shape(name, frozenset(f"{required} {more}".split()), fields)


# In order: the first shape with all its required columns is used.
_SHAPES = (
    _shape(
        "PKU-SafeRLHF",
        "prompt response_0 response_1 is_response_0_safe is_response_1_safe",
        "safer_response_id response_0_harm_category response_1_harm_category",
        _pku,
    ),
    _shape("HH-RLHF", "chosen rejected", "", _hh),
    _shape("messages", "messages", "category", _conversation),
    _shape("instructions", "instruction safe_response", "unsafe_response category", _own),
    _shape("instructions", "instruction unsafe_response", "category", _own),
    _shape("Alpaca seed tasks", "instruction instances", "", _seed_task),
    _shape("Alpaca", "instruction", "input output category", _alpaca),
    _shape("prompts", "prompt", "category", _prompt),
)
