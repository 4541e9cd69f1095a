"""The endpoint client against a real HTTP server on 127.0.0.1 whose answers are scripted."""

import asyncio
import json
import logging
import threading
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline import thoughts
from pipeline.chat import Completion, Sampling, assistant, user
from pipeline.errors import RowFailed, UserError
from pipeline.inference import endpoint as module
from pipeline.inference.endpoint import EndpointModel, check
from pipeline.settings.base import Endpoint

KEY = "sk-test-0123456789-secret"
PROMPT = "a prompt that no message repeats"


@dataclass
class Answer:
    """What the server does with one request."""

    status: int = 200
    body: object = None  # bytes as they are, else as JSON
    headers: dict = field(default_factory=dict)
    hang_s: float = 0.0
    drop: bool = False  # close the connection without an answer


def chat(*texts, finish="stop", usage=(7, 10)):
    choices = [
        {"index": i, "message": {"role": "assistant", "content": t}, "finish_reason": finish}
        for i, t in enumerate(texts)
    ]
    return Answer(
        body={
            "choices": choices,
            "usage": usage and {"prompt_tokens": usage[0], "completion_tokens": usage[1]},
        }
    )


class Server(ThreadingHTTPServer):
    """Gives its scripted answers in order, the last one for ever, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, *answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.requests = list(answers), []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # a client that hung up, as the tests of time-outs have it


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.requests.append((self.path, dict(self.headers), body))
            answer = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            server.in_flight += 1
            server.most_in_flight = max(server.most_in_flight, server.in_flight)
        time.sleep(answer.hang_s)
        with server.lock:
            server.in_flight -= 1
        if answer.drop:
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(*answers):
    server = Server(*answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.01)


def ask(server, *, calls=1, n=1, messages=None, adapter=None, **options):
    """`calls` calls at once; one result, or all of them as a list."""
    options = {"model": "m", "retries": 2, "timeout_s": 5} | options

    async def run():
        model = EndpointModel(Endpoint(url=server.url, **options))
        try:
            sampling = Sampling(20, 0.5, 0.9, n)
            one = (
                model.complete(messages or [user(PROMPT)], sampling, seed=100 + 10 * i, adapter=adapter)
                for i in range(calls)
            )
            return await asyncio.gather(*one)
        finally:
            await model.aclose()

    results = asyncio.run(run())
    return results[0] if calls == 1 else results


def test_request_and_answer():
    with serving(chat("Hello.", finish="length")) as server:
        assert ask(server) == [Completion("Hello.", 7, 10, "length")]
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "seed": 100,
    }


def test_a_thought_that_the_server_splits_off_stands_before_the_answer():
    details = {"completion_tokens_details": {"reasoning_tokens": 6}}
    for key in ("reasoning_content", "reasoning"):
        message = {"role": "assistant", "content": "\n\nSure.", key: "hm"}
        usage = {"prompt_tokens": 7, "completion_tokens": 9} | details
        body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        with serving(Answer(body=body)) as server:
            [completion] = ask(server)
        assert thoughts.split(completion.text) == ("hm", "Sure.")
        assert completion.thought_tokens == 6
    cut = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    with serving(Answer(body={"choices": [{"message": cut, "finish_reason": "length"}]})) as server:
        [completion] = ask(server)
    assert thoughts.split(completion.text) == ("hm", None) and completion.thought_tokens is None
    with serving(chat("hm\n</think>\nSure.")) as server:  # its own prompt has begun the thought
        assert thoughts.split(ask(server)[0].text) == ("hm", "Sure.")


def test_arguments_of_the_chat_template_are_sent():
    async def run(url):
        model = EndpointModel(Endpoint(url=url, model="m"), {"enable_thinking": False})
        try:
            await model.complete([user(PROMPT)], Sampling(20), seed=1, adapter=None)
        finally:
            await model.aclose()

    with serving(chat("Hello.")) as server:
        asyncio.run(run(server.url))
    assert server.requests[0][2]["chat_template_kwargs"] == {"enable_thinking": False}


def test_no_key_no_header():
    with serving(chat("Hello.")) as server:
        ask(server, api_key_env=None)
    assert "Authorization" not in server.requests[0][1]


def test_n_choices_share_the_usage():
    with serving(chat("a", "b", "c", usage=(7, 11))) as server:
        completions = ask(server, n=3)
    assert [c.text for c in completions] == ["a", "b", "c"]
    assert [c.prompt_tokens for c in completions] == [7, 7, 7]
    assert [c.completion_tokens for c in completions] == [4, 4, 3]
    assert server.requests[0][2]["n"] == 3


def test_missing_choices_are_asked_for_with_other_seeds():
    with serving(chat("a", "b"), chat("c"), chat("d", "surplus")) as server:
        assert [c.text for c in ask(server, n=4)] == ["a", "b", "c", "d"]
    assert [(body["n"], body["seed"]) for _, _, body in server.requests] == [(4, 100), (2, 102), (1, 103)]


def test_usage_may_be_missing():
    with serving(chat("a", usage=None)) as server:
        assert ask(server) == [Completion("a", 0, 0, "stop")]


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
        (Answer(hang_s=1.0, body={}), "no answer in 0.2 s"),
    ],
    ids=["500", "garbage", "dropped", "hanging"],
)
def test_a_lasting_trouble_fails_the_row(answer, reason):
    with serving(answer) as server, pytest.raises(RowFailed) as e:
        ask(server, timeout_s=0.2 if answer.hang_s else 5)
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
            Endpoint(url=f"http://127.0.0.1:{port}/v1", model="m", retries=0, timeout_s=0.3)
        )
        started = time.monotonic()
        with pytest.raises(RowFailed, match=r"no answer in 0\.3 s"):
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


def test_content_filter_fails_the_row():
    with (
        serving(chat("", finish="content_filter")) as server,
        pytest.raises(RowFailed, match="content filter"),
    ):
        ask(server)


def test_null_content_and_refusals_and_broken_surrogates():
    odd = [{"content": None}, {"content": None, "refusal": "I cannot."}, {"content": "half \ud83d pair"}]
    body = {"choices": [{"message": m, "finish_reason": "stop"} for m in odd]}
    with serving(Answer(body=body)) as server:
        assert [c.text for c in ask(server, n=3)] == ["", "I cannot.", "half ? pair"]


def test_retry_after_is_honoured():
    with serving(Answer(429, b"", {"Retry-After": "1"}), chat("Hello.")) as server:
        started = time.monotonic()
        ask(server)
        assert 1 <= time.monotonic() - started < 3


def test_retry_after_forms():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert module._retry_after("7") == 7
    assert 25 < module._retry_after(soon) <= 30
    assert module._retry_after("99999") == module.MAX_RETRY_AFTER_S
    assert [module._retry_after(v) for v in ("", "soon", "-5", "nan", "Wed, 21 Oct 2015 07:28:00 GMT")] == [
        0
    ] * 5


def test_backoff_grows_and_is_bounded():
    for retry in range(20):
        full = min(module.MAX_DELAY_S, module.FIRST_DELAY_S * 2**retry)
        assert all(full / 2 <= module._backoff(retry) <= full for _ in range(20))


def test_concurrency_is_limited_and_used():
    answer = chat("a")
    answer.hang_s = 0.05
    with serving(answer) as server:
        assert len(ask(server, calls=12, concurrency=3)) == 12
    assert server.most_in_flight == 3


def test_prefill_needs_a_server_that_can():
    messages = [user("Hi"), assistant("Sure,")]
    with serving(chat(" here.")) as server:
        with pytest.raises(RowFailed, match=r"set inference\.endpoint\.prefill: true"):
            ask(server, messages=messages)
        assert server.requests == []
        assert ask(server, messages=messages, prefill=True)[0].text == " here."
    body = server.requests[0][2]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"] == messages


def test_adapters_need_vllm():
    with (
        serving(chat("a")) as server,
        pytest.raises(RowFailed, match=r"leave inference\.endpoint unset to use vLLM"),
    ):
        ask(server, adapter="run/adapter/sft")
    assert server.requests == []


# -- the key


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


def test_the_key_leaks_nowhere(caplog):
    """Not into logs at their most talkative, not into an exception with its whole chain, not into the
    object's own text."""
    caplog.set_level(logging.DEBUG)
    echo = {"error": {"message": KEY, "type": KEY, "code": KEY}}
    for answer in (Answer(500, echo), Answer(401, echo), Answer(200, KEY.encode()), Answer(drop=True)):
        with serving(answer) as server, pytest.raises(RowFailed) as e:
            ask(server, retries=1)
        assert KEY not in "".join(traceback.format_exception(e.value))
    assert KEY not in caplog.text
    model = EndpointModel(Endpoint(url="http://127.0.0.1:1/v1", model="m"))
    assert KEY not in repr(model) + repr(vars(model))
    asyncio.run(model.aclose())
