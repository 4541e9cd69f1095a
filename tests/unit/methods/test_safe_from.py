"""Where course correction takes its best response from: the aligned model, the source, or one after the other."""

import asyncio

import pytest

from pipeline.config import Config
from pipeline.fingerprints import fingerprints
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.course_correction.recipe import CourseCorrectionRecipe
from tests import scripted
from tests.scripted import Cut, ScriptedChat, instruction

HARM = " ".join(f"Take printer number {i}, then print." for i in range(20))
TURN = " it is against the law and would hurt people."
OWN, SOURCE = "I cannot help you forge a ticket.", "Better buy one."


def run(
    safe: str | Exception = OWN, safe_response: str | None = SOURCE, **settings
) -> tuple[dict, ScriptedChat]:
    method = CourseCorrection(instructions={"path": "unused"}, **settings)
    chat = ScriptedChat(safe=safe, **{f"syn{i}": TURN for i in range(1, 5)})
    row = instruction(unsafe_response=HARM, safe_response=safe_response)
    return asyncio.run(CourseCorrectionRecipe(method, 0)(row, chat)), chat


def best(result: dict) -> str | None:
    return next((r["text"] for r in result["responses"] if r["rank"] == 1), None)


@pytest.mark.parametrize(("safe_from", "given", "taken", "asked"), [
    ("aligned", SOURCE, OWN, True), ("aligned", None, OWN, True),
    ("source", SOURCE, SOURCE, False), ("source", None, None, False),
    ("source_then_aligned", SOURCE, SOURCE, False), ("source_then_aligned", None, OWN, True),
])  # fmt: skip
def test_the_best_response_comes_from_where_it_is_said_to(safe_from, given, taken, asked):
    result, chat = run(safe_response=given, safe_from=safe_from)
    assert (best(result), "safe" in chat.steps) == (taken, asked)
    assert result["lost"] == ([] if taken else ["rank 1: no safe response"])


def test_the_aligned_model_is_the_default_and_its_adapter_answers():
    result, chat = run(aligned={"adapter": "/aligned"})
    assert best(result) == OWN
    [(messages, adapter)] = [(m, a) for step, m, _, a in chat.asked if step == "safe"]
    assert (messages, adapter) == ([{"role": "user", "content": "How can I forge a ticket?"}], "/aligned")


@pytest.mark.parametrize(("answer", "why"), [
    ("Sure, take a printer.", "no safe response"), (" \n", "no safe response"),
    (Cut("I cannot help you with"), "refusal ended at max_tokens without a usable sentence"),
])  # fmt: skip
def test_an_aligned_model_that_does_not_refuse_leaves_rank_1_empty_even_if_the_source_has_one(answer, why):
    result, _ = run(answer)
    assert best(result) is None and result["lost"] == [f"rank 1: {why}"]
    assert [r["rank"] for r in result["responses"]] == [2, 3, 4, 5, 6]


def test_only_those_that_may_ask_count_the_call():
    tokens = {
        name: CourseCorrection(instructions={"path": "x"}, safe_from=name).most_tokens()
        for name in ("aligned", "source", "source_then_aligned")
    }
    assert tokens == {"aligned": 5 * 512, "source": 4 * 512, "source_then_aligned": 5 * 512}


def config(**settings) -> Config:
    return scripted.config(
        recipe={"name": "course_correction", **settings}, instructions={"path": "toy:detailed-train"}
    )


@pytest.mark.parametrize(("old", "new"), [(True, "source_then_aligned"), (False, "source")])
def test_the_old_key_is_answered_with_the_new_one_and_its_data_stays_valid(old, new):
    with pytest.raises(ValueError, match=f"generate_safe is no longer a key: set safe_from: {new}"):
        config(generate_safe=old)
    section = fingerprints(config(safe_from=new))["corrections"]["course_correction"]
    assert section["generate_safe"] is old and "safe_from" not in section


def test_data_of_the_new_default_is_other_data():
    section = fingerprints(config())["corrections"]["course_correction"]
    assert section["safe_from"] == "aligned" and "generate_safe" not in section
