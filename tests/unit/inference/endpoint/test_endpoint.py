"""The endpoint client against a real HTTP server on 127.0.0.1 whose answers are scripted."""

import asyncio
import io
import json
import logging
import sys
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
from pipeline.inference import notices
from pipeline.inference import openai as module
from pipeline.inference.openai import EndpointModel, check
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

    def answer(self, body):
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

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
            answer = server.answer(body)
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


def ask(server, *, calls=1, n=1, messages=None, adapter=None, closed=False, **options):
    """`calls` calls at once; one result, or all of them as a list."""
    options = {"model": "m", "retries": 2, "timeout_s": 5} | options

    async def run():
        model = EndpointModel(Endpoint(url=server.url, **options))
        try:
            sampling = Sampling(20, 0.5, 0.9, n)
            one = (
                model.complete(
                    messages or [user(PROMPT)],
                    sampling,
                    seed=100 + 10 * i,
                    adapter=adapter,
                    prefill=not closed,
                )
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


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """What the client would have waited for, in seconds; nobody waits."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def note(seconds, *_):
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module.asyncio, "sleep", note)
    return waits


@pytest.mark.parametrize(("asked", "waited"), [("1", 1), ("0.4", 1), ("7", 7)])
def test_retry_after_is_honoured(waits, asked, waited):
    with serving(Answer(429, b"", {"Retry-After": asked}), chat("Hello.")) as server:
        assert ask(server)[0].text == "Hello."
    assert [wait for wait in waits if wait > 0.1] == [waited]


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
        with pytest.raises(RowFailed, match="set its prefill: true"):
            ask(server, messages=messages)
        assert server.requests == []
        assert ask(server, messages=messages, prefill=True)[0].text == " here."
    body = server.requests[0][2]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"] == messages


@pytest.mark.parametrize("prefill", [False, True])
def test_a_closed_turn_is_followed_by_the_judges_own(prefill):
    """Every server can do that, so it does not matter whether this one can continue a turn."""
    messages = [user("Hi"), assistant("Hello.")]
    with serving(chat("safe")) as server:
        assert ask(server, messages=messages, closed=True, prefill=prefill)[0].text == "safe"
    body = server.requests[0][2]
    assert body["add_generation_prompt"] is True
    assert "continue_final_message" not in body
    assert body["messages"] == messages


def test_a_conversation_that_ends_in_a_request_is_sent_alike_whether_turns_are_closed_or_not():
    bodies = []
    for closed in (False, True):
        with serving(chat("a")) as server:
            ask(server, closed=closed)
        bodies.append(server.requests[0][2])
    assert bodies[0] == bodies[1]
    assert "add_generation_prompt" not in bodies[0]


def text(*texts, finish="stop"):
    choices = [{"index": i, "text": t, "finish_reason": finish} for i, t in enumerate(texts)]
    return Answer(body={"choices": choices, "usage": {"prompt_tokens": 4, "completion_tokens": 6}})


def test_a_text_is_completed_without_a_template():
    with serving(text(" yes", " no", finish="length")) as server:
        answers = ask(server, messages="[INST] Is it? [/INST]", n=2)
    assert answers == [Completion(" yes", 4, 3, "length"), Completion(" no", 4, 3, "length")]
    [(path, _, body)] = server.requests
    assert path == "/v1/completions"
    assert body == {
        "model": "m",
        "prompt": "[INST] Is it? [/INST]",
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 100,
    }


@pytest.mark.parametrize(
    "body",
    [{"choices": [{"finish_reason": "stop"}]}, {"choices": [{"text": 5}]}],
)
def test_a_completion_without_text_is_asked_for_again(body):
    with serving(Answer(body=body), text(" yes")) as server:
        assert ask(server, messages="Is it?")[0].text == " yes"
    assert len(server.requests) == 2


def test_adapters_need_vllm():
    with (
        serving(chat("a")) as server,
        pytest.raises(RowFailed, match="use an engine that takes adapters"),
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


@pytest.fixture
def logged():
    """Everything that is logged from now on, however unimportant."""
    logged, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(logged), root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield logged
    root.removeHandler(handler)
    root.setLevel(level)


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


# -- servers that differ

UNSUPPORTED = {
    "openai": (
        "max_tokens",
        {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        },
    ),
    "openai in words": ("max_tokens", {"message": "max_tokens is not supported, use max_completion_tokens"}),
    "seed by param": ("seed", {"message": "no", "param": "seed"}),
    "seed in words": ("seed", {"message": "Unrecognized request argument supplied: seed"}),
    "seed of a JSON schema": (
        "seed",
        {"message": "Additional properties are not allowed ('seed' was unexpected)"},
    ),
    "seed of a proto": ("seed", {"message": 'Invalid JSON payload. Unknown name "seed": Cannot find field.'}),
    "seed's range": ("seed", {"message": "seed must be less than 2147483648"}),
    "top_p": ("top_p", {"message": "`top_p` is not supported by this model"}),
    "n": ("n", {"message": "Only n=1 is supported"}),
    "n by param": ("n", {"message": "too many", "param": "n"}),
    "temperature": (
        "temperature",
        {
            "message": "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default"
            " (1) value is supported.",
            "param": "temperature",
            "code": "unsupported_value",
        },
    ),
}


class Picky(Server):
    """Answers, unless a request has a parameter that it does not take."""

    def __init__(self, refusal: Answer, *refused: str, also: dict | None = None):
        super().__init__(chat("Hello."))
        self.refusal, self.refused, self.also = refusal, refused, also or {}

    def answer(self, body: dict) -> Answer:
        for name, refusal in self.also.items():
            if name in body:
                return refusal
        return self.refusal if any(name in body for name in self.refused) else self.answers[0]


@contextmanager
def picky(refusal: Answer, *refused: str, also: dict | None = None):
    server = Picky(refusal, *refused, also=also)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def told():
    said: list[str] = []
    notices.send_to(said.append)
    return said


def ask_twice(server) -> list[str]:
    """The texts of two requests of one client, one after the other."""

    async def run():
        model = EndpointModel(Endpoint(url=server.url, model="m", retries=0, timeout_s=5))
        try:
            found = [
                await model.complete([user(PROMPT)], Sampling(20, 0.5, 0.9, 1), seed=1, adapter=None)
                for _ in range(2)
            ]
            return [completion.text for [completion] in found]
        finally:
            await model.aclose()

    return asyncio.run(run())


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_parameter_that_the_server_refuses_is_left_out_from_then_on_and_told_once(case, told):
    name, error = UNSUPPORTED[case]
    with picky(Answer(400, {"error": error}), name) as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    bodies = [body for _, _, body in server.requests]
    assert [name in body for body in bodies] == [True, False, False], "refused once, then left out"
    assert all(
        body.get("max_completion_tokens") == (20 if name == "max_tokens" else None) for body in bodies[1:]
    )
    [notice] = told
    assert f"does not accept {name}: " in notice and PROMPT not in notice and KEY not in notice


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "input": 1, "msg": "Extra"}]},
        ),
        Answer(
            422, {"message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}}
        ),
        Answer(200, {"error": {"code": 400, "message": "unknown field `seed`"}}),
    ],
    ids=["FastAPI", "Mistral", "wrapped in a 200"],
)
def test_other_forms_of_refusal(refusal, told):
    with picky(refusal, "seed") as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    assert len(server.requests) == 3 and len(told) == 1


def test_several_refused_parameters_are_found_one_after_the_other(told):
    also = {
        name: Answer(400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
        for name in ("max_tokens", "seed", "top_p")
    }
    with picky(Answer(500), also=also) as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    assert len(server.requests) == 3 + 2 and len(told) == 3
    assert set(server.requests[-1][2]) == {"model", "messages", "temperature", "n", "max_completion_tokens"}


def test_samples_are_asked_for_one_by_one_where_n_is_refused(told):
    with picky(Answer(400, {"error": {"message": "n must be 1", "param": "n"}}), "n") as server:
        assert len(ask(server, n=3)) == 3
    assert [body.get("seed") for _, _, body in server.requests] == [100, 100, 101, 102]


@pytest.mark.parametrize(
    "error",
    [
        {"message": f"{PROMPT}: a seed of n grapes", "code": "invalid"},
        {"message": "max_tokens is too large: 20. This model supports at most 10.", "param": "max_tokens"},
        {"message": "temperature must be at most 0.1", "param": "temperature"},
        {"message": "bad request", "param": "messages"},
    ],
    ids=["words of the prompt", "value of max_tokens", "value of temperature", "messages"],
)
def test_other_complaints_are_no_reason_to_leave_something_out(error, told):
    with serving(Answer(400, {"error": error})) as server, pytest.raises(RowFailed, match="HTTP 400"):
        ask(server)
    assert len(server.requests) == 1 and told == []


def test_nothing_is_remembered_if_the_request_fails_anyway(told):
    refused = Answer(400, {"error": {"message": "no", "param": "seed"}})
    with serving(refused) as server, pytest.raises(RowFailed, match="HTTP 400"):
        ask(server)
    assert ["seed" in body for _, _, body in server.requests] == [True, False] and told == []


def test_a_server_that_cannot_continue_turns_is_said_to_be_one():
    error = {"error": {"message": "Unrecognized request argument supplied: continue_final_message"}}
    with serving(Answer(400, error)) as server, pytest.raises(RowFailed, match="as prefill: true promises"):
        ask(server, messages=[user("Hi"), assistant("Sure,")], prefill=True)


def test_the_texts_of_parts_are_joined_and_their_thoughts_stand_before_them(told):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "They may be lying."}]},
        {"type": "text", "text": "I can"},
        {"type": "reasoning", "text": "Hm."},
        {"type": "output_text", "text": "not."},
    ]
    contents = [parts, [{"type": "refusal", "refusal": "No."}], [], [parts[0]]]
    body = {"choices": [{"message": {"content": c}, "finish_reason": "stop"} for c in contents]}
    with serving(Answer(body=body)) as server:
        said = [thoughts.split(c.text) for c in ask(server, n=4)]
    assert [(s.thought, s.answer) for s in said] == [
        ("They may be lying.Hm.", "I cannot."),
        (None, "No."),
        (None, ""),
        ("They may be lying.", None),
    ]
    assert told == []


def test_parts_of_an_unknown_kind_are_told(told):
    body = {"choices": [{"message": {"content": [{"type": "image"}, {"type": "text", "text": "a"}]}}]}
    with serving(Answer(body=body)) as server:
        assert ask(server)[0].text == "a"
    assert len(told) == 1 and "neither text nor thoughts" in told[0]


@pytest.mark.parametrize(
    ("reason", "tokens", "finish"),
    [
        ("length", 5, "length"),
        ("MAX_TOKENS", 5, "length"),
        ("model_length", 5, "length"),
        (None, 20, "length"),
        (None, 19, "stop"),
        ("stop", 20, "stop"),
        ("eos", 5, "stop"),
    ],
)
def test_a_cut_answer_is_known_by_each_servers_word_for_it(reason, tokens, finish):
    with serving(chat("a", finish=reason, usage=(1, tokens))) as server:
        assert ask(server)[0].finish_reason == finish


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


def test_retry_after_is_rounded_up_and_nonsense_is_none():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    found = [module._retry_after(v) for v in ("1.5", "0.2", " 3 ", soon)]
    assert found[:3] == [2, 1, 3] and found[3] == int(found[3]) and 0 <= found[3] <= 1
    for nonsense in ("-1.5", "nan", "inf", "1.5.5", "1e3", "٣", "1,5", "None"):
        assert module._retry_after(nonsense) == 0
    assert module._asked_to_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert module._asked_to_wait({"retry-after-ms": "soon", "retry-after": "9"}) == 9
    assert module._asked_to_wait({"retry-after-ms": "9" * 9}) == module.MAX_RETRY_AFTER_S


@pytest.mark.parametrize("variable", ["all_proxy", "ALL_PROXY", "http_proxy", "https_proxy"])
@pytest.mark.parametrize("scheme", ["socks", "socks4", "socks5", "ftp"])
def test_a_proxy_that_cannot_be_used_is_one_sentence_before_anything_is_sent(monkeypatch, variable, scheme):
    if scheme == "socks5":
        monkeypatch.setitem(sys.modules, "socksio", None)  # as if it were not installed
    monkeypatch.setenv(variable, f"{scheme}://me:hush@127.0.0.1:1")
    with pytest.raises(UserError, match=f"the proxy in the environment variable .*{scheme}://") as e:
        check(Endpoint(url="http://host/v1", model="m"))
    assert "hush" not in str(e.value) and "\n" not in str(e.value)


# -- further answers of servers


def one(content=None, reason="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return Answer(body={"choices": [{**choice, "finish_reason": reason}]})


def events(*chunks) -> Answer:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Answer(body=("".join(lines) + "data: [DONE]\n\n").encode())


def piece(reason=None, index=0, **delta) -> dict:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


STREAMED = events(
    piece(role="assistant", content=""),
    piece(reasoning_content="hm"),
    piece(content="Su"),
    piece(index=1, content="No."),
    piece(content="re."),
    piece("length", index=1),
    piece("stop"),
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}},
)


def test_the_pieces_of_a_stream_are_joined(told):
    with serving(STREAMED) as server:
        found = ask(server, n=2)
    assert [(c.text, c.finish_reason) for c in found] == [
        ("<think>hm</think>Sure.", "stop"),
        ("No.", "length"),
    ]
    assert found[0].prompt_tokens == 7 and not told


def test_a_server_that_streams_only_is_asked_so(told):
    refusal = "parameter.enable_thinking must be set to false for non-streaming calls"
    with serving(Answer(400, {"error": {"message": refusal}}), STREAMED) as server:
        assert [c.finish_reason for c in ask(server, n=2)] == ["stop", "length"]
    assert [body.get("stream") for *_, body in server.requests] == [None, True]
    assert told == [
        f"the server {server.url} does not accept requests without stream: they are sent with it, and the"
        " parts joined"
    ]


def test_a_stream_that_breaks_off_is_asked_for_again():
    with serving(events(piece(content="Su")), chat("Sure.")) as server:
        assert ask(server)[0].text == "Sure."


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (one(None, "tool_calls", tool_calls=[{"function": {"name": "f"}}]), "called a tool"),
        (one("", "function_call", function_call={"name": "f"}), "called a tool"),
        (one(None, "stop", tool_calls=[{"function": {"name": "f"}}]), "called a tool"),
        (one("", "SAFETY"), "content filter withheld"),
        (one("", "sensitive"), "content filter withheld"),
        (one("half", "insufficient_system_resource"), "in 3 tries, last: the answer is empty or broken off"),
        (one("half", "network_error"), "in 3 tries, last: the answer is empty or broken off"),
        (Answer(body=b"<!DOCTYPE html><html>"), "in 3 tries, last: the body is a web page; check the"),
        (Answer(429, {"error": {"code": "insufficient_quota"}}), "quota is used up"),
        (Answer(402, {}), "HTTP 402; the account's credit is used up"),
        (Answer(413, b"<html>"), "HTTP 413; the request is longer"),
        (Answer(307, b"", {"Location": "https://other/v1"}), "HTTP 307; the server redirects: set the"),
    ],
    ids=str,
)
def test_what_is_no_answer_fails_the_row_with_a_remedy(answer, why):
    with serving(answer) as server, pytest.raises(RowFailed, match=why):
        ask(server)
    assert len(server.requests) == (3 if "3 tries" in why else 1)


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 503, 529])
def test_a_date_to_wait_for_that_has_passed_is_no_reason_to_wait(status, waits):
    past = format_datetime(datetime.now(UTC) - timedelta(days=3), usegmt=True)
    with serving(Answer(status, {}, {"Retry-After": past}), chat("Sure.")) as server:
        assert ask(server)[0].text == "Sure."
    assert max(waits) <= module.FIRST_DELAY_S


def test_a_refusal_beside_an_empty_text_is_the_text():
    with serving(one("", refusal="I cannot.")) as server:
        assert ask(server)[0].text == "I cannot."


@pytest.mark.parametrize("reason", ["max_output_tokens", "MODEL_CONTEXT_WINDOW_EXCEEDED", "budget", {"a": 1}])
def test_an_unknown_reason_to_finish_counts_as_cut_and_is_told(reason, told):
    with serving(one("It ends in mid", reason)) as server:
        assert ask(server)[0].is_cut
    unknown = reason == "budget" or not isinstance(reason, str)
    assert bool(told) == unknown and all("unknown finish_reason" in notice for notice in told)


def test_equal_samples_are_told(told):
    text = "A text that two samples have in common by no chance."
    with serving(chat(text, text), chat("Yes.", "Yes.")) as server:
        ask(server, n=2)
        ask(server, n=2)
    assert told == [
        f"the server {server.url} gave equal texts for several samples of a request: it seems to draw them with"
        " one seed"
    ]


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": float("nan")}, {"completion_tokens": "many"}])
def test_no_usage_costs_an_answer(usage):
    answer = one("Sure.")
    answer.body["usage"] = usage
    with serving(answer) as server:
        assert ask(server)[0].text == "Sure."


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
