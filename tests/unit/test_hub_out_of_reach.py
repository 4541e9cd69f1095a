"""A hub id without network is refused at once; a hub that is slow, but works, is waited for."""

import socket
import threading
import time

import pytest
from huggingface_hub import constants

from pipeline import pretrained, sampling
from pipeline.errors import UserError
from tests import scripted


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Sets the hub's address, with an empty cache."""

    def at(port: int) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return at


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_hub_that_nobody_answers_for_is_refused_in_seconds_and_one_sentence(hub, tmp_path, listening):
    port = listening.getsockname()[1]
    listening.close()
    hub(port)
    made = scripted.config(tmp_path / "run", model={"path": "org/name"}, instructions=None)
    started = time.monotonic()
    with pytest.raises(UserError) as e:
        sampling.resolved(made, {"evaluate"}, {"safety"}, "org/name")
    assert time.monotonic() - started < 5
    assert "\n" not in str(e.value)
    assert f"no connection to http://127.0.0.1:{port}, and the model is not on this disk" in str(e.value)
    assert str(e.value).startswith("model.path = org/name: ")


def test_a_hub_that_is_slow_to_answer_is_no_error(hub, monkeypatch, listening):
    monkeypatch.setattr(pretrained, "CONNECT_S", 0.2)
    hub(listening.getsockname()[1])
    pretrained._check_hub("org/name", None)  # accepts the connection, and says nothing in time


def test_a_hub_that_refuses_is_no_connection_error(hub, listening):
    def answer():
        connection, _ = listening.accept()
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    hub(listening.getsockname()[1])
    pretrained._check_hub("org/name", None)


def test_a_model_on_this_disk_needs_no_hub(hub, tmp_path, listening):
    port = listening.getsockname()[1]
    listening.close()
    hub(port)
    pretrained._check_hub(str(tmp_path), None)
    cached = tmp_path / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    pretrained._check_hub("org/name", None)
