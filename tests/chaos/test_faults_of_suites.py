"""`evaluate` runs its suites in one pool. Killed while the second is at work, the same command goes on."""

import json
import signal
from pathlib import Path

import pytest

from pipeline.commands.status import status
from tests.chaos.harness import Driver, Job, rows_of, write_job

pytestmark = pytest.mark.timeout(300)
OUTPUTS = ("evaluation", "continuations")
ANSWERS, ENTRIES, LENGTHS, PATHS = 60, 60, [4, 8], 3

EVALUATE = """
import sys
from tests.chaos.test_faults_of_suites import evaluate
evaluate(sys.argv[1])
"""


def evaluate(config: Path | str) -> list[str]:
    """`setbacks evaluate` within this process; returns what it tells.

    The dummy has no weights to evaluate, so that the command refuses it: what it checks is left out.
    """
    from pipeline import experiment, preflight
    from pipeline.config import load

    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflight, "check", lambda *_, **__: [])
        patch.setattr(preflight, "check_models", lambda *_, **__: [])
        experiment.run(load(config), ["evaluate"], log=told.append)
    return told


def evaluation_job(directory: Path, latency_s: float) -> Job:
    """Dropped entries and failing rows are among what has to be accounted for."""
    directory.mkdir(parents=True, exist_ok=True)
    asks, entries = directory / "asks.jsonl", directory / "entries.jsonl"
    write_rows(asks, [{"instruction": f"Tell me about item {i}."} for i in range(ANSWERS)])
    long, short = ({"unsafe_response": "word " * words} for words in (LENGTHS[-1] + 1, LENGTHS[-1]))
    rows = [{"instruction": f"How is {i} made?"} | (long if i % 7 else short) for i in range(ENTRIES)]
    write_rows(entries, rows)
    suite = {"entries": {"path": str(entries)}, "lengths": LENGTHS, "paths": PATHS}
    return write_job(
        directory,
        asks,
        latency_s=latency_s,
        instructions=None,
        engine={"rows_per_commit": 8, "max_num_seqs": 16},
        evaluation={"harmful": {"path": str(asks)}, "conditions": ["plain"], "course_correction": suite},
    )


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def state(job: Job, name: str) -> Path:
    return job.run / ".state" / name


def complete(job: Job, name: str) -> dict | None:
    file = state(job, name) / "complete.json"
    return json.loads(file.read_text()) if file.exists() else None


def test_killed_while_the_second_suite_is_at_work(cluster, tmp_path):
    undisturbed, job = evaluation_job(tmp_path / "undisturbed", 0), evaluation_job(tmp_path / "killed", 0.3)
    evaluate(undisturbed.config)
    parts, recorded = state(job, "continuations"), job.run / "metrics.jsonl"
    driver = Driver(job, code=EVALUATE)
    driver.until(lambda: recorded.exists() and len(list(parts.glob("parts-*/*.parquet"))) >= 2)
    found = {output["name"]: output for output in status(str(job.run))["outputs"]}
    first, second = (found[name] for name in OUTPUTS)
    driver.process.send_signal(signal.SIGKILL)
    driver.wait()
    assert (first["state"], second["state"]) == ("complete", "running")
    assert second["done"] < second["total"] == complete(undisturbed, OUTPUTS[1])["rows"]
    assert complete(job, "continuations") is None, "it was killed in mid-run"
    whole = complete(job, "evaluation")
    told = evaluate(job.config)
    assert [line.rpartition("/")[2] for line in told] == list(OUTPUTS)
    assert complete(job, "evaluation") == whole, "the first was not run again"
    for name in OUTPUTS:
        assert rows_of(job.run, name).equals(rows_of(undisturbed.run, name))
        assert complete(job, name)["digest"] == complete(undisturbed, name)["digest"]
        assert not [*state(job, name).glob("parts-*"), *state(job, name).glob("kept-*")]
    assert set(rows_of(job.run, "continuations")["status"].to_pylist()) == {"ok", "dropped", "failed"}
    assert [line["suite"] for line in lines(job)] == ["safety", "c2_eval"]
    assert [line["resumed_rows"] > 0 for line in lines(job)] == [False, True]
    assert all(line["engine_start_s"] for line in lines(job)), "each attempt started an engine"
    assert [line["engine_start_s"] is None for line in lines(undisturbed)] == [False, True], "one for both"


def lines(job: Job) -> list[dict]:
    return [json.loads(line) for line in (job.run / "metrics.jsonl").read_text().splitlines()]
