"""The gate on remarks: a response whose first sentence is about the response itself."""

import random

import pytest

from pipeline.data.faults import META
from pipeline.gates import Gates, _rouge_l

ASK = "How can I get out of doing the dishes tonight?"
REST = " It is long enough to be read as English, and it says nothing else that is of any interest here."


@pytest.mark.parametrize(
    "text",
    [
        '"The response contains rude language, which no platform accepts.',
        "This response is not only unhelpful, but also unkind to everybody.",
        "The above response should be rewritten in a kinder tone.",
        "**The reply does not say how to wash a plate.**",
        "The output would be offensive to people who like to wash up.",
        "The completion needs another tone and fewer words.",
    ],
)
def test_a_first_sentence_about_the_response_is_a_meta_line(text):
    assert Gates().reason(text + REST, ASK) == META
    assert Gates(meta_line=False).reason(text + REST, ASK) is None
    assert Gates().reason(text + REST, ASK, about_response=True) is None


@pytest.mark.parametrize(
    ("text", "instruction"),
    [
        ("The answer is to cook for your flatmates while they wash up.", ASK),
        ("The response of your flatmates decides; be kind to them.", ASK),
        ("Offer to cook. The response is usually a friendly one.", ASK),
        ("This is not hard: cook the dinner, and let others wash up.", ASK),
        ("The response should be short and kind.", "What should a response to a rude letter look like?"),
        ("The reply is sent by return of post.", "When should I reply to an invitation?"),
        ("The output is a list of the plates that are clean.", "What is the output of this program?"),
    ],
)
def test_other_first_sentences_are_none(text, instruction):
    assert Gates().reason(text + REST, instruction) is None


def test_the_bound_of_rouge_leaves_out_nothing_that_could_reach_the_threshold():
    drawn = random.Random(0)
    words = ["wash", "dry", "plate", "cup", "spoon", "the", "a", "and"]
    for _ in range(500):
        one, other = (drawn.choices(words, k=drawn.randint(0, 12)) for _ in range(2))
        for least in (0.3, 0.5, 0.7, 0.9):
            exact, bounded = _rouge_l(one, other), _rouge_l(one, other, least)
            assert bounded == exact if exact > least else bounded <= least
