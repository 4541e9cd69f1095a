"""Conversations as other people write them: lists of messages, JSON text of such a list, transcripts.

Turns in a row by one speaker are one turn. System turns are left out, and the caller's notes count that.
"""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from pipeline.sources.values import BadContent, decoded, is_missing, plain

USER, ASSISTANT, SYSTEM, TOOL = "user", "assistant", "system", "tool"

_ROLE_KEYS = ("role", "from", "speaker", "author", "sender", "type")
_CONTENT_KEYS = ("content", "value", "text", "message", "body", "utterance", "parts", "refusal")
_PART_KEYS = ("text", "content", "value", "refusal")
_TEXT_PARTS = {None, "text", "input_text", "output_text", "refusal"}
_THOUGHT_PARTS = {"thinking", "redacted_thinking", "reasoning"}
_CALLS = ("tool_calls", "function_call", "tool_call", "functionCall")
_TOOL_PARTS = {"tool_use", "tool_call", "function_call", "server_tool_use"}
_TRAINED = ("weight", "train", "loss")  # a turn of weight 0 is one not to learn
# By the letters of the role.
_ROLES = {
    USER: "user human prompter instruction instructions question prompt input customer client person asker",
    ASSISTANT: (
        "assistant gpt bot model chatbot ai llm chatgpt response answer output completion agent bing bard"
        " claude assistantbot aiassistant gemini"
    ),
    SYSTEM: "system developer systemprompt",
    TOOL: (
        "tool tools function functioncall functionresponse functionoutput toolcall toolcalls toolresponse"
        " toolresult tooloutput observation ipython environment code"
    ),
}
_ROLE = {word: role for role, words in _ROLES.items() for word in words.split()}
_SPEAKERS = {USER: "Human", ASSISTANT: "Assistant"}

Message = dict[str, Any]
Notes = Counter[str]


def messages(value: Any) -> list[Message] | None:
    """The messages of a conversation; only those that are used must be well-formed.

    Understands a list of messages or of exchanges (`{"human": …, "assistant": …}`), one message, a struct of
    lists, `{"messages": […]}`, any of these as JSON (or as Python's repr, as pandas writes it to CSV), and a
    transcript. None: the value is no conversation.
    """
    if isinstance(value, str):
        return _parsed(value) or _transcript(value)
    if isinstance(value, dict):
        return _of_dict(value)
    if not isinstance(value, list):
        return None
    if not value or any(_is_message(one) for one in value):
        return [one if isinstance(one, dict) else {} for one in value]
    if all(isinstance(one, dict) and one and all(map(_role_of, map(str, one))) for one in value):
        return [{"role": role, "content": text} for one in value for role, text in one.items()]
    return None


def bare(value: Any) -> list[Message] | None:
    """The messages of a list of texts or pairs without roles: the user begins, and turns alternate.

    Pairs may also be a role and a text; texts may also be JSON of messages. The list may be JSON (or Python's
    repr). None: it is no such list.
    """
    if isinstance(value, str):
        value = _value(value, ast.literal_eval)
    if not isinstance(value, list) or not value:
        return None
    if all(isinstance(one, list | tuple) and len(one) == 2 for one in value):
        if all(isinstance(role, str) and _role_of(role) for role, _ in value):
            return [{"role": role, "content": text} for role, text in value]
        value = [text for pair in value for text in pair]
    if not all(isinstance(one, str) for one in value):
        return None
    if all(parsed := [_parsed(one) for one in value]):
        return [message for one in parsed for message in one or ()]
    return [{"role": ASSISTANT if i % 2 else USER, "content": text} for i, text in enumerate(value)]


def first_exchange(column: str, talk: list[Message], notes: Notes) -> tuple[str, str | None, list[Message]]:
    """The first user turn, the assistant turn right after it, and the messages of that turn.

    Later turns are not looked at. Raises BadContent if there is no user turn, or if these turns are no text.
    """
    talk = _without_system(talk, notes)
    roles = [_role(message) for message in talk]
    start = next((i for i, role in enumerate(roles) if role != ASSISTANT), len(roles))
    if start == len(roles):
        raise BadContent(f"{column} has no user turn")
    if any(message.get("replies") for message in talk):
        notes["replies in a tree of messages are not used"] += 1
    if start:
        notes["an assistant's turn before the first user turn is not used"] += 1
    _check_role(column, roles[start])
    end = _end(roles, start)
    asked = _text(column, talk[start:end], notes)
    if end == len(roles):
        return asked, None, []
    if roles[end] is None:
        raise BadContent(f"{column} has a message without a known role")
    after = _end(roles, end)
    goes_on = after < len(roles)
    answer = talk[end:after]
    if roles[end] == TOOL or (goes_on and roles[after] == TOOL) or any(map(_calls_tool, answer)):
        notes["an answer that goes through a tool is not used"] += 1
        return asked, None, []
    if goes_on:
        notes["turns after the first exchange are not used"] += 1
    if any(message.get(key) == 0 for message in answer for key in _TRAINED):
        notes["an answer of weight 0 is not used"] += 1
        return asked, None, []
    if all(is_missing(_first(message, _CONTENT_KEYS)) for message in answer):
        return asked, None, []
    return asked, _text(column, answer, notes), answer


def dialogue(column: str, talk: list[Message], notes: Notes) -> tuple[list[tuple[str, str]], str | None]:
    """All turns before the last assistant turn, as (speaker, text), and that turn's text.

    The text is None if the last turn is the user's. Raises BadContent if a turn is no text, or a tool's.
    """
    talk = _without_system(talk, notes)
    roles = [_role(message) for message in talk]
    turns, at = [], 0
    while at < len(roles):
        end = _end(roles, at)
        _check_role(column, roles[at])
        turns.append((_SPEAKERS[roles[at] or USER], _text(column, talk[at:end], notes)))
        at = end
    response = turns.pop()[1] if turns and turns[-1][0] == "Assistant" else None
    return turns, response


def ends_with_user(talk: list[Message]) -> bool:
    """Whether the last turn, system turns apart, is the user's."""
    roles = [role for role in map(_role, talk) if role != SYSTEM]
    return bool(roles) and roles[-1] == USER


def told(turns: list[tuple[str, str]]) -> str:
    """Turns as one text: a single one as it is, several as a transcript."""
    if len(turns) == 1:
        return turns[0][1]
    return "\n\n".join(f"{speaker}: {text}" for speaker, text in turns)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    keys = _by_name(value).keys()
    return not keys.isdisjoint(_CONTENT_KEYS) and not keys.isdisjoint(_ROLE_KEYS)


def _calls_tool(message: Message) -> bool:
    content = _first(message, _CONTENT_KEYS)
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return any(one.get(key) for one in [message, *parts] for key in _CALLS) or any(
        part.get("type") in _TOOL_PARTS for part in parts
    )


def _parsed(text: str) -> list[Message] | None:
    value = _value(text, _literal)
    return messages(value) or None if isinstance(value, list | dict | str) else None


def _value(text: str, literal: Callable[[str], Any]) -> Any:
    """The value of JSON, or of what Python's repr writes; None if it is neither."""
    if not text.lstrip().startswith(("[", "{", '"')):
        return None
    for parse in (json.loads, literal):
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd escapes
                return parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


def _literal(text: str) -> Any:
    """A value as Python's repr writes it. Raises ValueError if a key of messages is not among its words."""
    if not any(f"'{key}'" in text for key in _ROLE_KEYS):
        raise ValueError
    return ast.literal_eval(text)


def _of_dict(value: dict) -> list[Message] | None:
    by_name = _by_name(value)
    for key in ("messages", "conversations", "conversation"):
        if isinstance(by_name.get(key), list):
            return messages(by_name[key])
    role, content = _first(value, _ROLE_KEYS), _first(value, _CONTENT_KEYS)
    if isinstance(role, list) and isinstance(content, list) and len(role) == len(content):
        return [{"role": one, "content": text} for one, text in zip(role, content, strict=True)]
    return [value] if isinstance(role, str) and _is_message(value) else None


def _transcript(text: str) -> list[Message] | None:
    text = text.strip()
    if not text.startswith(("Human:", "Assistant:")):
        return None
    text = text.replace("\r\n", "\n")
    gap = "\n\n" if "\n\nAssistant:" in text else "\n+"  # HH-RLHF's texts may hold single lines of this kind
    parts = re.split(f"(?:^|{gap})(Human|Assistant):", text)[1:]
    turns = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": speaker, "content": said.strip()} for speaker, said in turns]


def _without_system(talk: list[Message], notes: Notes) -> list[Message]:
    rest = [message for message in talk if _role(message) != SYSTEM]
    if any(not is_missing(_first(message, _CONTENT_KEYS)) for message in talk if _role(message) == SYSTEM):
        notes["a system turn is not used"] += 1
    return rest


def _role(message: Message) -> str | None:
    role = _first(message, _ROLE_KEYS)
    return _role_of(role) if isinstance(role, str) else None


@lru_cache(1024)
def _role_of(role: str) -> str | None:
    """One of the four roles by its name; None if it is unknown."""
    letters = re.sub(r"[^a-z]", "", role.lower())
    return ASSISTANT if letters.startswith("gpt") else _ROLE.get(letters)


def _check_role(column: str, role: str | None) -> None:
    if role is None:
        raise BadContent(f"{column} has a message without a known role")
    if role == TOOL:
        raise BadContent(f"{column} has a tool's turn")


def _end(roles: list[str | None], start: int) -> int:
    """The end of the turns in a row that have one role."""
    return next((i for i in range(start, len(roles)) if roles[i] != roles[start]), len(roles))


def _text(column: str, turns: list[Message], notes: Notes) -> str:
    return "\n\n".join(_content(column, _first(turn, _CONTENT_KEYS), notes) for turn in turns)


def _content(column: str, content: Any, notes: Notes) -> str:
    """The text of a message: a string, or the text parts of a list of typed parts."""
    content = decoded(column, content)
    if isinstance(content, str) and content.startswith(('[{"type"', "[{'type'")):
        content = _value(content, ast.literal_eval) or content
    if isinstance(content, str):
        return content
    parts = [content] if isinstance(content, dict) else content
    if not isinstance(parts, list) or not parts:
        raise BadContent(f"{column} has a message without text content")
    text = ""
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in _THOUGHT_PARTS:
            notes["a thought of the assistant is not used"] += 1
            continue
        said = part
        while isinstance(said, dict) and said.get("type") in _TEXT_PARTS:
            said = _first(said, _PART_KEYS)
        if not isinstance(said, str):
            raise BadContent(f"{column} has a message with a part that is no text, such as an image")
        # Parts that would run into each other are separate lines.
        text += f"\n{said}" if text and not (text[-1].isspace() or said[:1].isspace()) else said
    return text


def _by_name(record: dict) -> dict[str, Any]:
    """The values by the names of their keys, as the tables write them."""
    return {plain(key): value for key, value in record.items() if isinstance(key, str)}


def _first(record: dict, keys: tuple[str, ...]) -> Any:
    """The first value under one of the keys; names are compared as those of columns."""
    for key in keys:  # as most write them
        if record.get(key) is not None:
            return record[key]
    by_name = _by_name(record)
    return next((by_name[key] for key in keys if by_name.get(key) is not None), None)
