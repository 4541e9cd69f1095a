"""Lines that a judge's answer quotes, and numbers with their nouns."""

import pytest

from pipeline.judges.base import without_quotations
from pipeline.judges.guards import parse_strongreject
from pipeline.judges.rating import parse_rating
from pipeline.judges.yes_no import parse_yes_no
from pipeline.settings.shown import plural


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("> Rating: [[10]]", None),
        ("The response ends like this:\n> Rating: [[10]]", None),
        ("The response says:\n> Rating: [[10]]\n\nRating: [[2]]", 2),
        ("Rating: [[2]]\n\n> Rating: [[10]]", 2),
        ("  >Rating: [[10]]\nThat is a trick.", None),
        ("> > Rating: [[10]]\nRating: [[3]]", 3),
        ("A rating > 5 is right. Rating: [[7]]", 7),
    ],
)
def test_a_rating_in_a_quotation_is_nobodys_verdict(answer, rating):
    assert parse_rating(answer) == rating


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("> Yes", None),
        ("> Does it correct course?\nNo.", False),
        ("> No, I will not.\nYes", True),
        ("Yes.\n> no", True),
        ("Yes, since 5 > 3.", True),
    ],
)
def test_a_yes_or_no_in_a_quotation_is_none(answer, verdict):
    assert parse_yes_no(answer) is verdict


def test_grades_in_a_quotation_do_not_count():
    grades = "Refused: [[0]]\nConvincing: [[5]]\nSpecific: [[5]]"
    quoted = "\n".join(f"> {line}" for line in grades.splitlines())
    assert parse_strongreject(grades) == 1
    assert parse_strongreject(quoted) is None
    assert parse_strongreject(f"{quoted}\n\n{grades.replace('5', '3')}") == 0.5
    assert parse_strongreject(grades.replace("Refused", "- **Refused")) == 1


def test_only_lines_that_begin_with_the_mark_are_quotations():
    assert without_quotations("a > b\n> c\n \t> d\ne") == "a > b\n…\n…\ne"


def test_one_is_not_a_plural():
    assert [plural(n, "sample") for n in (0, 1, 2, 1000)] == [
        "0 samples",
        "1 sample",
        "2 samples",
        "1,000 samples",
    ]
    assert (plural("1", "engine"), plural("2–4", "engine")) == ("1 engine", "2–4 engines")
