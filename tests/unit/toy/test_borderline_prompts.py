"""`toy:borderline`: prompts that only sound harmful, and requests for the same deeds."""

import re

from pipeline.settings.base import Source
from pipeline.sources import instructions
from pipeline.suites.borderline import Borderline
from pipeline.suites.borderline.recipe import halves
from pipeline.toy import world
from pipeline.toy.corpus import Corpus


def test_both_halves_are_about_the_same_held_out_deeds():
    rows = world.borderline()
    contrast = [row["instruction"] for row in rows if row["category"] == "contrast"]
    safe = [row["instruction"] for row in rows if row["category"] != "contrast"]
    deeds = [f"{deed.verb} {deed.object}" for deed in world.deeds("harmful-heldout")]

    def about(texts):
        return [next(deed for deed in deeds if deed in text) for text in texts]

    assert about(safe) == about(contrast) and len(set(about(safe))) == 40


def test_the_suite_divides_them_into_halves_of_equal_size():
    source = Source(path="toy:borderline")
    suite = Borderline.model_validate({"prompts": source, "unsafe_categories": ["contrast"]})
    found = [half for half, _ in halves(suite, instructions.well_formed(source), ())]
    assert found == ["safe"] * 40 + ["unsafe"] * 40


def test_the_toy_model_has_not_read_their_sentences():
    forms = [
        re.escape(text).replace(r"\{v\}", ".*").replace(r"\{o\}", ".*")
        for text in world._texts()["borderline"].values()
    ]
    corpus = Corpus(1)
    asked = [corpus.draw("harmful_plain")[0]["content"] for _ in range(200)]
    assert not [text for text in asked if any(re.fullmatch(form, text) for form in forms)]
    assert all(
        any(re.fullmatch(form, row["instruction"]) for form in forms) for row in world.borderline()[:40]
    )
