"""Single values of a source: what counts as missing, as text and as a label."""

import re
from decimal import Decimal
from functools import lru_cache
from typing import Any


class BadContent(Exception):
    """A row whose content does not match its shape; the message is the reason, without the text."""


# Texts that mean no input in an input column, by their letters and digits. `NA` is compared with its case,
# because `Na` is also sodium.
_NO_INPUT = {
    *("noinput", "none", "nan", "null", "nil", "empty", "notapplicable", "noinputprovided", "noinputneeded"),
    *("nat", "undefined", "blank", "noneprovided", "nothingprovided", "noinputisneeded", "noinputdata"),
    *("noinputrequired", "noinputgiven", "noadditionalinput", "nocontext", "nocontextprovided", "emptyinput"),
    *("nooutput", "inputnone", "noneneeded", "notneeded", "notrequired", "notprovided", "notgiven"),
}
# What tools write as text for a value that is not there. As a whole answer it means the same.
_NULLS = {"nan", "NaN", "null", "NULL", "None", "<NA>", "#N/A", "\\N", "NaT"}
_INVISIBLE = " \t\r\n\0\u200b\u200c\u200d\u2060\ufeff"
_NO_LABEL = {"", "nan", "null", "none", "na", "n/a", "nat", "unknown", "unlabeled", "unlabelled"}
_TRUE, _FALSE = {"true", "yes", "t", "y"}, {"false", "no", "f", "n"}
_SAFE = {"safe", "harmless", "unharmful", "benign", "non-toxic", "nontoxic", "not harmful", "not unsafe"}
_SAFE |= {"not toxic", "desirable"}
_UNSAFE = {"unsafe", "harmful", "toxic", "malicious", "not safe", "not harmless", "undesirable"}


@lru_cache(4096)
def plain(name: str) -> str:
    """A column's name as the tables of names write it: `" Safe-Response"` and `safeResponse` are
    `safe_response`."""
    name = name.strip("\ufeff\"' \t\r\n").replace("-", "_").replace(" ", "_")
    hump = [f"_{c}" if c.isupper() and name[i - 1 : i].islower() else c for i, c in enumerate(name)]
    return "".join(hump).lower()


def is_missing(value: Any) -> bool:
    """Whether a value is what tools write for no value: null, NaN, text without a visible character."""
    if isinstance(value, str):
        return not value.strip().strip(_INVISIBLE)
    if isinstance(value, bytes):
        return not value.strip()
    if isinstance(value, Decimal):
        return value.is_nan()
    return value is None or (isinstance(value, float) and value != value)


def is_null_text(value: Any) -> bool:
    """Whether a text is how a tool writes that there is no value, such as `nan` of pandas."""
    return isinstance(value, str) and len(value) < 8 and value.strip() in _NULLS


def decoded(column: str, value: Any) -> Any:
    """Bytes as text, anything else unchanged. Raises BadContent if they are not UTF-8."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        raise BadContent(f"{column} is not valid UTF-8") from None


def is_no_input(text: str) -> bool:
    """Whether a text stands for no input, such as `<noinput>` or `N/A`."""
    if len(text) > 40:
        return False
    letters = "".join(character for character in text if character.isalnum())
    if letters:
        return letters.lower() in _NO_INPUT or letters in ("NA", "na")
    return text.strip() in {"", "-", "--", "—", "[]", "{}", "()", "<>", '""', "''"}


def _word(value: Any) -> str:
    """A label as a word: 1.0 and "1.00" become 1."""
    word = str(value).strip(" .!\t\r\n").lower().replace("_", " ")
    return re.sub(r"^(-?[01])\.0+$", r"\1", word)


def says_safe(column: str, value: Any, true_means: bool | None) -> bool | None:
    """Whether a label says safe; None if there is no label.

    true_means: what true and 1 say. None: a column such as `label`, of which only words and true (desirable,
    as in TRL's unpaired preferences) are understood. Raises BadContent for a label that is not understood.
    """
    if is_missing(value) or (word := _word(decoded(column, value))) in _NO_LABEL:
        return None
    if word in _SAFE or word in _UNSAFE:
        return word in _SAFE
    numbers = {"1": True, "0": False} if true_means is not None else {}
    truth = True if word in _TRUE else False if word in _FALSE else numbers.get(word)
    if truth is None:
        raise BadContent(f"{column} says neither safe nor unsafe")
    return truth if true_means is not False else not truth


def zero_or_one(column: str, value: Any) -> int | None:
    """The number of a response; None if there is none, or if it is -1. Raises BadContent for other values."""
    if is_missing(value) or (word := _word(decoded(column, value))) in _NO_LABEL | {"-1"}:
        return None
    number = {"0": 0, "1": 1, "false": 0, "true": 1}.get(word)
    if number is None:
        raise BadContent(f"{column} is not the number of a response")
    return number
