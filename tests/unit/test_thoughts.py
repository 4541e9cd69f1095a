"""Thoughts of reasoning models are no part of their answers."""

import pytest

from pipeline import thoughts
from pipeline.thoughts import MARKS, split

HARMONY = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Sure."


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.opens)
def test_a_thought_is_split_off(marks):
    text = f"\n{marks.opens}\nfirst this\n\nthen that\n{marks.closes}\n\nSure.\n"
    assert split(text) == ("first this\n\nthen that", "Sure.\n")
    assert split(f"{marks.opens}first this") == ("first this", None)
    assert split(f"{marks.opens}{marks.closes}Sure.") == ("", "Sure.")


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        (HARMONY, "hm", "Sure."),
        (HARMONY.partition("<|start|>")[0], "hm", ""),
        ("<|channel|>final<|message|>Sure.", None, "Sure."),
        ("<think>a</think>\n<think>b</think>Sure.", "a\n\nb", "Sure."),
        ("<think>one </think> two </think> three", "one", "two </think> three"),
        ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Sure.<|END_RESPONSE|>", "hm", "Sure."),
        (
            "<|begin_of_thought|>hm<|end_of_thought|>\n\n<|begin_of_solution|>Sure.<|end_of_solution|>",
            "hm",
            "Sure.",
        ),
        ("<think></think>", "", ""),
    ],
)
def test_what_models_write_around_thought_and_answer(text, thought, answer):
    assert split(text) == (thought, answer)


@pytest.mark.parametrize(
    "text",
    ["", " Sure.\n", "The tag <think> opens a thought, </think> ends it.", "</think> Sure.", "I think <b>so"],
)
def test_a_text_without_a_thought_at_its_beginning_is_left_alone(text):
    assert split(text) == (None, text)


def test_a_thought_that_the_prompt_has_begun_is_one():
    begun = thoughts.left_open("<|im_start|>assistant\n<think>\n")
    assert begun == ("<think>", "</think>")
    assert split(thoughts.continued("hm\n</think>\n\nSure.", begun)) == ("hm", "Sure.")
    assert split(thoughts.continued("hm, sure", begun)) == ("hm, sure", None)
    assert split(thoughts.continued("<think>hm</think>Sure.", begun)) == ("hm", "Sure.")
    assert thoughts.left_open("<think>\n\n</think>\n\n") is None


@pytest.mark.parametrize(
    ("text", "thought", "answer"),
    [
        ("hm\n</think>\n\nSure.", "hm", "Sure."),
        ("hm [/THINK]Sure.", "hm", "Sure."),
        ("<think>hm</think>Sure.", "hm", "Sure."),
        ("Sure.", None, "Sure."),
        ("This message ends with <|end|> here.", None, "This message ends with <|end|> here."),
    ],
)
def test_a_servers_prompt_is_guessed_from_its_answer(text, thought, answer):
    assert split(thoughts.guessed(text)) == (thought, answer)


def test_a_thought_that_a_server_has_split_off():
    assert split(thoughts.written("hm", "Sure.", ended=True)) == ("hm", "Sure.")
    assert split(thoughts.written("hm", "", ended=False)) == ("hm", None)
