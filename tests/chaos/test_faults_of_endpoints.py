"""An OpenAI-compatible server that misbehaves: for a while, which changes no row, or for good, which each row
reports."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.errors import RunFailed
from tests.chaos.conftest import generate
from tests.chaos.harness import Job, assert_equals_undisturbed, rows_of, write_job

pytestmark = pytest.mark.timeout(300)
ROWS = 120
TIMEOUT_S = 2.0
FAULTS = ("429", "500", "garbage", "cut off", "hung up", "silence")


class Server(ThreadingHTTPServer):
    """Its text depends on the request's seed. `fault(seed, tries before)` says how it misbehaves, or None."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, fault):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.tries, self.faults, self.lock = fault, Counter(), Counter(), threading.Lock()

    def handle_error(self, request, client_address):
        pass  # a client that hung up


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            fault = self.server.fault(body["seed"], self.server.tries[body["seed"]])
            self.server.tries[body["seed"]] += 1
            self.server.faults[fault] += 1
        choices = [
            {"message": {"content": f"answer {body['seed'] + i}"}, "finish_reason": "stop"}
            for i in range(body["n"])
        ]
        answer = json.dumps(
            {"choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 2 * body["n"]}}
        ).encode()
        match fault:
            case "429":
                self._answer(429, b"{}", {"Retry-After": "1"})
            case "500":
                self._answer(500, b"oh dear")
            case "garbage":
                self._answer(200, b"\x00\xff<html>" + answer[20:])
            case "cut off":
                self._answer(200, answer[: len(answer) // 2], {"Content-Length": str(len(answer))})
                self.close_connection = True
            case "hung up":
                self.close_connection = True
            case "silence":
                time.sleep(3 * TIMEOUT_S)
                self.close_connection = True
            case None:
                self._answer(200, answer)

    def _answer(self, status: int, content: bytes, headers: dict | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def serving(fault):
    server = Server(fault)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def job_on(
    server: Server, directory: Path, source: Path, retries: int = 6, timeout_s: float = TIMEOUT_S
) -> Job:
    engine = {
        "kind": "openai",
        "rows_per_commit": 16,
        "url": f"http://127.0.0.1:{server.server_port}/v1",
        "model": "m",
        "api_key_env": None,
        "retries": retries,
        "timeout_s": timeout_s,
    }
    instructions = {"path": str(source), "limit": ROWS}
    # The server's texts are no language.
    return write_job(directory, source, instructions=instructions, engine=engine, recipe={"gates": None})


def some(seed: int, tries: int) -> str | None:
    """Every third request fails once or twice, each time in one of the ways."""
    chance = int.from_bytes(blake2b(f"{seed}/{tries}".encode(), digest_size=4).digest())
    return FAULTS[chance // 3 % len(FAULTS)] if tries < 2 and chance % 3 == 0 else None


def test_a_server_that_misbehaves_now_and_then(cluster, source, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda *_: None) as good, serving(some) as bad:
        wanted, job = job_on(good, tmp_path / "good", source), job_on(bad, tmp_path / "bad", source)
        generate(wanted)
        generate(job)
    assert set(bad.faults) == {*FAULTS, None}, "it misbehaved in every way"
    assert set(good.faults) == {None}
    assert_equals_undisturbed(job, wanted)


def test_a_server_that_is_broken_for_good(cluster, source, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda seed, _: FAULTS[seed % 4]) as broken:
        job = job_on(broken, tmp_path, source, retries=1, timeout_s=60)  # none of these faults is silence
        with pytest.raises(
            RunFailed,
            match=r"all 120 rows failed, most with: endpoint gave no usable answer .*--retry-failed",
        ):
            generate(job)
    rows = rows_of(job.run).to_pylist()
    assert len(rows) == ROWS and {row["status"] for row in rows} == {"failed"}
    told = Counter(row["error"].rpartition("last: ")[2] for row in rows)
    assert {"HTTP 429", "HTTP 500", "the body is no chat completion", "RemoteProtocolError"} <= set(told)
