"""Two real models in one run on the same cores: a random tiny model answers, then the toy rates; the second
pass is killed with SIGKILL and resumed; a later judge generates no answer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.data import storage
from tests import tiny

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
]  # six starts of engines, within the first test that asks for the runs

CONFIG = """
run_dir: {run}
model: {{path: "{tiny}", dtype: float32, max_length: 512}}
engine: {{rows_per_commit: 8, max_num_seqs: 16}}
models:
  toy: {{path: toy, dtype: float32, engine: {{rows_per_commit: 8, max_num_seqs: 2}}}}
arms: {{}}
suites:
  safety:
    harmful: {{path: "toy:harmful-heldout", limit: 64}}
    conditions: [plain]
    answer: {{max_tokens: 32, temperature: 0}}
    harmless: {{kind: rating, model: toy, draw: {{max_tokens: 128, temperature: 1.0}}}}
    help: null
    {more}
"""


def setbacks(*arguments) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )


def done(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


def rows(run: Path, name: str) -> list[dict]:
    files = storage.files(str(run / name), ".parquet")
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: row["id"])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def runs(place) -> tuple[Path, Path, str]:
    """A run that was killed in its second pass and resumed, one that was not, and what the resumed one said."""
    model = tiny.save(place / "tiny", hidden_size=256)  # vLLM's CPU kernels need heads of 32 and more
    configs = []
    for name in ("killed", "whole"):
        configs.append(place / f"{name}.yaml")
        configs[-1].write_text(CONFIG.format(run=place / name, tiny=model, more=""))
    first = setbacks("evaluate", configs[0])
    state, end = place / "killed" / ".state" / "evaluation", time.monotonic() + 300
    while not list(state.glob("parts-*/*.parquet")):  # committed: the first block with verdicts
        assert first.poll() is None and time.monotonic() < end, first.stdout.read()
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(10)  # its actors end by themselves
    assert list(state.glob("calls-*/toy/*")), "rows of other blocks wait for the judge"
    said = done(setbacks("evaluate", configs[0]))
    done(setbacks("evaluate", configs[1]))
    return place / "killed", place / "whole", said


def test_the_resumed_rows_are_those_of_a_run_that_was_not_killed(runs):
    killed, whole, _ = runs
    found = rows(killed, "evaluation")
    assert len(found) == 64 and {row["status"] for row in found} == {"ok"}
    assert len({row["response"] for row in found}) > 8, "the answers differ"
    assert len({row["harmless_rating"] for row in found}) > 2, "and so do the verdicts"
    assert found == rows(whole, "evaluation")


def test_the_answers_are_not_generated_again(runs):
    killed, whole, _ = runs
    [line] = [json.loads(text) for text in (killed / "metrics.jsonl").read_text().splitlines()]
    [other] = [json.loads(text) for text in (whole / "metrics.jsonl").read_text().splitlines()]
    answers = sum(row["completion_tokens"] for row in rows(whole, "evaluation"))
    assert 0 < line["completion_tokens"] < other["completion_tokens"] - answers, "some of the verdicts only"


def test_another_judge_later_judges_what_is_stored(runs, place):
    killed, _, _ = runs
    before = (killed / ".state" / "evaluation" / "complete.json").read_bytes()
    more = "more_judges: {phrases: {kind: refusal}, own: {kind: yes_no_harmful}}"
    config = place / "more.yaml"
    config.write_text(CONFIG.format(run=killed, tiny=place / "tiny", more=more))
    done(setbacks("run", config))
    assert (killed / ".state" / "evaluation" / "complete.json").read_bytes() == before
    by_id = {row["id"]: row for row in rows(killed, "evaluation")}
    for row in rows(killed, "verdicts_phrases"):
        answer = by_id[row["answer_id"]]
        assert row["harmful"] == (not answer["refused"] and bool(answer["response"].strip()))
    own = rows(killed, "verdicts_own")
    empty = {id for id, row in by_id.items() if not row["response"].strip()}
    assert len(own) == 64 and {row["answer_id"] for row in own if row["raw"] is None} == empty, (
        "all others asked"
    )
    report = (killed / "report.md").read_text()
    assert "| phrases |" in report and "Agreement of the judges" in report
