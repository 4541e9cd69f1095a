"""A short chaos run in the suite; the long ones are `make chaos`."""

import pytest

from tests.chaos import chaos


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_five_times_at_random(own_ray, capsys):
    code = chaos.main(["--seed", "33", "--kills", "5"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.splitlines()[-1] == "equal to the undisturbed run: yes"
    assert "kill 5 of 5" in said
