"""Troubles of servers: what is tried again, after how long, and what fails the row at once."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from pipeline.chat import Sampling, user
from pipeline.errors import RowFailed
from pipeline.inference import openai as module
from pipeline.inference import openai_refusals
from pipeline.inference.openai import EndpointModel
from pipeline.settings.base import Endpoint
from tests.unit.inference.endpoint.servers import (
    KEY,
    PROMPT,
    Answer,
    ask,
    chat,
    serving,
)


@pytest.mark.parametrize(
    "first",
    [
        Answer(429, {"error": "slow down"}),
        Answer(500, b"oops"),
        Answer(503, b""),
        Answer(200, b"\xff<html>garbage"),
        Answer(200, b"[" * 10),
        Answer(200, {"choices": []}),
        Answer(200, {"choices": [{"message": {"content": ["parts"]}}]}),
        Answer(200, {"choices": None}),
        Answer(200, [1]),
        Answer(drop=True),
        chat("half a", finish="abort"),
    ],
    ids=str,
)
def test_a_passing_trouble_is_retried(first):
    with serving(first, first, chat("Hello.")) as server:
        assert ask(server)[0].text == "Hello."
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(500, {"error": {"message": f"{PROMPT} {KEY}"}}), "HTTP 500"),
        (Answer(200, f"{PROMPT} {KEY}".encode()), "the body is no chat completion"),
        (Answer(drop=True), "RemoteProtocolError"),
        (Answer(hang_s=1.0, body={}), "no answer in 0.05 s"),
    ],
    ids=["500", "garbage", "dropped", "hanging"],
)
def test_a_lasting_trouble_fails_the_row(answer, reason):
    with serving(answer) as server, pytest.raises(RowFailed) as e:
        ask(server, timeout_s=0.05 if answer.hang_s else 5)
    assert str(e.value) == f"endpoint gave no usable answer in 3 tries, last: {reason}"
    assert len(server.requests) == 3


def test_a_trickling_answer_is_cut_at_the_timeout():
    """Bytes that keep coming, each in time, do not keep a request alive."""

    async def trickle(_reader, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async def run():
        server = await asyncio.start_server(trickle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        model = EndpointModel(
            Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", retries=0, timeout_s=0.1)
        )
        started = time.monotonic()
        with pytest.raises(RowFailed, match=r"no answer in 0\.1 s"):
            await model.complete([user("x")], Sampling(5), seed=0, adapter=None)
        await model.aclose()
        server.close()
        return time.monotonic() - started

    assert asyncio.run(run()) < 60, "the whole answer would take half an hour"


def test_nobody_listening():
    with serving(chat("a")) as server:
        pass
    with pytest.raises(RowFailed, match="in 1 tries, last: ConnectError"):
        ask(server, retries=0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            Answer(400, {"error": {"message": PROMPT, "type": "BadRequestError", "code": 400}}),
            "HTTP 400 (BadRequestError)",
        ),
        (
            Answer(400, {"error": {"message": PROMPT, "code": "unsupported_value"}}),
            "HTTP 400 (unsupported_value)",
        ),
        (
            Answer(401, {"error": {"message": f"Incorrect API key provided: {KEY}", "code": KEY}}),
            "HTTP 401; check the key in",
        ),
        (Answer(404, b"<html>"), "HTTP 404; check the endpoint"),
        (Answer(422, {"error": PROMPT}), "HTTP 422"),
        (Answer(302, b"", {"Location": "http://127.0.0.1:1/"}), "HTTP 302"),
    ],
    ids=lambda v: str(v.status) if isinstance(v, Answer) else None,
)
def test_a_refused_request_fails_the_row_at_once(answer, reason):
    with serving(answer) as server, pytest.raises(RowFailed) as e:
        ask(server)
    assert str(e.value).startswith(f"endpoint refused the request: {reason}")
    assert PROMPT not in str(e.value)
    assert KEY not in str(e.value)
    assert len(server.requests) == 1


def test_an_over_long_prompt_is_said_to_be_one():
    error = {"error": {"message": "This model's maximum context length is 2048 tokens.", "code": 400}}
    with (
        serving(Answer(400, error)) as server,
        pytest.raises(RowFailed, match="prompt too long for the endpoint's model"),
    ):
        ask(server)


@pytest.mark.parametrize(("asked", "waited"), [("1", 1), ("0.4", 1), ("7", 7)])
def test_retry_after_is_honoured(waits, asked, waited):
    with serving(Answer(429, b"", {"Retry-After": asked}), chat("Hello.")) as server:
        assert ask(server)[0].text == "Hello."
    assert [wait for wait in waits if wait > 0.1] == [waited]


def test_retry_after_forms():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert openai_refusals._retry_after("7") == 7
    assert 25 < openai_refusals._retry_after(soon) <= 30
    assert openai_refusals._retry_after("99999") == openai_refusals.MAX_RETRY_AFTER_S
    assert [
        openai_refusals._retry_after(v) for v in ("", "soon", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT")
    ] == [0] * 5


def test_backoff_grows_and_is_bounded():
    for retry in range(20):
        full = min(module.MAX_DELAY_S, module.FIRST_DELAY_S * 2**retry)
        assert all(full / 2 <= module._backoff(retry) <= full for _ in range(20))


def test_an_error_in_the_body_of_a_200_is_an_error():
    busy = Answer(200, {"error": {"code": 429, "message": "slow down"}})
    with serving(busy, Answer(200, {"error": "overloaded"}), chat("Hello.")) as server:
        assert ask(server)[0].text == "Hello."
    with (
        serving(Answer(200, {"error": {"code": 401, "message": KEY}})) as server,
        pytest.raises(RowFailed, match="HTTP 401; check the key") as e,
    ):
        ask(server)
    assert len(server.requests) == 1 and KEY not in str(e.value)


def test_retry_after_is_rounded_up_and_nonsense_is_none():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    found = [openai_refusals._retry_after(v) for v in ("1.5", "0.2", " 3 ", soon)]
    assert found[:3] == [2, 1, 3] and found[3] == int(found[3]) and 0 <= found[3] <= 1
    for nonsense in ("-1.5", "nan", "inf", "1.5.5", "1e3", "٣", "1,5", "None"):
        assert openai_refusals._retry_after(nonsense) == 0
    assert openai_refusals.asked_to_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert openai_refusals.asked_to_wait({"retry-after-ms": "soon", "retry-after": "9"}) == 9
    assert openai_refusals.asked_to_wait({"retry-after-ms": "9" * 9}) == openai_refusals.MAX_RETRY_AFTER_S


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_a_date_to_wait_for_that_has_passed_is_no_reason_to_wait(status, waits):
    past = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    with serving(Answer(status, {}, {"Retry-After": past}), chat("Sure.")) as server:
        assert ask(server)[0].text == "Sure."
    assert max(waits) <= module.FIRST_DELAY_S
