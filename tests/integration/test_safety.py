"""One real run among strangers: a server that repeats the key wherever it can, a data set that would execute,
names that are paths.

While it runs, everything it listens on is looked at; afterwards, every byte that it has written.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data import arrow_safety

KEY = "sk-PLANTED-0123456789-abcdef"
ROWS = 40
CONFIG = """
run_dir: {place}/run
model: {{path: toy}}
engine: {{kind: openai, rows_per_commit: 8, url: "http://127.0.0.1:{port}/v1", model: served, retries: 1}}
methods: {{mistakes: {{name: mistake_analysis, gates: null, instructions: {{path: "{place}/source"}}}}}}
suites: {{safety: {{harmful: {{path: "{place}/source"}}}}}}
"""


class Exploit:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


class Echo(BaseHTTPRequestHandler):
    """Answers some requests, refuses some, and repeats the key in status lines, headers and bodies; only not
    in the text itself."""

    protocol_version = "HTTP/1.1"
    keys: list[str] = []  # noqa: RUF012

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        key = self.headers["authorization"].removeprefix("Bearer ")
        self.keys.append(key)
        choice = {
            "index": 0,
            "finish_reason": key,
            "message": {"role": "assistant", "content": "Sure, take the tea.", "name": key},
        }
        answers = [
            (
                200,
                {
                    "id": key,
                    "model": key,
                    "choices": [choice],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 4, "by": key},
                },
            ),
            (401, {"error": {"message": key, "type": key, "code": key.replace("-", "_")}}),
            (500, key),
        ]
        status, body = answers[(0, 0, 0, 1, 2)[len(self.keys) % 5]]
        content = json.dumps(body).encode()
        self.send_response(status, "OK" if status == 200 else key)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Request-Id", key)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@dataclass
class Run:
    place: Path
    rays: Path  # where Ray keeps its session
    output: str
    returncode: int
    listening: dict[tuple[str, str], int]  # (process, address) → port
    before: set[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("safety")
    names = [f"{'../' * (i % 9)}etc/x-{i}" for i in range(ROWS)]
    table = pa.table(
        {
            "id": names,
            "instruction": [f"How is tea {name} made?" for name in names],
            "category": names,
            "source": names,
        }
    )
    (place / "source").mkdir()
    pq.write_table(table, place / "source" / "a.parquet")
    values = pa.array([pickle.dumps(Exploit(place / "pwned"))], pa.large_binary())
    field = pa.field(
        "instruction",
        values.type,
        metadata={"ARROW:extension:name": arrow_safety.NAME, "ARROW:extension:metadata": b""},
    )
    pq.write_table(pa.Table.from_arrays([values], schema=pa.schema([field])), place / "source" / "b.parquet")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    (place / "config.yaml").write_text(CONFIG.format(place=place, port=server.server_port))
    before = {str(path) for path in place.rglob("*")}
    rays = Path(tempfile.mkdtemp(prefix="setbacks-", dir="/tmp"))  # a socket's path may not be long
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "RAY_TMPDIR": str(rays), "NO_PROXY": "127.0.0.1"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "pipeline.cli", "generate", str(place / "config.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    listening = {}
    while process.poll() is None:
        listening |= sockets(process.pid)
        time.sleep(0.2)
    yield Run(place, rays, process.stdout.read(), process.returncode, listening, before)
    server.shutdown()
    server.server_close()
    shutil.rmtree(rays)


def sockets(pid: int) -> dict[tuple[str, str], int]:
    """What a process and its children listen on."""
    found = {}
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return found
    for process in processes:
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[process.name(), connection.laddr.ip] = connection.laddr.port
        except psutil.Error:
            continue
    return found


def test_the_run_comes_to_its_end(run):
    assert run.returncode == 0, run.output
    assert f"generate: {ROWS + 1} rows" in run.output
    statuses = [
        status
        for file in (run.place / "run" / "mistakes").glob("*.parquet")
        for status in pq.read_table(file)["status"].to_pylist()
    ]
    assert 0 < statuses.count("failed") < len(statuses), (
        "some rows met an error of the server, others did not"
    )
    assert set(Echo.keys) == {KEY}, "the key did reach the server"


def test_the_key_is_written_nowhere(run):
    assert KEY not in run.output
    searched = 0
    for directory in (run.place / "run", run.rays):
        for file in directory.rglob("*"):
            if file.is_file() and not file.is_symlink():
                content = file.read_bytes()
                assert KEY.encode() not in content and KEY.replace("-", "_").encode() not in content, file
                searched += 1
    assert list(run.rays.rglob("logs/*.log")), "Ray's logs are among what is searched"
    assert searched > 20
    for file in run.place.rglob("*.parquet"):  # compressed, so not searched above
        assert KEY not in str(pq.read_table(file).to_pylist())


def test_nothing_listens_beyond_this_machine(run):
    names = {name for name, _ in run.listening}
    assert {"gcs_server", "raylet"} <= names and len(names) > 4, "the sockets were seen"
    assert not [where for where in run.listening if not _loopback(where[1])]


def _loopback(address: str) -> bool:
    found = ip_address(address)
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def test_the_data_set_executed_nothing_and_wrote_only_into_the_run(run):
    assert not (run.place / "pwned").exists()
    inside = str(run.place / "run")
    assert {str(path) for path in run.place.rglob("*") if not str(path).startswith(inside)} == run.before
    names = {path.name for path in (run.place / "run").rglob("*")}
    assert not [name for name in names if "x-" in name or "etc" in name], (
        "no name of a row became one of a file"
    )
