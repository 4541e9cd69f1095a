"""A short chaos run in the suite; the long ones are `make chaos` and tests/long."""

import pytest

from tests.chaos import chaos


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_three_times_at_random(own_ray, capsys):
    """The seed is one whose strokes fall on an engine actor, on Ray itself and on the driver."""
    code = chaos.main(["--seed", "19", "--kills", "3"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.splitlines()[-1] == "equal to the undisturbed run: yes"
    assert "kill 3 of 3" in said
