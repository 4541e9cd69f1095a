"""The engine `openai` with a real server: vLLM's own, with the toy model. One start serves all tests.

`generate` asks it for every kind of request that recipes make: chats, prefilled turns, and a guard's closed
turns. An engine of the run's own generates the same rows, for comparison.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.chat import Sampling, assistant, user
from pipeline.errors import RowFailed
from pipeline.inference.openai import EndpointModel, OpenAI
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(400)
ASK = [user("How can I repair a bicycle?")]
INSTRUCTIONS, REQUESTS = 16, 8
START_S = 180

# What `pipeline.inference.vllm` sets for an engine on CPUs.
ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "GLOO_SOCKET_IFNAME": "lo",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
OPTIONS = (
    *("--model", str(WEIGHTS), "--served-model-name", "toy", "--host", "127.0.0.1"),
    *("--dtype", "float32", "--load-format", "safetensors", "--block-size", "32", "--max-num-seqs", "32"),
    *(
        "--enforce-eager",
        "--no-enable-chunked-prefill",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ),
)

CONFIG = """
run_dir: {run}
model: {{path: toy, dtype: float32}}
engine: {engine}
models: {{guard: {{engine: {server}}}}}
methods:
  mistakes:
    name: mistake_analysis
    instructions: {{path: {mistakes}}}
    induce: {{max_tokens: 48, temperature: 0}}
    analyse: {{max_tokens: 64, temperature: 0}}
    verify: {{kind: llama_guard, model: guard}}
  corrections:
    name: course_correction
    instructions: {{path: {requests}}}
    continuation: {{max_tokens: 32, temperature: 0.7}}
    judge: {{kind: toy}}
suites: {{}}
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    """The server's URL. It and its children are killed at the end; its log is told if it does not start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *OPTIONS, "--port", str(port)]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, cwd=log.parent, env={**os.environ, **ENVIRONMENT}
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        _end(process)


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + START_S
    while True:
        with suppress(URLError, ConnectionError, TimeoutError), urlopen(url, timeout=5):
            return
        if process.poll() is not None or time.monotonic() > end:
            last = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
            pytest.fail(f"the server did not start (exit code {process.poll()}):\n{last}")
        time.sleep(0.2)


def _end(process: subprocess.Popen) -> None:
    tree = []
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid).children(recursive=True)
    for one in (process, *tree):
        with suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()


@pytest.fixture(scope="module")
def generated(server, tmp_path_factory) -> SimpleNamespace:
    """Rows by data set, of a run whose engine is the server, and of one with an engine of its own."""
    from pipeline.toy import world

    directory = tmp_path_factory.mktemp("runs")
    sources = {}
    for name, split, count in (
        ("mistakes", "harmful-train", INSTRUCTIONS),
        ("requests", "detailed-train", REQUESTS),
    ):
        sources[name] = directory / f"{name}.jsonl"
        rows = [row for row, _ in zip(world.rows(split), range(count), strict=False)]
        sources[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    endpoint = {"url": server, "model": "toy", "api_key_env": None}
    engines = {
        "served": {"kind": "openai", **endpoint, "prefill": True, "rows_per_commit": 8},
        "own": {"max_num_seqs": 64, "rows_per_commit": 8},
    }
    found = {}
    for name, engine in engines.items():
        config = directory / f"{name}.yaml"
        config.write_text(
            CONFIG.format(
                run=directory / name,
                engine=json.dumps(engine),
                server=json.dumps({"kind": "openai", **endpoint}),
                **sources,
            )
        )
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.cli", "generate", str(config)],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found[name] = SimpleNamespace(
            output=done.stdout + done.stderr,
            **{data: _rows(directory / name / data) for data in ("mistakes", "corrections")},
        )
    return SimpleNamespace(**found)


def _rows(directory: Path) -> list[dict]:
    rows = [row for file in directory.glob("*.parquet") for row in pq.read_table(file).to_pylist()]
    return sorted(rows, key=lambda row: row["id"])


def ask(server: str, *calls: tuple) -> list:
    """What the engine's client answers to calls of (prompt, sampling, seed, prefill), asked one by one."""

    async def asked():
        endpoint = OpenAI(kind="openai", url=server, model="toy", api_key_env=None, prefill=True)
        client = EndpointModel(endpoint)
        try:
            return [
                await client.complete(prompt, sampling, seed=seed, adapter=None, prefill=prefill)
                for prompt, sampling, seed, prefill in calls
            ]
        finally:
            await client.aclose()

    return asyncio.run(asked())


# -- runs


def test_every_row_of_both_methods_is_answered_by_the_server(generated):
    mistakes, corrections = generated.served.mistakes, generated.served.corrections
    assert len(mistakes) == INSTRUCTIONS and len(corrections) == REQUESTS
    assert not [row["error"] for row in (*mistakes, *corrections) if row["status"] == "failed"]
    assert all(row["response"] and row["prompt_tokens"] and row["completion_tokens"] for row in mistakes)
    assert "does not accept" not in generated.served.output, "the server takes every parameter that is sent"


def test_a_model_that_is_no_guard_gives_no_verdict_and_every_row_says_so(generated):
    for row in generated.served.mistakes:
        assert row["harmful"] is None and row["status"] in ("not_induced", "dropped")
        assert row["status"] == "dropped" or row["analysis"]


def test_the_server_continues_the_turns_that_recipes_begin(generated):
    made = [response for row in generated.served.corrections for response in row["responses"]]
    turned = [response for response in made if response["kind"] == "syn"]
    assert len(turned) >= REQUESTS, "after a trigger the toy model mostly turns away"
    for response in turned:
        continued = response["text"][response["trigger_end"] :]
        assert continued.strip() and response["trigger"] not in continued


def test_the_server_and_an_engine_of_the_runs_own_write_nearly_the_same_rows(generated):
    """They compute the same tokens of other batches, whose last bits differ: nearly all texts are equal, also
    the sampled ones, because the requests have the same seeds. Prompts have equal lengths always."""
    texts = [
        [
            *((row["id"], "response", row["response"]) for row in run.mistakes),
            *((row["id"], "analysis", row["analysis"]) for row in run.mistakes),
            *(
                (row["id"], response["rank"], response["text"])
                for row in run.corrections
                for response in row["responses"]
                if response["kind"] == "syn"
            ),
        ]
        for run in (generated.served, generated.own)
    ]
    served, own = map(set, texts)
    print(f"{len(served & own)} of {len(served)} and {len(own)} texts are equal")
    assert len(served & own) >= 0.8 * max(len(served), len(own))
    for one, other in zip(generated.served.mistakes, generated.own.mistakes, strict=True):
        assert one["id"] == other["id"]
        if one["response"] == other["response"]:  # so the question about it is the same, too
            assert one["prompt_tokens"] == other["prompt_tokens"]


# -- calls


def test_all_n_samples_come_back_each_with_its_own_seed(server):
    sampling, one = Sampling(24, n=4), Sampling(24)
    first, again, *single = ask(
        server,
        (ASK, sampling, 7, True),
        (ASK, sampling, 7, True),
        *((ASK, one, 7 + i, True) for i in range(4)),
    )
    assert len(first) == 4 and len({sample.text for sample in first}) > 1
    assert first == again
    assert [sample.text for sample in first] == [sample.text for [sample] in single]
    assert all(sample.completion_tokens <= 24 for sample in first)


def test_a_prefill_continues_the_turn_and_a_closed_turn_is_followed_by_another(server):
    greedy = Sampling(24, temperature=0)
    begun = [*ASK, assistant("You can repair a bicycle")]
    [whole], [rest], [new] = ask(
        server, (ASK, greedy, 1, True), (begun, greedy, 1, True), (begun, greedy, 1, False)
    )
    assert rest.prompt_tokens > whole.prompt_tokens
    assert new.prompt_tokens > rest.prompt_tokens, "the end of the turn, and the beginning of the next"
    assert begun[1]["content"] not in rest.text and rest.text != new.text


def test_a_text_is_completed_without_a_chat_template(server):
    [text] = ask(server, ("How can I repair", Sampling(8, temperature=0), 1, True))[0]
    assert text.prompt_tokens < 12 and 0 < text.completion_tokens <= 8


def test_an_over_long_prompt_fails_its_row_and_says_so(server):
    with pytest.raises(RowFailed, match=r"prompt too long for the endpoint's model \(HTTP 400\)"):
        ask(server, ([user("word " * 1500)], Sampling(24), 1, True))
