"""The Ray of a command: one that does not start, or cannot be joined, is one sentence."""

import pytest

from pipeline.errors import RunFailed, UserError
from pipeline.session import ray_session

TIMED_OUT = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.fixture
def refusing(monkeypatch):
    """Have Ray refuse to begin, with this error."""

    def refuse(error: Exception) -> None:
        def init(**_):
            raise error

        monkeypatch.setattr("ray.init", init)

    return refuse


@pytest.mark.parametrize("error, told", [(Exception(TIMED_OUT), TIMED_OUT), (OSError(), "OSError")])
def test_a_ray_that_does_not_start_is_one_sentence(tmp_path, monkeypatch, refusing, error, told):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refusing(error)
    with pytest.raises(RunFailed) as raised, ray_session(str(tmp_path)):
        pass
    assert str(raised.value).startswith(f"Ray did not start on this machine: {told}") and "\n" not in str(raised.value)


def test_a_cluster_that_cannot_be_joined_is_one_sentence(tmp_path, monkeypatch, refusing):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    refusing(ConnectionError("refused"))
    with pytest.raises(UserError) as raised, ray_session(str(tmp_path)):
        pass
    told = str(raised.value)
    assert told.startswith("RAY_ADDRESS = 192.0.2.9:6379: no Ray cluster can be joined there (ConnectionError)") and "\n" not in told
