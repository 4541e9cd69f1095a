"""docs/methods.md: every section says what the paper does, what is unknown, and what is done here."""

import re

import pytest

from pipeline.config import load
from pipeline.registry import METHODS
from tests.unit.test_methods_page import PAGE
from tests.unit.test_paper_table import FILES

SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("title", SECTIONS)
def test_a_section_tells_the_paper_the_unknown_and_what_is_done_here(title):
    labels = [f"**{name}.**" for name in ("The paper", "Unknown", "Here")]
    places = [SECTIONS[title].find(label) for label in labels]
    assert -1 < places[0] < places[1] < places[2]


def test_every_kind_that_an_arm_of_the_comparison_is_trained_on_is_told():
    kinds = {kind for path in FILES.values() for arm in load(path).arms.values() for kind in arm.kinds or ()}
    assert {"safe", "helpful", "analysis", "revision", "hindsight", "source"} <= kinds
    assert not [kind for kind in kinds if not re.search(rf"\b{kind}\b", PAGE)]


def test_every_kind_of_every_method_is_told():
    kinds = {kind for method in METHODS.values() for of in method.example_kinds.values() for kind in of}
    assert {"recovery", "correction", "hindsight_unsafe"} <= kinds
    assert not [kind for kind in kinds if not re.search(rf"\b{kind}\b", PAGE)]
