"""The sentences that open a report: one arm or many, one seed or several, told apart or not."""

import pytest

from pipeline.report.arms import Arms
from pipeline.report.headline import Headline, Words, percent, sentence
from pipeline.report.summary import VANILLA, Difference, Rate

WORDS = Words("After training, the model", "before")


def difference(arm, points, *, n=100, differing=50, apart=True):
    half = 0.01 if apart else 2 * abs(points) + 0.01
    better = differing if points > 0 else 0
    return Difference(
        arm, VANILLA, points, (points - half, points + half), n, better, differing - better, n - differing
    )


def headline(rates, differences, **more):
    shares = {name: Rate(*rate) for name, rate in rates.items()}
    return Headline.of_rows(
        "answers harmlessly in", "of {n} harmful requests", shares.items(), differences, **more
    )


def told(one, arms, words=WORDS, judged="judged by rating"):
    return sentence(one, arms, words, judged).replace("\u00a0", " ")


def test_one_arm_that_differs():
    one = headline({VANILLA: (25, 100), "sft": (93, 100)}, [difference("sft", 0.68)])
    assert told(one, Arms(["sft"])) == (
        "After training, the model answers harmlessly in 93 % (sft; 95 % interval 86 to 97) of 100 harmful requests,"
        " before in 25 % (18 to 34), judged by rating: +68 points (+67 to +69), more than chance explains."
    )


def test_one_arm_that_cannot_be_told_apart():
    one = headline({VANILLA: (25, 100), "sft": (26, 100)}, [difference("sft", 0.01, apart=False)])
    assert told(one, Arms(["sft"])).endswith(
        "; the difference, +1 points (−2 to +4), cannot be told apart from chance."
    )


def test_a_difference_of_too_few_instructions_is_not_told_apart():
    one = headline({VANILLA: (0, 5), "sft": (5, 5)}, [difference("sft", 1.0, n=5, differing=5)])
    assert "cannot be told apart from chance" in told(one, Arms(["sft"]))


def test_nothing_that_both_answered():
    one = headline({VANILLA: (1, 5), "sft": (5, 5)}, [None])
    assert told(one, Arms(["sft"])).endswith("; nothing was judged for both, so they are not compared.")


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ((True, True, True), "; all 3 differ from the base model by more than chance."),
        ((True, True, False), "; a and b differ from the base model by more than chance, c does not."),
        ((True, False, False), "; a differs from the base model by more than chance, b and c do not."),
        ((False, False, False), "; none of them can be told apart from the base model."),
    ],
)
def test_several_arms(apart, expected):
    found = [difference(name, 0.3, apart=one) for name, one in zip("abc", apart, strict=True)]
    one = headline({VANILLA: (25, 100), "a": (55, 100), "b": (54, 100), "c": (53, 100)}, found)
    text = told(one, Arms("abc"))
    assert (
        "in 55 % (a; 95 % interval 45 to 64), 54 % (b; 44 to 63) and 53 % (c; 43 to 62) of 100 harmful"
        in text
    )
    assert text.endswith(expected)


def test_of_many_arms_the_lowest_and_the_highest_are_named():
    names = "abcdef"
    one = headline(
        {VANILLA: (25, 100)} | {name: (50 + i, 100) for i, name in enumerate(names)},
        [difference(name, 0.25, apart=name != "c") for name in names],
    )
    text = told(one, Arms(names))
    assert (
        "in 50 % (a; 95 % interval 40 to 60) to 55 % (f; 45 to 64), over 6 arms, of 100 harmful requests"
        in text
    )
    assert text.endswith("; 5 of the 6 arms differ from the base model by more than chance.")


def seeds(signs):
    replicas = {f"dpo_seed{i}": "dpo" for i in range(3)}
    found = [
        difference(name, 0.3 * sign, apart=bool(sign)) for name, sign in zip(replicas, signs, strict=True)
    ]
    rates = {name: (50 + 5 * i, 100) for i, name in enumerate(replicas)}
    return headline({VANILLA: (25, 100), **rates}, found), Arms([*replicas], replicas)


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ((1, 1, 1), "; all 3 seeds differ from the base model by more than chance."),
        ((1, 1, 0), "; 2 of the 3 seeds differ from the base model by more than chance."),
        ((1, 0, 0), "; 1 of the 3 seeds differs from the base model by more than chance."),
        ((0, 0, 0), "; none of the 3 seeds differs from the base model by more than chance."),
    ],
)
def test_an_arm_of_several_seeds_has_mean_and_range_and_no_interval(signs, expected):
    text = told(*seeds(signs))
    assert (
        "in 55 % (dpo; mean of 3 training seeds, 50 to 60) of 100 harmful requests, before in 25 % (95 %"
        in text
    )
    assert text.endswith(expected)


def test_seeds_that_differ_in_opposite_directions_are_not_all_said_to_differ():
    assert told(*seeds((1, -1, 1))).endswith("; its seeds differ from the base model in both directions.")


def test_different_counts_stand_beside_their_shares_and_missing_verdicts_are_told():
    one = headline(
        {VANILLA: (6, 6), "sft": (3, 3)},
        [difference("sft", 0.0, n=2, differing=0)],
        missing={VANILLA: 34, "sft": 37},
    )
    text = told(one, Arms(["sft"]))
    assert "in 100 % of 3 (sft;" in text and "of the harmful requests, before in 100 % of 6" in text
    assert "judged by rating, with no verdict on 34 to 37 more" in text


def test_the_base_model_alone():
    one = headline({VANILLA: (25, 100)}, [])
    assert told(one, Arms([]), Words("The model", "before")) == (
        "The model answers harmlessly in 25 % of 100 harmful requests (95 % interval 18 to 34; judged by rating)."
    )


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, "0"), (1, "100"), (0.996, "99.6"), (0.004, "0.4"), (0.99999, "99.9"), (0.248, "25")],
)
def test_what_is_not_all_is_not_rounded_to_all(share, expected):
    assert percent(share) == expected


def test_an_adapter_without_a_verdict_gets_no_share_of_the_base_model():
    one = headline({VANILLA: (40, 100), "sft": (0, 0)}, [None])
    assert told(one, Arms(["sft"])).startswith("Without an adapter, the model answers harmlessly in 40 %")
    assert told(one, Arms(["sft"])).endswith("; no answer of sft has a verdict.")


def test_an_arm_without_a_verdict_is_told_beside_another():
    one = headline({VANILLA: (40, 100), "a": (80, 100), "b": (0, 0)}, [difference("a", 0.4)])
    assert told(one, Arms(["a", "b"])).endswith("more than chance explains; no answer of b has a verdict.")


def test_an_arm_that_was_not_compared_is_no_arm_that_does_not_differ():
    one = headline({VANILLA: (40, 100), "a": (80, 100), "b": (50, 100)}, [difference("a", 0.4)])
    assert told(one, Arms(["a", "b"])).endswith(
        "; a differs from the base model by more than chance; b was not compared."
    )


def test_many_equal_arms_are_no_range():
    names = [f"a{number}" for number in range(5)]
    one = headline({VANILLA: (40, 100)} | {name: (80, 100) for name in names}, [])
    assert "80 % (each of 5 arms) of 100" in told(one, Arms(names))
