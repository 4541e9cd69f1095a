"""The whole job on the real engine and the real trainer, interrupted twice on the way."""

import ast
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.toy.model import WEIGHTS
from tests.integration.conftest import INSTRUCTIONS, SAMPLES, engines

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(800)  # the shared run is made within the first test that asks for it


def table(run, name: str):
    return pq.read_table(sorted((run.path / name).glob("*.parquet")))


def test_killed_twice_and_nothing_lost_or_repeated(finished_run):
    assert 0 < finished_run.committed_when_killed * 24 < INSTRUCTIONS * SAMPLES, "the kill came in the middle"
    assert finished_run.engines_killed, "an engine was killed while rows were in flight"
    work = pq.read_table(finished_run.path / ".state/mistakes/work")["id"].to_pylist()
    ids = table(finished_run, "mistakes")["id"].to_pylist()
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == sorted(work)


def test_every_row_is_accounted_for(finished_run):
    rows = table(finished_run, "mistakes").to_pylist()
    work = json.loads((finished_run.path / ".state/mistakes/work.json").read_text())
    [read] = work["sources"].values()
    assert read["duplicates"] == 1 and read["malformed"] == 2
    assert work["rows"] == len(rows) == (INSTRUCTIONS + 1) * SAMPLES + 2
    statuses = ("ok", "not_induced", "dropped", "failed")
    by_status = {status: [r for r in rows if r["status"] == status] for status in statuses}
    assert sum(map(len, by_status.values())) == len(rows)
    assert len(by_status["dropped"]) <= 0.02 * len(rows)  # quality gates, and texts cut at max_tokens
    assert all(r["error"] for r in by_status["dropped"])
    assert len(by_status["failed"]) == 2 + SAMPLES  # malformed ones, and every sample of the over-long one
    assert all(r["error"] for r in by_status["failed"])
    assert sum("too long" in r["error"] for r in by_status["failed"]) == SAMPLES
    assert all(r["harmful"] is True and r["analysis"] for r in by_status["ok"])


def test_samples_of_an_instruction_differ(finished_run):
    responses: dict[str, set] = {}
    for row in table(finished_run, "mistakes").to_pylist():
        if row["status"] != "failed":
            responses.setdefault(row["instruction_id"], set()).add(row["response"])
    assert sum(len(r) > 1 for r in responses.values()) > 0.9 * len(responses)


def test_loads_with_datasets(finished_run, tmp_path):
    import datasets

    for name in ("mistakes", "sft", "evaluation"):
        loaded = datasets.load_dataset(str(finished_run.path / name), split="train", cache_dir=str(tmp_path))
        assert loaded.num_rows == table(finished_run, name).num_rows > 0


def test_training_examples_hold_bad_responses_in_the_prompt_only(finished_run):
    mistakes = {
        (r["instruction_id"], r["response"])
        for r in table(finished_run, "mistakes").to_pylist()
        if r["harmful"]
    }
    analyses = [r for r in table(finished_run, "sft").to_pylist() if r["kind"] == "analysis"]
    assert analyses
    for example in analyses:
        question, answer = example["messages"]
        assert question["role"] == "user" and answer["role"] == "assistant"
        assert "may be harmful" not in question["content"]
        assert not any(
            response in answer["content"] for id, response in mistakes if id == example["instruction_id"]
        )


def test_adapter_loads_with_peft_and_changes_the_model(finished_run):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    after = PeftModel.from_pretrained(base, finished_run.path / "adapter/mistake_analysis")(ids).logits
    assert not torch.allclose(before, after, atol=1e-3)


def test_every_arm_answers_under_every_condition(finished_run):
    rows = table(finished_run, "evaluation").to_pylist()
    cells = {(r["suite"], r["arm"], r["condition"]) for r in rows}
    arms = ("vanilla", "sft", "mistake_analysis")
    assert cells == {("harmful", a, c) for a in arms for c in ("plain", "reminder", "hint")} | {
        ("helpful", a, c) for a in arms for c in ("plain", "reminder")
    }
    assert all(r["status"] == "ok" for r in rows)
    answers = {(r["instruction_id"], r["suite"], r["condition"], r["arm"]): r["response"] for r in rows}
    changed = [answers[k] != answers[(*k[:3], "vanilla")] for k in answers if k[3] == "sft"]
    assert sum(changed) > len(changed) / 2, "the adapter is really used"


def test_report_and_metrics(finished_run):
    html = (finished_run.path / "report.html").read_text()
    assert "mistake_analysis" in html and "large models" in html
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=[\"']http", html)
    stages = [
        json.loads(line)["stage"] for line in (finished_run.path / "metrics.jsonl").read_text().splitlines()
    ]
    assert [s for s in ("generate", "mix", "train", "evaluate") if s in stages] == [
        "generate",
        "mix",
        "train",
        "evaluate",
    ]


def test_no_harmful_text_in_logs_or_output(finished_run):
    said = [
        r["response"]
        for r in table(finished_run, "mistakes").to_pylist()
        if r["harmful"] and len(r["response"]) > 30
    ]
    logs = (
        "".join(f.read_text(errors="replace") for f in (finished_run.path / "logs").iterdir())
        + finished_run.output
    )
    assert said and not any(text in logs for text in said)


def test_run_again_is_passed_over_and_another_configuration_refused(finished_run):
    command = [sys.executable, "-m", "pipeline.cli"]
    again = subprocess.run([*command, "mix", str(finished_run.config)], capture_output=True, text=True)
    assert again.returncode == 0
    other = subprocess.run(
        [*command, "generate", str(finished_run.config), "methods.mistakes.induce.temperature=0.5"],
        capture_output=True,
        text=True,
    )
    assert other.returncode == 2
    assert (
        "mistake_analysis.induce.temperature: 1.0 in the run directory, 0.5 in this config" in other.stderr
        and "Traceback" not in other.stderr
    )


def test_no_engine_is_left_behind(finished_run):
    """Neither of the killed driver, nor of the actor whose engine was killed, nor of the stages that ended as
    they should."""
    end = time.monotonic() + 60
    while engines(finished_run.job) and time.monotonic() < end:
        time.sleep(0.5)
    assert not engines(finished_run.job)


def test_the_notebook_of_the_docs_runs_and_shows_no_harmful_text(finished_run, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SETBACKS_RUN", str(finished_run.path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    out = notebook(capsys)
    assert "After training, the model answers harmlessly in" in out
    assert re.search(r"row 1 of \d+", out) and "▒▒▒▒ (" in out
    responses = [r["response"] for r in table(finished_run, "mistakes").to_pylist() if r["harmful"]]
    assert len(responses) > 20 and not [one for one in responses if one in out]


def notebook(capsys) -> str:
    """What the code cells of docs/quickstart.ipynb print and, as their last line, show."""
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            *body, last = ast.parse("".join(cell["source"])).body
            exec(compile(ast.Module(body, []), "notebook", "exec"), names)
            if isinstance(last, ast.Expr):
                print(eval(compile(ast.Expression(last.value), "notebook", "eval"), names))
            else:
                exec(compile(ast.Module([last], []), "notebook", "exec"), names)
    return capsys.readouterr().out
