"""The Ray of a command: one that does not start, or cannot be joined, is one sentence."""

import socket
import time

import pytest

from pipeline.errors import RunFailed, UserError
from pipeline.runtime import session
from pipeline.runtime.session import ray_session

TIMED_OUT = (
    "The current node timed out during startup. This could happen because some of the raylet failed to"
    " startup."
)


@pytest.fixture
def refusing(monkeypatch):
    """Have Ray refuse to begin with this error, so many times; returns the list of tries."""

    def refuse(error: Exception, times: int = 99) -> list[dict]:
        tries = []

        def init(**options):
            tries.append(options)
            if len(tries) <= times:
                raise error

        monkeypatch.setattr("ray.init", init)
        return tries

    return refuse


@pytest.mark.parametrize("error, told", [(Exception(TIMED_OUT), TIMED_OUT), (OSError(), "OSError")])
def test_a_ray_that_does_not_start_is_one_sentence(tmp_path, monkeypatch, refusing, error, told):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    tries = refusing(error)
    with pytest.raises(RunFailed) as raised, ray_session(str(tmp_path)):
        pass
    assert len(tries) == session.START_TRIES
    assert str(raised.value).startswith(f"Ray did not start on this machine: {told}") and "\n" not in str(
        raised.value
    )


def test_a_ray_that_was_only_slow_is_started_again(refusing):
    tries = refusing(Exception(TIMED_OUT), times=session.START_TRIES - 1)
    session._start({})
    assert len(tries) == session.START_TRIES and tries[0]["address"] == "local"


def test_a_cluster_that_cannot_be_joined_is_one_sentence(tmp_path, monkeypatch, refusing):
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.9:6379")
    monkeypatch.setattr(session, "_reach", lambda _address: None)
    refusing(ConnectionError("refused"))
    with pytest.raises(UserError) as raised, ray_session(str(tmp_path)):
        pass
    told = str(raised.value)
    assert (
        told.startswith(
            "RAY_ADDRESS = 192.0.2.9:6379: no Ray cluster can be joined at this address (ConnectionError)"
        )
        and "\n" not in told
    )


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "[::1]:{}"])
def test_a_dead_cluster_is_one_sentence_within_seconds(tmp_path, monkeypatch, address):
    with socket.socket() as free:  # bound, but nobody listens
        free.bind(("127.0.0.1", 0))
        address = address.format(free.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        started = time.monotonic()
        with pytest.raises(UserError) as raised, ray_session(str(tmp_path)):
            pass
    assert str(raised.value).startswith(f"RAY_ADDRESS = {address}: no Ray cluster can be joined")
    assert time.monotonic() - started < 10


def test_a_name_that_is_no_host_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "no-such-host.invalid:6379")
    with pytest.raises(UserError, match="no-such-host"), ray_session(str(tmp_path)):
        pass


def test_auto_and_names_without_a_port_are_left_to_ray():
    for address in ("auto", "local", "cluster"):
        session._reach(address)


def test_ray_leaves_the_handler_of_sigterm_alone(monkeypatch):
    """What ray.init would have called, in the module that it would have called it in."""
    from ray._private import node, utils, worker

    set_by_ray = []
    monkeypatch.setattr(utils, "set_sigterm_handler", set_by_ray.append)
    with session._own_signal_handlers():
        for module in (node, worker):
            module.ray._private.utils.set_sigterm_handler("theirs")
    assert not set_by_ray
    utils.set_sigterm_handler("somebody's")
    assert set_by_ray == ["somebody's"]
