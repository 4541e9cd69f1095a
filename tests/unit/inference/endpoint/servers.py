"""A real HTTP server on 127.0.0.1 whose answers are scripted, and clients that ask it."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipeline.chat import Sampling, user
from pipeline.inference.openai import EndpointModel
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
