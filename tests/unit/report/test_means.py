"""Means over instructions by hand, and κ as a cell of a table."""

import pytest

from pipeline.report import tables
from pipeline.report.agreement import Agreement
from pipeline.report.summary import Mean, mean_of


def test_a_mean_and_its_interval_by_hand():
    """Two instructions of means 7 and 3: 5 ± 1.96 · 2.8284 / √2."""
    found = mean_of([7.0, 3.0], (1.0, 10.0))
    assert (found.value, found.n) == (5.0, 2)
    assert found.interval == pytest.approx((1.08, 8.92), abs=1e-9)


def test_an_interval_stays_within_the_scale():
    assert mean_of([0.0, 1.0], (0.0, 1.0)).interval == (0.0, 1.0)


def test_one_value_has_no_interval_and_none_no_mean():
    assert mean_of([4.0], (1.0, 10.0)) == Mean(4.0, None, 1)
    assert mean_of([], (1.0, 10.0)) == Mean(None, None, 0)


def test_kappa_of_the_example_by_hand():
    """Both harmful 4, both harmless 3, only the first 2, only the second 1: (0.7 − 0.5) / 0.5."""
    cell = tables.kappa(Agreement(4, 2, 1, 3))
    assert cell.text == "0.40" and cell.number.value == pytest.approx(0.4) and cell.number.n == 10
    assert cell.number.low < 0.4 < cell.number.high and cell.interval.startswith("[−0.")
    assert tables.kappa(Agreement(5, 0, 0, 0)).text == "–"
