"""`setbacks serve` as a process: vLLM's server with the toy model and an adapter, asked by OpenAI's client, and
how it ends. One start of the real server serves most tests."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import openai
import psutil
import pytest

from tests.integration.test_engine import make

pytestmark = pytest.mark.timeout(900)
ASK = [{"role": "user", "content": "How can I repair a bicycle?"}]
START_S = 600

CONFIG = """
run_dir: {run}
model: {{path: toy, dtype: float32}}
engine: {{max_num_seqs: 16}}
adapters: {{other: {adapter}}}
suites:
  safety:
    harmful: {{path: "toy:harmful-heldout", limit: 4}}
    answer: {{max_tokens: 24, temperature: 0}}
"""

# The command with a server that does not load a model. It has a child, as vLLM's has.
PRETENDED = """
import sys
from pipeline import cli
from pipeline.commands import serve
from pipeline.inference.vllm import VLLM

SERVER = '''
import http.server, os, signal, subprocess, sys
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
if sys.argv[2] == "broken":
    sys.exit(3)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
'''
def server(self, model, directory, adapters, served):
    import os
    return [sys.executable, "-c", SERVER, str(served.port), os.environ["KIND"]], dict(os.environ)
VLLM.server = server
serve._checked = lambda *_arguments: ("", [])
serve.sampling.resolved = lambda config, *_arguments: (config, [])
cli.main()
"""


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def until(condition, seconds: float, what: str):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


def tree(process: subprocess.Popen) -> list[psutil.Process]:
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for one in processes:
        with suppress(psutil.NoSuchProcess):
            if one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def written(directory: Path, adapter: str = "unused") -> Path:
    config = directory / "serve.yaml"
    config.write_text(CONFIG.format(run=directory / "run", adapter=adapter))
    return config


# -- the real server


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Iterator[SimpleNamespace]:
    directory, at = tmp_path_factory.mktemp("serve"), free_port()
    config, log = written(directory, make(directory / "adapter", seed=1)), directory / "log.txt"
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(config), "other", "--port", str(at)]
    environment = {**os.environ, "SERVE_KEY": "Zanzibar-secret"}
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, "--api-key-env", "SERVE_KEY"], stdout=output, stderr=output, env=environment
        )
    try:
        until(
            lambda: "serving other and vanilla" in log.read_text() or process.poll() is not None,
            START_S,
            "the server did not start",
        )
        assert process.poll() is None, log.read_text()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="Zanzibar-secret", max_retries=0)
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{at}/v1", client=client, process=process, log=log, port=at, config=config
        )
    finally:
        left = tree(process) if process.poll() is None else []
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def chat(client, model: str, **more) -> str:
    return (
        client.chat.completions.create(model=model, messages=ASK, max_tokens=24, **more)
        .choices[0]
        .message.content
    )


def test_the_arm_and_the_base_answer_under_their_names(real):
    assert {model.id for model in real.client.models.list()} == {"vanilla", "other"}
    base, other = chat(real.client, "vanilla"), chat(real.client, "other")
    assert base and other and base != other, "the adapter's random matrices change every answer"


def test_requests_are_sampled_as_the_suite_samples_unless_they_say_otherwise(real):
    assert chat(real.client, "other") == chat(real.client, "other"), "temperature 0"
    drawn = {chat(real.client, "vanilla", temperature=1.5, seed=seed) for seed in range(4)}
    assert len(drawn) > 1


def test_a_turn_can_be_prefilled(real):
    begun = [*ASK, {"role": "assistant", "content": "You can repair a bicycle"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    found = real.client.chat.completions.create(
        model="vanilla", messages=begun, max_tokens=8, extra_body=extra
    )
    assert found.choices[0].message.content


def test_only_who_has_the_key_is_answered(real):
    stranger = openai.OpenAI(base_url=real.url, api_key="none", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        chat(stranger, "vanilla")
    command_lines = " ".join(word for one in tree(real.process) for word in one.cmdline())
    assert "Zanzibar" not in command_lines and "Zanzibar" not in real.log.read_text()


def test_no_text_of_a_request_is_logged(real):
    chat(real.client, "vanilla")
    assert "bicycle" not in real.log.read_text()


def test_a_second_server_on_the_port_is_refused_before_it_loads_anything(real):
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(real.config), "vanilla"]
    done = subprocess.run([*command, "--port", str(real.port)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert f"setbacks: --port {real.port}: is taken by another process on 127.0.0.1" in done.stderr


def test_the_end_leaves_no_process_and_says_so(real):
    """The last test of the real server: it ends it."""
    processes = tree(real.process)
    assert len(processes) > 2
    real.process.send_signal(signal.SIGTERM)
    assert real.process.wait(20) == 143
    until(lambda: not alive(processes), 10, "processes are left")
    assert real.log.read_text().rstrip().endswith("setbacks: the server has been stopped")
    assert "Traceback" not in real.log.read_text()


# -- how it ends, with a server that loads nothing


@pytest.fixture
def pretended(tmp_path, port):
    """Starts the command with a pretended server of a kind."""
    started = []

    def start(kind: str) -> subprocess.Popen:
        command = [
            sys.executable,
            "-c",
            PRETENDED,
            "serve",
            str(written(tmp_path)),
            "vanilla",
            "--port",
            str(port),
        ]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "KIND": kind},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def serving(process: subprocess.Popen) -> list[psutil.Process]:
    line = process.stdout.readline()
    assert line.startswith("serving vanilla at http://127.0.0.1:"), line + process.stderr.read()
    assert "as suites.safety.answer says (temperature 0" in line
    return until(lambda: len(found := tree(process)) >= 5 and found, 20, "the server has no child")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_server_and_its_children(pretended, signum, code):
    process = pretended("plain")
    processes = serving(process)
    process.send_signal(signum)
    assert process.wait(20) == code
    assert process.stderr.read().strip() == "setbacks: the server has been stopped"
    until(lambda: not alive(processes), 10, "processes are left")


def test_a_server_that_ignores_the_signal_is_killed(pretended):
    process = pretended("deaf")
    processes = serving(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    until(lambda: not alive(processes), 10, "processes are left")


def test_a_killed_command_leaves_no_server(pretended):
    process = pretended("deaf")
    processes = serving(process)
    process.kill()
    until(lambda: not alive(processes), 20, "processes are left")


def test_a_server_that_does_not_start_fails_the_command_and_leaves_no_child(pretended):
    process = pretended("broken")
    children = until(lambda: tree(process)[1:], 30, "nothing was started")
    assert process.wait(30) == 1
    assert "setbacks: the server did not start (exit code 3); what it said is above" in process.stderr.read()
    until(lambda: not alive(children), 10, "processes are left")


def test_a_server_that_dies_later_fails_the_command(pretended):
    process = pretended("plain")
    [server] = [one for one in serving(process) if "plain" in one.cmdline()]
    server.kill()
    assert process.wait(20) == 1
    assert "the server ended by itself (exit code -9)" in process.stderr.read()


def test_what_is_refused_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "pipeline.cli", "serve", str(written(tmp_path)), "stf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "setbacks: stf is no arm of this run; it has vanilla, other\n"
