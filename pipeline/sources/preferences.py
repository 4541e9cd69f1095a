"""A row that holds a chosen and a rejected response, as dialogues or as texts."""

from typing import Any

from pipeline.sources import conversations
from pipeline.sources.columns import Fields, Row, asked_of
from pipeline.sources.conversations import Notes
from pipeline.sources.values import BadContent, is_missing


def preference_of(row: Row) -> Fields:
    """A chosen and a rejected response, with the prompt in a column of its own or before each of them."""
    prompt, asked = _prompt(row)
    values = [row.get(side) for side in ("chosen", "rejected")]
    repeats = isinstance(prompt, str) and all(_begins(value, prompt) for value in values)
    sides: list[tuple[list[tuple[str, str]], str | None] | None] = []
    for side, value in zip(("chosen", "rejected"), values, strict=True):
        column = row.column(side)
        if is_missing(value):
            sides.append((asked, None) if asked else None)
        elif repeats and not conversations.messages(value):
            sides.append((asked, value[len(prompt.rstrip()) :].strip()))
        else:
            sides.append(_side(column, value, asked, row.notes))
    chosen, rejected = sides
    if chosen is None:
        raise BadContent(f"{row.column('chosen')} is null, and no column holds the prompt")
    context, safe = chosen
    unsafe = rejected[1] if rejected else None
    if rejected and unsafe is not None and rejected[0] != context:
        # a few pairs diverge earlier, so `rejected` answers something else
        row.notes["a rejected response to another dialogue is not used"] += 1
        unsafe = None
    if unsafe is not None and unsafe == safe:
        row.notes["a rejected response that is equal to the chosen one is not used"] += 1
        unsafe = None
    return Fields(conversations.told(context), safe, unsafe, row.get("category"))


def _prompt(row: Row) -> tuple[Any, list[tuple[str, str]]]:
    """The prompt as it stands in its column, and as turns; (None, []) if no column holds it."""
    field = next((field for field in ("conversation", "instruction", "input") if row.has(field)), None)
    if field is None:
        return None, []
    value = row.get(field)
    if talk := conversations.messages(value):
        turns, response = conversations.dialogue(row.column(field), talk, row.notes)
        if response is not None and not turns:
            raise BadContent(f"{row.column(field)} has no user turn")
        return value, turns
    if field == "conversation":
        raise BadContent(f"{row.column(field)} is not a list of messages")
    text = value if field == "input" else asked_of(row)
    if not isinstance(text, str):
        raise BadContent(f"instruction is not a string but {type(text).__name__}")
    return value, [("Human", text)]


def _begins(text: Any, prompt: str) -> bool:
    """Whether a response repeats the prompt before it goes on."""
    prompt = prompt.rstrip()
    if not isinstance(text, str) or not text.startswith(prompt):
        return False
    rest = text[len(prompt) :]
    return bool(rest.strip()) and not (prompt[-1:].isalnum() and rest[:1].isalnum())


def _side(
    column: str, value: Any, asked: list[tuple[str, str]], notes: Notes
) -> tuple[list[tuple[str, str]], str | None]:
    """The dialogue before a preferred or rejected response, and the response."""
    talk = conversations.messages(value)
    if talk is None:
        if not asked:
            kind = f"a {type(value).__name__}, " if not isinstance(value, str) else ""
            raise BadContent(f"{column} is {kind}not a transcript of Human and Assistant turns")
        return asked, value
    context, response = conversations.dialogue(column, talk, notes)
    if asked and response is None:
        raise BadContent(f"{column} has no assistant turn")
    if asked and context and context[0][0] == "Assistant":
        return [*asked, *context], response
    if asked and (not context or _same(context, asked[-len(context) :])):
        return asked, response
    if asked and len(context) <= len(asked):
        notes["a prompt that differs from the dialogue before its responses is not used"] += 1
    if not context or context[-1][0] != "Human":
        raise BadContent(f"{column} has no human turn before its last response")
    return context, response


def _same(one: list[tuple[str, str]], other: list[tuple[str, str]]) -> bool:
    return [(who, text.split()) for who, text in one] == [(who, text.split()) for who, text in other]
