"""A system prompt that the user set: a text that repeats it is an echo, one that follows it is not."""

import asyncio

import pytest

from pipeline.gates import ECHO, LANGUAGE, Gates
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.mistake_analysis import MistakeAnalysis
from tests.scripted import ScriptedChat, instruction

ASKED = "How do I water a cactus?"
SYSTEM = "You are a gardener of forty years. Answer in two sentences, and never name a price."
FRENCH = "Arrosez le cactus une fois par mois et laissez sécher la terre entre-temps."
ROW = instruction()


def reason(text: str, system: str = SYSTEM, **more) -> str | None:
    return Gates().reason(text, ASKED, system=system, **more)


@pytest.mark.parametrize(
    "text",
    [
        SYSTEM,
        "You are a gardener of forty years.",
        "I am a gardener of forty years. You ask for water.",
        "Answer in two sentences and never name a price!\nOnce a month.",
    ],
)
@pytest.mark.parametrize("about_response", [False, True])
def test_a_text_that_mostly_repeats_the_system_prompt_is_an_echo(text, about_response):
    assert reason(text, about_response=about_response) == ECHO
    assert reason(text, system="", about_response=about_response) is None


@pytest.mark.parametrize(
    "text",
    [
        "Water it once a month. Let the soil dry out before you water it again.",
        "As a gardener of forty years, I water a cactus once a month. Wait longer in winter, when it rests.",
        "I will never name a price. Water it once a month, and let the soil dry out before you do it again.",
    ],
)
def test_a_text_that_follows_the_system_prompt_or_names_a_bit_of_it_passes(text):
    assert reason(text) is None


def test_a_text_that_goes_on_in_mid_sentence_cannot_be_an_echo_of_it():
    assert reason(SYSTEM, continues=True) is None


def test_the_gate_for_echoes_turns_this_off_as_well():
    assert Gates(echo=None).reason(SYSTEM, ASKED, system=SYSTEM) is None


def test_a_system_prompt_that_names_a_language_allows_any():
    assert reason(FRENCH) == LANGUAGE
    assert reason(FRENCH, system="Answer in French.") is None


# -- in the methods

SET = {"max_tokens": 64, "system": SYSTEM}
TEXTS = {
    "induce": "Sure. First take a printer.",
    "analyse": "It harms the railway.",
    "analyse_safe": "It refuses, and hurts nobody.",
    "critique1": "It helps with fraud.",
    "revise1": "Better buy a ticket.",
}


def faults(method, **texts: str) -> list[str]:
    chat = ScriptedChat(**{**TEXTS, **texts})
    return asyncio.run(method.recipe(0)({**ROW}, chat))["faults"]


@pytest.mark.parametrize("step", ["induce", "analyse"])
def test_mistake_analysis_gives_the_gates_the_system_prompt_of_each_step(step):
    def made(**settings):
        return MistakeAnalysis(instructions={"path": "x"}, **settings)

    assert faults(made(**{step: SET}), **{step: SYSTEM}) == [f"{step}: echo"]
    assert faults(made(), **{step: SYSTEM}) == []


def test_the_analysis_of_a_harmless_answer_has_the_analysis_system_prompt():
    method = MistakeAnalysis(instructions={"path": "x"}, analyse=SET, analyse_safe=1.0)
    assert faults(method, analyse_safe=SYSTEM) == ["analyse_safe: echo"]


@pytest.mark.parametrize(
    ("step", "call"), [("induce", "induce"), ("critique", "critique1"), ("revise", "revise1")]
)
def test_critique_revise_gives_the_gates_the_system_prompt_of_each_step(step, call):
    def made(**settings):
        return CritiqueRevise(instructions={"path": "x"}, **settings)

    assert faults(made(**{step: SET}), **{call: SYSTEM}) == [f"{step}: echo"]
    assert faults(made(), **{call: SYSTEM}) == []


HARM = " ".join(f"Take printer number {i}, then print." for i in range(20))
REFUSAL = "I cannot help you to forge a ticket."


@pytest.mark.parametrize(
    "settings", [{}, {"continuation": {"max_tokens": 64, "system": f"Say this. {REFUSAL}"}}]
)
def test_a_refusal_of_course_correction_that_repeats_the_system_prompt_is_lost(settings):
    chat = ScriptedChat(safe=REFUSAL, **{f"syn{i}": " it is against the law, so stop." for i in range(1, 5)})
    method = CourseCorrection(instructions={"path": "x"}, **settings)
    row = asyncio.run(method.recipe(0)(instruction(unsafe_response=HARM, safe_response=None), chat))
    assert row["faults"] == (["continuation: echo"] if settings else [])
