"""The first report of Ray's autoscaler comes seconds after the head, and is waited for."""

import pytest

from pipeline.runtime import nodes


@pytest.mark.parametrize("scales", [True, False])
def test_a_first_report_is_waited_for(monkeypatch, scales):
    reports = iter([None, None, scales])
    monkeypatch.setattr(nodes, "_reported", lambda: next(reports))
    monkeypatch.setattr(nodes.time, "sleep", lambda _seconds: None)
    assert nodes._scales() is scales and not list(reports)


def test_a_cluster_that_reports_nothing_does_not_scale(monkeypatch):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(nodes, "_reported", lambda: None)
    monkeypatch.setattr(nodes.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(nodes.time, "sleep", lambda _seconds: None)
    assert nodes._scales() is False and next(clock) < 4 * nodes.REPORT_S
