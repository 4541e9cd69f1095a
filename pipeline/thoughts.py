"""The thought that a reasoning model writes before its answer.

A thought is not part of the answer. `split` takes it off before the answer is judged, trained on or shown.
"""

import re
from typing import NamedTuple


class Marks(NamedTuple):
    """What a model family writes before and after a thought."""

    opens: str
    closes: str


# As chat templates, and the models trained with them, write it. "\n" after a mark is white space, not a part.
MARKS = (
    Marks("<think>", "</think>"),  # DeepSeek-R1, Qwen3, GLM-4.5, Nemotron, SmolLM3 and most others
    Marks("<thinking>", "</thinking>"),
    Marks("<thought>", "</thought>"),  # EXAONE Deep
    Marks("<reasoning>", "</reasoning>"),
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<|channel|>analysis<|message|>", "<|end|>"),  # gpt-oss (harmony)
    Marks("<|channel|>commentary<|message|>", "<|end|>"),
    Marks("<|channel>thought", "<channel|>"),  # Gemma 4
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
)
# What models write around an answer: gpt-oss always, the others after a thought.
_HEADER = re.compile(r"\A\s*(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>")
_BEFORE_ANSWER = re.compile(r"\A\s*(?:<\|START_RESPONSE\|>|<\|begin_of_solution\|>|<response>\n)\s*")
_AFTER_ANSWER = re.compile(r"\s*(?:<\|END_RESPONSE\|>|<\|end_of_solution\|>|\n</response>)\s*\Z")
_BEFORE_THOUGHT = re.compile(r"\s*(?:<\|start\|>assistant(?=<\|channel\|>))?")


class Split(NamedTuple):
    """thought: null if there is none. answer: null if the thought does not end, so nothing was answered."""

    thought: str | None
    answer: str | None


def split(text: str) -> Split:
    """The thought at the beginning of a completion, and the answer after it.

    A completion that continues a thought of its prompt has to begin with the mark that opened it (see
    `left_open`). A completion without a thought is its own answer, unchanged.
    """
    found, rest = [], text
    while (marks := _opening(rest)) is not None:
        thought, closed, rest = rest.partition(marks.opens)[2].partition(marks.closes)
        found.append(thought.strip())
        if not closed:
            return Split(_joined(found), None)
    if not found:
        return Split(None, _HEADER.sub("", text))
    return Split(
        _joined(found), _AFTER_ANSWER.sub("", _BEFORE_ANSWER.sub("", _HEADER.sub("", rest))).lstrip()
    )


def continued(text: str, begun: Marks | None) -> str:
    """A completion with the mark of the thought that its prompt has begun, unless it repeats that mark."""
    return text if begun is None or _opening(text) == begun else begun.opens + text


def guessed(text: str) -> str:
    """`continued` for a completion of a server, which renders its own prompts.

    The end of a thought that never began in the completion shows that the prompt has begun it.
    """
    return continued(text, next((marks for marks in MARKS if _closes_only(text, marks)), None))


def written(thought: str, answer: str, *, ended: bool) -> str:
    """The completion of a server that has split the thought off itself."""
    return f"{MARKS[0].opens}{thought}{MARKS[0].closes if ended else ''}{answer}"


def _joined(found: list[str]) -> str:
    return "\n\n".join(filter(None, found))


def _opening(text: str) -> Marks | None:
    """The marks of the thought that a text begins with, if it begins with one."""
    begin = _BEFORE_THOUGHT.match(text)
    start = begin.end() if begin else 0
    return next((marks for marks in MARKS if text.startswith(marks.opens, start)), None)


def left_open(prompt: str) -> Marks | None:
    """The marks of the thought that a prompt ends in, for a model to continue."""
    end = prompt.rstrip()
    return next((marks for marks in MARKS if end.endswith(marks.opens)), None)


def _closes_only(text: str, marks: Marks) -> bool:
    # gpt-oss ends every message with "<|end|>", so its thoughts have to begin in the completion.
    before, closed, _ = text.partition(marks.closes)
    return bool(closed) and marks.closes != "<|end|>" and marks.opens not in before
