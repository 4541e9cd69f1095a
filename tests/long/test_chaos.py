"""Long chaos runs: `make chaos` with a seed of its own kills as often as you like."""

import pytest

from tests.chaos import chaos

pytestmark = pytest.mark.long


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills, engine", [(12, "dummy"), (3, "toy")])
def test_a_run_that_is_killed_at_random(kills, engine, capsys, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = chaos.main(["--seed", "33", "--kills", str(kills), "--engine", engine])
    said = capsys.readouterr().out
    assert code == 0, said
    assert "equal to the undisturbed run" in said.splitlines()[-1] and f"kill {kills} of {kills}" in said
