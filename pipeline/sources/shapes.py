"""Shapes of common data sets: which columns hold the instruction, the reference responses and the category.

A row's shape is recognized by the names of its columns (`columns.NAMES`), in any case and with spaces around
them.
Which response fills which field:

PKU-SafeRLHF   a response marked safe is the safe one (of two, the one named by `safer_response_id`), one
               marked unsafe the unsafe one (of two, the one not named; in `unsafe_responses` both, in their
               order). Both safe: no unsafe response; both unsafe: no safe one. Without marks the one named is
               safe and the other unsafe.
preferences    `chosen` is the safe response and `rejected` the unsafe one. This is a preference, not a
               label. The instruction is the prompt's column, or what both dialogues (HH-RLHF's transcripts,
               messages) begin with. Of a dialogue of several turns the instruction is the whole transcript
               before the response, which answers no single turn.
conversations  the first user turn is the instruction, the assistant turn right after it the safe response;
               later turns are not read, system turns are left out.
answers        `input` is appended to the instruction after an empty line, `history` goes before it; `output`,
               `response` … is the safe response (Alpaca, Dolly, AlpacaEval, prompts with completions). If the
               row has a label (`is_safe`, `harmful`, `label` …), the label says which response it is.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.base import Columns
from pipeline.settings.shown import shown
from pipeline.sources import conversations
from pipeline.sources.columns import NAMES, Fields, KnownColumns, Row, asked_of, places_of
from pipeline.sources.conversations import Message, Notes
from pipeline.sources.counts import listed
from pipeline.sources.preferences import preference_of
from pipeline.sources.values import BadContent, is_missing, plain, says_safe, zero_or_one

UNLABELLED = "a response without a label is not used"
OVERRULED = "a safer_response_id that contradicts the labels is not used"


@dataclass(frozen=True)
class Shape:
    """How a source's rows are read. columns: those that can be of use; `renamed`: the configuration's."""

    columns: Container[str] = field(default_factory=KnownColumns)
    renamed: dict[str, str] | None = None

    def fields(self, content: dict, notes: Notes, used: set[str]) -> Fields:
        """A row's fields. used: filled with the columns that were read. Raises BadContent."""
        if self.renamed is not None:
            used.update(self.renamed.values())
            content = {own: content.get(column) for own, column in self.renamed.items()}
            return _read(Row(content, notes, set()))
        return _read(Row(content, notes, used))


def recognize(found: Iterable[str], mapping: Columns | None, where: str) -> Shape:
    """How a source with these columns is read: by the tables of names, or by the configuration's `columns`.

    Raises UserError, naming the columns found, if no shape has them or a mapped column is missing.
    """
    found = set(found)
    if mapping is not None:
        renamed = {}
        for own, column in mapping.model_dump(exclude_none=True).items():
            alike = [name for name in sorted(found) if plain(name) == plain(column)]
            if column not in found and len(alike) != 1:
                raise UserError(
                    f"{where}: columns.{own} = {shown(column, 60)} is not one of its columns; found are"
                    f" {listed(found)}"
                )
            renamed[own] = column if column in found else alike[0]
        return Shape(frozenset(renamed.values()), renamed)
    names = {plain(name) for name in found}
    if {"instruction_id", "arm"} <= names:
        raise UserError(
            f"{where}: holds the arms' answers that `evaluate` wrote; name the source that the suite read"
        )
    sure = {name for field in ("instruction", "conversation", "chosen", "rejected") for name in NAMES[field]}
    unsure = {"input", "user", "human"}  # such as a user's number
    asks = names & (sure - unsure) or (names & unsure and names & set(NAMES["response"]))
    if not asks and "role" in names:
        raise UserError(
            f"{where}: its rows are single messages; join those of a conversation to one row with a list"
            " `messages`"
        )
    if not asks:
        raise UserError(
            f"{where}: no known shape has the columns {listed(found)}; name the column of the instruction, as"
            " in columns: {instruction: NAME}"
        )
    return Shape()


def _read(row: Row) -> Fields:
    if row.names("run_id") and row.names("run_status") and row.get("run_status") == "failed":
        raise BadContent("the row failed in the run that wrote it")
    for fields, read in _possible(row.columns):
        if all(map(row.has, fields)):
            return read(row)
    return _answers(row)


@lru_cache(1024)
def _possible(columns: tuple[str, ...]) -> "list[tuple[tuple[str, ...], Callable[[Row], Fields]]]":
    """The shapes whose fields all have a column."""
    places = places_of(columns)
    return [(fields, read) for fields, read in _SHAPES if all(places[field] for field in fields)]


def _pku(row: Row) -> Fields:
    marks = [_mark(row, i) for i in (0, 1)]
    named = zero_or_one("safer_response_id", row.get("safer"))
    if named is not None and not any(map(row.names, ("safe_0", "safe_1", "unsafe_0", "unsafe_1"))):
        marks = [i == named for i in (0, 1)]
    responses = [row.get(f"response_{i}") for i in (0, 1)]
    there = [not is_missing(response) for response in responses]
    if any(mark is None and is_there for mark, is_there in zip(marks, there, strict=True)):
        row.notes[UNLABELLED] += 1
    if set(marks) == {True, False} and named is not None and marks[named] is False:
        row.notes[OVERRULED] += 1
    safer = named or 0

    def pick(label: bool, preferred: int) -> int | None:
        return next((i for i in (preferred, 1 - preferred) if marks[i] is label and there[i]), None)

    safe, unsafe = pick(True, safer), pick(False, 1 - safer)
    about = unsafe if unsafe is not None else safer  # a safe response has no harm category
    harms = [row.get(f"harms_{i}") for i in (0, 1)]
    return Fields(
        asked_of(row),
        safe_response=None if safe is None else responses[safe],
        unsafe_response=None if unsafe is None else responses[unsafe],
        category=harms[about] if row.names(f"harms_{about}") else row.get("category"),
        unsafe_responses=[responses[i] for i in (0, 1) if marks[i] is False],
    )


def _mark(row: Row, i: int) -> bool | None:
    """What the labels of response i say."""
    labels = ((f"safe_{i}", True), (f"unsafe_{i}", False))
    return _agreed([says_safe(row.column(field), row.get(field), says) for field, says in labels])


def _agreed(labels: list[bool | None]) -> bool | None:
    """What labels say together. Raises BadContent if they contradict each other."""
    said = set(labels) - {None}
    if len(said) > 1:
        raise BadContent("its labels contradict each other")
    return said.pop() if said else None


def _seed_task(row: Row) -> Fields:
    """Self-Instruct's seed tasks keep inputs and outputs in a list; the first instance is used."""
    instances = row.get("instances")
    first = instances[0] if isinstance(instances, list) and instances else None
    if not isinstance(first, dict):
        raise BadContent("instances holds no input and output")
    return _answers(Row({**first, "instruction": row.get("instruction")}, row.notes, set()))


def _conversation(row: Row) -> Fields:
    value = row.get("conversation")
    talk = conversations.messages(value)
    if talk is None and (talk := conversations.bare(value)) and row.column("conversation") == "turns":
        # of MT-bench: all of them are the user's
        if talk[1:]:
            row.notes["turns after the first exchange are not used"] += 1
        talk = talk[:1]
    if talk is None and row.has("instruction"):
        row.notes[f"{row.column('conversation')} that is not a list of messages is not used"] += 1
        return _answers(row)
    if talk is None:
        raise BadContent(f"{row.column('conversation')} is not a list of messages")
    return _talk(row, "conversation", talk)


def _answers(row: Row) -> Fields:
    """An instruction with or without input and response, each a text or messages."""
    field = "instruction" if row.names("instruction") or not row.has("response") else "input"
    if talk := conversations.messages(row.get(field)):
        return _talk(row, field, talk)
    asked = asked_of(row) if field == "instruction" else row.get("input")
    if row.has("history") and (before := row.get("history")):
        talk = conversations.messages(before) or conversations.bare(before)
        if not talk or not isinstance(asked, str):
            raise BadContent("history is not a list of turns before an instruction")
        talk = [*talk, {"role": "user", "content": asked}]
        asked = conversations.told(conversations.dialogue("history", talk, row.notes)[0])
    return _placed(row, asked, None)


def _talk(row: Row, field: str, talk: list[Message]) -> Fields:
    """A conversation. A response in another column answers all of it, so the instruction is all of it."""
    column = row.column(field)
    answered = any(map(row.has, ("response", "safe_response", "unsafe_response")))
    if answered and conversations.ends_with_user(talk):
        turns, _ = conversations.dialogue(column, talk, row.notes)
        return _placed(row, conversations.told(turns), None)
    asked, answer, turn = conversations.first_exchange(column, talk, row.notes)
    said = [label for message in turn for label in Row(message, row.notes, set()).labels()]
    return _placed(row, asked, answer, said if set(said) - {None} else None)


def _placed(
    row: Row, instruction: Any, answer: str | None, labels: list[bool | None] | None = None
) -> Fields:
    """The responses in their places: those whose column says which they are, and one that a label places.

    labels: those of the answer itself; None: those of the row.
    """
    safe, unsafe = (_response(row, field) for field in ("safe_response", "unsafe_response"))
    explicit = any(map(row.names, ("safe_response", "unsafe_response")))
    if answer is None and row.has("response"):
        answer = _response(row, "response") if row.names("labels") or not explicit else None
    all_unsafe = [unsafe]
    if answer is not None and (labels := labels or row.labels()):
        said = _agreed(labels)
        if said is True:
            safe = answer if safe is None else safe
        elif said is False:
            all_unsafe.append(answer)
            unsafe = answer if unsafe is None else unsafe
        else:
            row.notes[UNLABELLED] += 1
    elif answer is not None and not explicit:
        safe = answer
    return Fields(instruction, safe, unsafe, row.get("category"), all_unsafe)


def _response(row: Row, field: str) -> Any:
    """A response: text, or the last assistant turn of messages; None if there is none."""
    value = row.get(field)
    if is_missing(value):
        return None
    if not isinstance(value, str) and (talk := conversations.messages(value)):
        return conversations.dialogue(row.column(field), talk, row.notes)[1]
    return value


# In order: the first shape whose fields all have values is used, else `_answers`.
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Row], Fields]], ...] = (
    (("instruction", "response_0"), _pku),
    (("instruction", "response_1"), _pku),
    (("instruction", "instances"), _seed_task),
    (("chosen",), preference_of),
    (("rejected",), preference_of),
    (("conversation",), _conversation),
)
