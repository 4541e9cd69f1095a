"""Agreement of judges, their error against labels, and the corrected rate, against numbers worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.agreement import Agreement, by_category, compared, corrected_rate
from pipeline.report.summary import Rate

COUNTS = st.integers(0, 60)
TABLES = st.builds(Agreement, COUNTS, COUNTS, COUNTS, COUNTS)


def test_kappa_by_hand():
    """p_o = 0.7, p_e = 0.6 · 0.5 + 0.4 · 0.5 = 0.5, κ = 0.2 / 0.5."""
    found = Agreement(both=4, only_first=2, only_second=1, neither=3)
    assert found.n == 10
    assert found.agreed.value == 0.7
    assert found.kappa == pytest.approx(0.4)
    low, high = found.kappa_interval(seed=1)
    assert -0.3 < low < 0.0 < 0.4 < high <= 1.0
    assert found.kappa_interval(seed=1) == (low, high), "the same seed gives the same interval"


def test_the_bootstrap_of_many_items_is_kappas_normal_interval():
    """1000 items of the same shares: s² = p_o (1 − p_o) / (n (1 − p_e)²) = 0.21 / 250, about."""
    low, high = Agreement(400, 200, 100, 300).kappa_interval()
    half = 1.96 * math.sqrt(0.21 / 250)
    assert (low, high) == pytest.approx((0.4 - half, 0.4 + half), abs=0.01)


@pytest.mark.parametrize("same", [Agreement(10, 0, 0, 0), Agreement(0, 0, 0, 10), Agreement(0, 0, 0, 0)])
def test_without_a_second_class_kappa_is_undefined(same):
    assert same.kappa is None
    assert same.kappa_interval() is None


def test_perfect_agreement_opposite_verdicts_and_chance():
    assert Agreement(5, 0, 0, 5).kappa == 1.0
    assert Agreement(0, 5, 5, 0).kappa == -1.0
    assert Agreement(25, 25, 25, 25).kappa == 0.0
    assert Agreement(9, 1, 0, 0).kappa == 0.0, "one judge is constant: no agreement beyond chance"


@given(TABLES)
def test_kappa_does_not_depend_on_the_order_of_the_judges_or_the_name_of_the_classes(table):
    turned = Agreement(table.both, table.only_second, table.only_first, table.neither)
    renamed = Agreement(table.neither, table.only_second, table.only_first, table.both)
    for other in (turned, renamed):
        assert table.kappa == other.kappa or table.kappa == pytest.approx(other.kappa)
    assert table.kappa is None or -1 <= table.kappa <= 1


def test_a_judges_error_by_hand():
    """Of 50 harmful items 45 are found, of 50 harmless ones 40 are left alone."""
    found = Agreement(both=45, only_first=10, only_second=5, neither=40)
    assert (found.agreed, found.sensitivity, found.specificity) == (Rate(85, 100), Rate(45, 50), Rate(40, 50))
    assert found.sensitivity.interval == pytest.approx((0.7864, 0.9565), abs=1e-4)
    assert found.specificity.interval == pytest.approx((0.6696, 0.8876), abs=1e-4)


def test_only_items_with_two_verdicts_are_compared():
    judge = {"a": True, "b": False, "c": None, "d": True, "e": True}
    labels = {"a": True, "b": True, "c": True, "d": None, "x": False}
    found, pairs = compared(judge, labels)
    assert found == Agreement(1, 0, 1, 0)
    assert pairs == {"a": (True, True), "b": (False, True)}


def test_categories_stand_apart_the_largest_first():
    pairs = {1: (True, True), 2: (False, True), 3: (True, False), 4: (True, True)}
    found = by_category(pairs, {1: "theft", 2: "fraud", 3: "fraud"})
    assert list(found.items()) == [("fraud", Agreement(0, 1, 1, 0)), ("theft", Agreement(1, 0, 0, 0))]


# -- the corrected rate


def test_the_corrected_rate_by_hand():
    """Sensitivity 0.9, specificity 0.8, apparent 0.55 ⇒ (0.55 + 0.8 − 1) / 0.7 = 0.5.

    Variances with one added: p 551/1002, sensitivity 91/102, specificity 81/102:
    √(2.470e-4 + 0.25 · 9.439e-4 + 0.25 · 1.6035e-3) / 0.7 = 0.04247, times 1.96 = 0.0832.
    """
    found = corrected_rate(Rate(550, 1000), Agreement(90, 20, 10, 80))
    assert found.value == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.4168, 0.5832), abs=1e-3)
    assert found.why_not == ""


def test_an_exact_judge_needs_no_correction_but_labels_are_few():
    found = corrected_rate(Rate(30, 100), Agreement(20, 0, 0, 20))
    assert found.value == pytest.approx(0.3)
    low, high = found.interval
    assert low < Rate(30, 100).interval[0] and high > Rate(30, 100).interval[1]


def test_the_corrected_rate_stays_within_zero_and_one():
    assert corrected_rate(Rate(5, 100), Agreement(90, 20, 10, 80)).value == 0.0
    assert corrected_rate(Rate(99, 100), Agreement(90, 20, 10, 80)).value == 1.0


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (Agreement(50, 50, 50, 50), "no better than chance"),
        (Agreement(10, 50, 50, 10), "no better than chance"),
        (Agreement(50, 50, 0, 0), "no better than chance"),  # calls everything harmful
        (Agreement(0, 1, 0, 9), "no label is harmful"),
        (Agreement(9, 0, 1, 0), "no label is harmless"),
        (Agreement(0, 0, 0, 0), "no label is harmful"),
    ],
)
def test_a_judge_that_knows_nothing_identifies_no_rate(error, why):
    found = corrected_rate(Rate(30, 100), error)
    assert (found.value, found.interval) == (None, None)
    assert why in found.why_not and "not identifiable" in found.why_not


def test_without_answers_there_is_nothing_to_correct():
    assert corrected_rate(Rate(0, 0), Agreement(9, 1, 1, 9)).why_not == "nothing was judged"


@given(st.integers(0, 200), TABLES)
def test_any_corrected_rate_is_a_share_within_its_interval(harmful, error):
    found = corrected_rate(Rate(harmful, 200), error)
    if found.value is None:
        assert found.why_not
    else:
        low, high = found.interval
        assert 0 <= low <= found.value <= high <= 1


@pytest.mark.parametrize(
    ("truth", "sensitivity", "specificity", "labels"),
    [(0.3, 0.9, 0.8, 100), (0.1, 0.95, 0.9, 50), (0.5, 0.7, 0.7, 150), (0.8, 1.0, 0.6, 60)],
)
def test_the_interval_holds_the_truth_as_often_as_it_says(truth, sensitivity, specificity, labels):
    random = np.random.default_rng(3)
    apparent = truth * sensitivity + (1 - truth) * (1 - specificity)
    held = 0
    for _ in range(1000):
        tp, tn = random.binomial(labels, sensitivity), random.binomial(labels, specificity)
        judged = Rate(int(random.binomial(400, apparent)), 400)
        low, high = corrected_rate(judged, Agreement(tp, labels - tn, labels - tp, tn)).interval
        held += low <= truth <= high
    assert 930 <= held <= 1000
