"""Shapes of common data sets: which columns hold the instruction, the reference responses and the category.

A row's shape is recognized by the names of its columns (NAMES), in any case and with spaces around them.
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

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from pipeline.errors import UserError
from pipeline.settings.base import Columns
from pipeline.settings.shown import shown
from pipeline.sources import conversations
from pipeline.sources.conversations import Message, Notes
from pipeline.sources.counts import listed
from pipeline.sources.values import (
    BadContent,
    decoded,
    is_missing,
    is_no_input,
    is_null_text,
    plain,
    says_safe,
    zero_or_one,
)

# Field → the names of its column, the first that has a value counts.
NAMES: dict[str, tuple[str, ...]] = {
    field: tuple(names.split())
    for field, names in {
        "instruction": (
            "instruction prompt question query request goal behavior forbidden_prompt user_prompt user_query"
            " user_message user_input user human problem inputs adversarial vanilla"
        ),
        "input": "input context context_string",
        "conversation": (
            "messages conversations conversation dialogue dialog turns chat transcript contents data"
        ),
        "history": "history",
        "response": (
            "response output completion answer reply assistant assistant_response model_response model_output"
            " reference reference_answer reference_response best_answer solution generated_solution"
            " helpful_response bot targets"
        ),
        "safe_response": (
            "safe_response safe_answer safe_output safe_completion harmless_response harmless_answer"
        ),
        "unsafe_response": (
            "unsafe_response unsafe_answer unsafe_output unsafe_completion harmful_response harmful_answer"
            " harmful_output toxic_response"
        ),
        "chosen": (
            "chosen chosen_response response_chosen accepted preferred preferred_response preferred_output"
            " better_response"
        ),
        "rejected": (
            "rejected rejected_response response_rejected reject dispreferred dispreferred_response"
            " non_preferred_output worse_response"
        ),
        "category": "category categories harm_category harm_categories semantic_category topic",
        "instances": "instances",
        **{
            name: names
            for i in (0, 1)
            for name, names in {
                f"response_{i}": f"response_{i}",
                f"safe_{i}": f"is_response_{i}_safe response_{i}_safe response_{i}_is_safe",
                f"unsafe_{i}": f"is_response_{i}_unsafe response_{i}_unsafe is_response_{i}_harmful",
                f"harms_{i}": f"response_{i}_harm_category",
            }.items()
        },
        "safer": "safer_response_id",
        "run_status": "status",
        "run_id": "instruction_id",
    }.items()
}
# Names of labels of a response → what true says: safe, unsafe, or (None) only words are understood.
LABELS: dict[str, bool | None] = {
    name: says
    for names, says in {
        "is_safe safe is_response_safe response_is_safe response_safe is_harmless harmless": True,
        "kto_tag desirable is_desirable": True,
        "is_unsafe unsafe is_response_unsafe is_harmful harmful is_response_harmful response_harmful": False,
        "response_harm_label is_toxic toxic": False,
        "label safety safety_label response_label response_safety safety_assessment": None,
    }.items()
    for name in names.split()
}
UNLABELLED = "a response without a label is not used"
OVERRULED = "a safer_response_id that contradicts the labels is not used"
NULL_TEXT = "a text that says null, such as NaN, is not used"
NO_INPUT = "an input that stands for none, such as <noinput>, is left out"
_KNOWN = {name for names in NAMES.values() for name in names} | LABELS.keys()


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


@lru_cache(1024)
def _places(columns: tuple[str, ...]) -> dict[str, list[tuple[str, str]]]:
    """Field, or "labels", → its columns in a row of these columns: (name in the tables, name in the row)."""
    named: dict[str, list[str]] = {}
    for column in filter(lambda column: isinstance(column, str), columns):
        named.setdefault(plain(column), []).append(column)
    return {
        field: [(name, column) for name in names for column in named.get(name, ())]
        for field, names in {**NAMES, "labels": tuple(LABELS)}.items()
    }


class Row:
    """A row by the names of the tables. Adds the columns that are read to `used`."""

    def __init__(self, content: dict, notes: Notes, used: set[str]):
        self.notes, self.used = notes, used
        columns = tuple(content)
        self._content, self._places, self.shapes = content, _places(columns), _possible(columns)

    def get(self, field: str) -> Any:
        """The value of a field: under the first of its names that has one, else missing as it stands there.

        Bytes are decoded. Raises BadContent if they are not UTF-8.
        """
        name, column = self._place(field)
        if column is None:
            return None
        self.used.add(column)
        value = self._content[column]
        return None if self._is_null(field, value) else decoded(name, value)

    def has(self, field: str) -> bool:
        """Whether a field has a value."""
        for _, column in self._places[field]:
            value = self._content[column]
            if not is_missing(value) and not self._is_null(field, value):
                return True
        return False

    def names(self, field: str) -> bool:
        """Whether there is a column of a field, with or without a value."""
        return bool(self._places[field])

    def labels(self) -> list[bool | None]:
        """What each label of the row says: safe, unsafe, nothing."""
        self.used.update(column for _, column in self._places["labels"])
        return [
            says_safe(name, self._content[column], LABELS[name]) for name, column in self._places["labels"]
        ]

    def column(self, field: str) -> str:
        """The name under which `get` finds a field, as the table writes it."""
        return self._place(field)[0]

    def _place(self, field: str) -> tuple[str, str | None]:
        places = self._places[field]
        for place in places:
            if not is_missing(value := self._content[place[1]]) and not is_null_text(value):
                return place
        return places[0] if places else (field, None)

    def _is_null(self, field: str, value: Any) -> bool:
        """Whether a value is text that says null. Such values are reported."""
        if not is_null_text(value):
            return False
        self.notes[NO_INPUT if field == "input" else NULL_TEXT] += 1
        return True


def is_known(name: object) -> bool:
    """Whether some shape reads a column of this name."""
    return isinstance(name, str) and plain(name) in _KNOWN


class _Known(Container[str]):
    """The names of columns that some shape reads."""

    def __contains__(self, name: object) -> bool:
        return is_known(name)


@dataclass(frozen=True)
class Shape:
    """How a source's rows are read. columns: those that can be of use; `renamed`: the configuration's."""

    columns: Container[str] = field(default_factory=_Known)
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
    for fields, read in row.shapes:
        if all(map(row.has, fields)):
            return read(row)
    return _answers(row)


@lru_cache(1024)
def _possible(columns: tuple[str, ...]) -> "list[tuple[tuple[str, ...], Callable[[Row], Fields]]]":
    """The shapes whose fields all have a column."""
    places = _places(columns)
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
        _asked(row),
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


def _preference(row: Row) -> Fields:
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
    text = value if field == "input" else _asked(row)
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
    asked = _asked(row) if field == "instruction" else row.get("input")
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


def _asked(row: Row) -> Any:
    """The instruction with its input after an empty line.

    The caller rejects an instruction that is not text.
    """
    instruction, input = row.get("instruction"), row.get("input")
    if not isinstance(instruction, str) or is_missing(input) or input in ([], {}):
        return instruction
    if not isinstance(input, str):
        raise BadContent(f"{row.column('input')} is a {type(input).__name__}, not a string")
    if is_no_input(input):
        row.notes[NO_INPUT] += 1
        return instruction
    return f"{instruction}\n\n{input}"


# In order: the first shape whose fields all have values is used, else `_answers`.
_SHAPES: tuple[tuple[tuple[str, ...], Callable[[Row], Fields]], ...] = (
    (("instruction", "response_0"), _pku),
    (("instruction", "response_1"), _pku),
    (("instruction", "instances"), _seed_task),
    (("chosen",), _preference),
    (("rejected",), _preference),
    (("conversation",), _conversation),
)
