"""One real run, shared by the tests: it is killed on the way, resumed, and goes to the end."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.chaos import harness
from tests.chaos.harness import Job

CONFIG = """
run_dir: {run}
model: {{path: toy, dtype: float32}}
engine: {{rows_per_commit: 24, max_num_seqs: 48}}
methods:
  mistakes:
    name: mistake_analysis
    instructions: {{path: "{instructions}"}}
    samples: {samples}
    induce: {{max_tokens: 48}}
    analyse: {{max_tokens: 64}}
    mix: {{helpful: {{path: "toy:helpful-train", limit: 80}}, analysis: 0.08}}
train: {{epochs: 1, learning_rate: 5.0e-4, batch_size: 4, max_length: 512, bf16: false, save_steps: 4}}
suites:
  safety:
    harmful: {{path: "toy:harmful-heldout", limit: 16}}
    helpful: {{path: "toy:helpful-heldout", limit: 8}}
    answer: {{max_tokens: 48, temperature: 1}}
    help: {{draw: {{max_tokens: 40, temperature: 0}}}}
"""
INSTRUCTIONS, SAMPLES = 40, 12  # enough that rows are still in flight when the first ones have been committed


@dataclass
class Run:
    job: Job
    config: Path
    path: Path
    committed_when_killed: int
    output: str  # of the run that went to the end
    engines_killed: int


def setbacks(job: Job, *arguments: str) -> subprocess.Popen:
    """A command on a job; its processes are known by the job's mark, whatever becomes of their parents."""
    command = [sys.executable, "-m", "pipeline.cli", *arguments]
    environment = {**os.environ, harness.MARK: job.mark}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def engines(job: Job) -> list[psutil.Process]:
    """A job's living vLLM processes."""
    return harness.processes(job, "vllm child")


def cores(job: Job) -> list[psutil.Process]:
    """The engines' own processes, not the actors'.

    Found by the job's mark: whose children they are is Ray's affair.
    """
    return [p for p in engines(job) if _name(p).startswith("VLLM::EngineCore")]


def _name(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return process.name()
    return ""


def committed(run: Path) -> int:
    """Blocks of rows that are committed."""
    return len(list((run / ".state/mistakes").glob("parts-*/*.parquet")))


def wait_until(condition, process: subprocess.Popen, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            pytest.fail(f"ended too early:\n{process.stdout.read()}")
        if time.monotonic() > end:
            process.kill()
            pytest.fail("took too long")
        time.sleep(0.05)


def end_tree(process: subprocess.Popen) -> None:
    """kill -9 of the driver alone. Its Ray processes end by themselves, as after any death of a driver."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> Run:
    """generate is killed with SIGKILL, driver and all, then an engine of the second attempt is; then it goes
    to the end."""
    import json

    from pipeline.toy import world

    directory = tmp_path_factory.mktemp("run")
    source = directory / "instructions.jsonl"
    rows = [row for row, _ in zip(world.rows("harmful-train"), range(INSTRUCTIONS), strict=False)]
    malformed = [{"instruction": None}, {"instruction": "   "}, {"instruction": "word " * 2000}]
    source.write_text("".join(json.dumps(row) + "\n" for row in (*rows, rows[0], *malformed)))
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(run=directory / "run", instructions=source, samples=SAMPLES))
    run = directory / "run"

    job = Job(config, run)
    first = setbacks(job, "generate", str(config))
    wait_until(lambda: committed(run) >= 2, first)
    end_tree(first)
    left = harness.left_behind(job)  # its actors outlive it for a moment, and commit what they have
    assert not left, "what the killed driver left behind ends by itself"
    at_kill = committed(run)

    second = setbacks(job, "run", str(config))
    # The engine is found while it starts: looking through all processes is slow on a busy machine, and the
    # rows take seconds.
    wait_until(lambda: cores(job), second)
    victims = cores(job)
    wait_until(lambda: committed(run) > at_kill, second)
    for victim in victims:
        victim.kill()
    output, _ = second.communicate(timeout=500)
    assert second.returncode == 0, output
    return Run(job, config, run, at_kill, output, len(victims))
