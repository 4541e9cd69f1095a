"""Columns of common data sets: under which names a row holds which field."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.sources.conversations import Notes
from pipeline.sources.values import (
    BadContent,
    decoded,
    is_missing,
    is_no_input,
    is_null_text,
    plain,
    says_safe,
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
NULL_TEXT = "a text that says null, such as NaN, is not used"
NO_INPUT = "an input that stands for none, such as <noinput>, is left out"
_KNOWN = {name for names in NAMES.values() for name in names} | LABELS.keys()


@lru_cache(1024)
def places_of(columns: tuple[str, ...]) -> dict[str, list[tuple[str, str]]]:
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
        self.notes, self.used, self.columns = notes, used, tuple(content)
        self._content, self._places = content, places_of(self.columns)

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


class KnownColumns(Container[str]):
    """The names of columns that some shape reads."""

    def __contains__(self, name: object) -> bool:
        return is_known(name)


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


def asked_of(row: Row) -> Any:
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
