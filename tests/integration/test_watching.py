"""A real run on the dummy model, watched, scraped, interrupted and brought to its end; and what stands in its
logs: no text of a row."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

MARKER = "zebrafish"
ROWS = 60
END_S = 10  # actors notice that their raylet has ended
CONFIG = """
run_dir: {run}
model: {{path: any/model}}
engine: {{kind: dummy, latency_s: 3, failures: 0.1, tokens: [10, 20], rows_per_commit: 8, max_num_seqs: 8}}
methods: {{mistakes: {{name: mistake_analysis, instructions: {{path: {instructions}}}, prompts: {prompts}}}}}
suites: {{safety: {{harmful: {{path: "toy:harmful-heldout"}}}}}}
"""
# Where the instruction says BREAK, rendering raises an exception whose text is the instruction.
PROMPTS = (
    "suffix: \"{% if 'BREAK' in instruction %}{{ {}[instruction] }}{% endif %}{{ instruction }} {{ text"
    ' }}"\n'
)


@dataclass
class Watched:
    """What was seen of three attempts on one run directory: Ctrl-C twice at work, SIGTERM at the start, and
    to the end."""

    run: Path
    ray: Path
    status: dict  # of the first, at work
    refused: subprocess.CompletedProcess  # a second run beside it
    metrics: dict[str, float]
    listening: list[str]  # addresses
    codes: list[int]
    seconds: list[float]  # from signal to end
    outputs: list[str]
    engines: list[psutil.Process]  # of the first
    left_behind: list[psutil.Process]  # of them, END_S after its end


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.cli", *arguments]


def status_of(run: Path) -> dict:
    done = subprocess.run(command("status", str(run), "--json"), capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else {}


def until(found, process: subprocess.Popen, seconds: float = 120):
    """Wait for `found()` to be something, while the process runs."""
    end = time.monotonic() + seconds
    while not (something := found()):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, "took too long"
        time.sleep(0.3)
    return something


def rows_of(run: Path) -> list[dict]:
    return pq.read_table(sorted((run / "mistakes").glob("*.parquet"))).to_pylist()


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(address, timeout=10) as reply:
        text = reply.read().decode()
    return {
        m[1]: float(m[2])
        for m in re.finditer(
            r'^ray_setbacks_(\w+)\{[^\n]*stage="generate \(dummy engine\)"\} (\S+)$', text, re.M
        )
    }


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def name(process: psutil.Process) -> str:
    """Empty if it has ended: Ray's workers may do so at any time."""
    with suppress(psutil.Error):
        return process.name()
    return ""


def listening(processes: list[psutil.Process]) -> list[str]:
    found = []
    for process in processes:
        with suppress(psutil.Error):
            found += process.net_connections("inet")
    return [connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN]


def end_by(process: subprocess.Popen, *signals: int) -> tuple[float, str]:
    started = time.monotonic()
    for signum in signals:
        process.send_signal(signum)
        time.sleep(0.3)
    output, _ = process.communicate(timeout=60)
    return time.monotonic() - started, output


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Watched:
    directory, ray = (
        tmp_path_factory.mktemp("watched"),
        Path(tempfile.mkdtemp(prefix="r", dir="/tmp")),
    )  # sockets need a short path
    run, config, source, prompts = (
        directory / name for name in ("run", "config.yaml", "asks.jsonl", "prompts.yaml")
    )
    rows = [
        {"instruction": f"{MARKER} ask {i}", "category": f"{MARKER}-kind", "safe_response": f"{MARKER} no"}
        for i in range(ROWS)
    ]
    rows += [{"instruction": f"BREAK {MARKER} {i}"} for i in range(5)] + [rows[0]]
    rows += [
        {"instruction": {"nested": MARKER}},
        {"instruction": "", "category": MARKER},
        {"instruction": "a", "safe_response": [MARKER]},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts.write_text(PROMPTS)
    config.write_text(CONFIG.format(run=run, instructions=source, prompts=prompts))

    started: list[subprocess.Popen] = []

    def start(*overrides: str) -> subprocess.Popen:
        environment = {**os.environ, "RAY_TMPDIR": str(ray)}
        process = subprocess.Popen(
            command("generate", str(config), *overrides),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        started.append(process)
        return process

    first = start()
    try:
        seen = until(
            lambda: (s := status_of(run)) and s["outputs"] and (s["outputs"][0]["done"] or 0) > 0 and s, first
        )
        metrics = until(lambda: len(m := scrape(seen["attempts"][0]["metrics"][0])) >= 6 and m, first)
        refused = subprocess.run(command("generate", str(config)), capture_output=True, text=True)
        processes = family(first)
        addresses = listening([psutil.Process(first.pid), *processes])
        engines = [process for process in processes if "MapWorker" in name(process)]
        by_int, first_output = end_by(first, signal.SIGINT, signal.SIGINT, signal.SIGINT)
        left = psutil.wait_procs(engines, timeout=END_S)[1]
        second = start()
        until(lambda: len(status_of(run).get("attempts", ())) == 2, second)
        until(lambda: "gcs_server" in map(name, family(second)), second)  # Ray is starting
        by_term, second_output = end_by(second, signal.SIGTERM)
        third = start("engine.latency_s=0")
        output, _ = third.communicate(timeout=200)
        codes = [process.returncode for process in (first, second, third)]
        outputs = [first_output, second_output, output]
        yield Watched(
            run, ray, seen, refused, metrics, addresses, codes, [by_int, by_term], outputs, engines, left
        )
    finally:
        for process in started:
            process.kill()
        shutil.rmtree(ray, ignore_errors=True)


def test_status_is_right_while_it_runs(watched):
    [row] = watched.status["outputs"]
    [attempt] = watched.status["attempts"]
    assert watched.status["state"] == row["state"] == attempt["state"] == "running"
    assert 0 < row["done"] < row["total"] == ROWS + 8 and row["left"] == row["total"] - row["done"]
    assert row["per_s"] > 0 and row["eta_s"] >= 0


def test_a_second_run_beside_it_is_refused(watched):
    pid = watched.status["attempts"][0]["pid"]
    assert watched.refused.returncode == 2
    assert f"attempt 1 is using it (host {os.uname().nodename}, process {pid}" in watched.refused.stderr
    assert watched.refused.stderr.count("\n") == 1


def test_metrics_are_on_rays_endpoint(watched):
    assert watched.status["attempts"][0]["metrics"][0].startswith("http://127.0.0.1:")
    assert (
        watched.metrics["rows_total"] > 0
        and watched.metrics["completion_tokens_total"] > 0
        and watched.metrics["prompt_tokens_total"] > 0
    )
    assert (
        0 < watched.metrics["rows_in_flight"] <= 12 and watched.metrics["rows_waiting"] >= 0
    )  # 8 places and half as many again
    assert 0 < watched.metrics["engine_busy"] <= 1


def test_nothing_listens_beyond_this_machine(watched):
    assert watched.listening and {address.removeprefix("::ffff:") for address in watched.listening} == {
        "127.0.0.1"
    }


def test_signals_end_it_soon_with_one_line(watched):
    line = "setbacks: interrupted; rerun the same command to resume\n"
    assert watched.codes == [130, 143, 0]
    assert max(watched.seconds) < 15
    for output in watched.outputs[:2]:
        assert output.endswith(line) and "Traceback" not in output and output.count("\n") <= 3, output
    assert watched.engines and watched.left_behind == []


def test_the_end_and_all_attempts_are_told(watched):
    found = status_of(watched.run)
    assert [one["state"] for one in found["attempts"]] == ["interrupted", "interrupted", "finished"]
    [row] = found["outputs"]
    rows = rows_of(watched.run)
    failed = [row["error"] for row in rows if row["status"] == "failed"]
    assert (row["state"], row["done"], row["failed"]) == ("complete", len(rows), len(failed))
    assert sum("UserError in" in error for error in failed) == 5, (
        "the exceptions that carry a row's text were raised"
    )


def test_no_text_of_a_row_in_logs_or_output(watched):
    files = [
        f
        for place in (watched.run, watched.ray)
        for f in place.rglob("*")
        if f.is_file() and f.suffix != ".parquet"
    ]
    logs = [f for f in files if "worker-" in f.name]
    assert len(logs) > 4 and (watched.run / "logs" / "generate.log") in files
    assert [str(f) for f in files if MARKER.encode() in f.read_bytes()] == []
    assert MARKER not in "".join(watched.outputs) + watched.refused.stderr
    assert any(MARKER in row["instruction"] for row in rows_of(watched.run)), "it is in the data"


def test_logs_are_named_by_stage(watched):
    assert [f.name for f in (watched.run / "logs").iterdir()] == ["generate.log"]
