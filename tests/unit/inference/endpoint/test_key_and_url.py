"""The key, the URL and the proxy: checked before anything is sent, and no secret is shown."""

import asyncio
import io
import logging
import sys
import traceback

import pytest

from pipeline.chat import Sampling, user
from pipeline.errors import RowFailed, UserError
from pipeline.inference.openai import EndpointModel, check
from pipeline.settings.base import Endpoint
from tests.unit.inference.endpoint.servers import (
    KEY,
    Answer,
    ask,
    chat,
    serving,
)


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_said_before_anything_is_sent(monkeypatch, value):
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    endpoint = Endpoint(url="http://127.0.0.1:1/v1", model="m")
    for function in (check, EndpointModel):
        with pytest.raises(
            UserError, match="api_key_env = OPENAI_API_KEY: not set; export it, or api_key_env: null"
        ):
            function(endpoint)


@pytest.mark.parametrize("value", [f"{KEY}\nx", f"{KEY}é", f"Bearer {KEY}"])
def test_a_mangled_key_is_not_shown(monkeypatch, value):
    monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match="holds characters that no key has") as e:
        check(Endpoint(url="http://127.0.0.1:1/v1", model="m"))
    assert KEY not in str(e.value)


def test_a_url_without_a_host():
    with pytest.raises(UserError, match="not a URL with a host"):
        check(Endpoint(url="http:///v1", model="m"))


def test_a_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(UserError, match="holds a user or password") as e:
        check(Endpoint(url="http://me:hush@host/v1", model="m"))
    assert "hush" not in str(e.value)


@pytest.fixture
def logged():
    """Everything that is logged from now on, however unimportant."""
    logged = io.StringIO()
    handler = logging.StreamHandler(logged)
    # A run in the same process keeps the clients' loggers from the root logger, quiet, and with its handlers.
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpcore")]
    before = [(logger.handlers, logger.level) for logger in loggers]
    for logger in loggers:
        logger.handlers = [*logger.handlers, handler]
        logger.setLevel(logging.DEBUG)
    yield logged
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers = handlers
        logger.setLevel(level)


def test_the_key_leaks_nowhere(logged):
    """Not into logs at their most talkative, not into an exception with its whole chain, not into the
    object's own text."""
    echo = {"error": {"message": KEY, "type": KEY, "code": KEY}}
    for answer in (Answer(500, echo), Answer(401, echo), Answer(200, KEY.encode()), Answer(drop=True)):
        with serving(answer) as server, pytest.raises(RowFailed) as e:
            ask(server, retries=1)
        assert KEY not in "".join(traceback.format_exception(e.value))
    assert "HTTP/1.1 401" in logged.getvalue() and KEY not in logged.getvalue()
    model = EndpointModel(Endpoint(url="http://127.0.0.1:1/v1", model="m"))
    assert KEY not in repr(model) + repr(vars(model))
    asyncio.run(model.aclose())


@pytest.mark.parametrize("path", ["/v1", "/v1/"])
def test_a_slash_at_the_end_of_the_url_does_not_matter(path):
    with serving(chat("Hello.")) as server:
        url = f"http://127.0.0.1:{server.server_port}{path}"
        model = EndpointModel(Endpoint(url=url, model="m"))
        asyncio.run(model.complete([user("x")], Sampling(5), seed=0, adapter=None))
    assert server.requests[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize("status", [404, 405])
def test_a_url_without_v1_is_guessed_at(status):
    async def run(url):
        model = EndpointModel(Endpoint(url=url, model="m"))
        await model.complete([user("x")], Sampling(5), seed=0, adapter=None)

    with serving(Answer(status, b"")) as server:
        with pytest.raises(RowFailed, match="under a path that ends in /v1"):
            asyncio.run(run(f"http://127.0.0.1:{server.server_port}"))
        with pytest.raises(RowFailed) as e:
            asyncio.run(run(server.url))
    assert "/v1" not in str(e.value)


def test_a_url_with_the_path_of_the_requests_is_refused():
    with pytest.raises(UserError, match="leave out /chat/completions"):
        check(Endpoint(url="http://host/v1/chat/completions", model="m"))


@pytest.mark.parametrize("variable", ["all_proxy", "ALL_PROXY", "http_proxy", "https_proxy"])
@pytest.mark.parametrize("scheme", ["socks", "socks4", "socks5", "ftp"])
def test_a_proxy_that_cannot_be_used_is_one_sentence_before_anything_is_sent(monkeypatch, variable, scheme):
    if scheme == "socks5":
        monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    monkeypatch.setenv(variable, f"{scheme}://me:hush@127.0.0.1:1")
    with pytest.raises(UserError, match=f"the proxy in the environment variable .*{scheme}://") as e:
        check(Endpoint(url="http://host/v1", model="m"))
    assert "hush" not in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("url", "right"),
    [
        ("http://[::1]:8000/v1", True),
        ("http://[fe80::1%25eth0]:80/v1", True),
        ("http://::1:8000/v1", False),
        ("http://ex ample/v1", False),
        ("http://localhost:99999/v1", False),
        ("http://host/v1/models", False),
        ("http://host/v1/chat/", False),
    ],
)
def test_a_url_is_checked_before_anything_is_sent(url, right):
    if right:
        check(Endpoint(url=url, model="m"))
    else:
        with pytest.raises(UserError, match=r"^endpoint\.url = "):
            check(Endpoint(url=url, model="m"))


def test_a_key_in_quotation_marks_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f'"{KEY}"')
    with pytest.raises(UserError, match="holds characters that no key has") as e:
        check(Endpoint(url="http://h/v1", model="m"))
    assert KEY not in str(e.value)
