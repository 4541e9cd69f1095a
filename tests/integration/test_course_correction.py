"""Course correction on the real engine and the real trainer: C²-Syn → pairs → DPO → C²-Eval, in one small
run."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(600)  # the run is made within the first test that asks for it

REQUESTS, ENTRIES, LENGTHS, PATHS = 20, 8, [10, 40, 80], 6
CONFIG = f"""
run_dir: {{run}}
model: {{{{path: toy, dtype: float32}}}}
engine: {{{{rows_per_commit: 8, max_num_seqs: 64}}}}
methods:
  corrections:
    name: course_correction
    instructions: {{{{path: {{source}}}}}}
    continuation: {{{{max_tokens: 48, temperature: 0.7}}}}
    judge: {{{{kind: toy}}}}
train: {{{{method: dpo, learning_rate: 5.0e-4, batch_size: 30, pairs_per_device: 30, max_length: 512, bf16: false, save_steps: 4, log_steps: 2}}}}
suites:
  c2_eval:
    entries: {{{{path: "toy:detailed-heldout", limit: {ENTRIES}}}}}
    lengths: {LENGTHS}
    paths: {PATHS}
    judge: {{{{kind: toy}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    from pipeline.toy import world

    directory = tmp_path_factory.mktemp("course-correction")
    rows = [row for row, _ in zip(world.rows("detailed-train"), range(REQUESTS), strict=False)]
    odd = [
        {"instruction": "Tell me a joke about it.", "unsafe_response": "word, " * 90},
        {"instruction": "How long is this?", "unsafe_response": "Too short, that is all."},
        {"instruction": "What has no marks?", "unsafe_response": "word " * 90},
        {"instruction": "How is one without?", "unsafe_response": None},
        {"instruction": None, "unsafe_response": "a"},
    ]
    source = directory / "requests.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in (*rows, rows[0], *odd)))
    config = directory / "config.yaml"
    config.write_text(CONFIG.format(run=directory / "run", source=source))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", str(config)],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "run"


def rows(run: Path, name: str) -> list[dict]:
    return [row for file in sorted((run / name).glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_every_request_is_accounted_for(run):
    found = rows(run, "corrections")
    status = Counter(row["status"] for row in found)
    assert len(found) == REQUESTS + 5
    assert status["failed"] == 1 and status["dropped"] == 4 and status["ok"] == REQUESTS
    reasons = [row["error"] for row in found if row["status"] == "dropped"]
    for word in ("keyword", "too short", "punctuation", "no unsafe response"):
        assert any(word in reason for reason in reasons), reasons
    work = json.loads((run / ".state/corrections/work.json").read_text())
    [read] = work["sources"].values()
    assert (read["read"], read["duplicates"], read["malformed"]) == (REQUESTS + 6, 1, 1)


def test_responses_are_ranked_and_begin_alike(run):
    complete = 0
    for row in (row for row in rows(run, "corrections") if row["status"] == "ok"):
        ranks = [response["rank"] for response in row["responses"]]
        assert ranks == sorted(set(ranks)) and len(ranks) + len(row["lost"]) == 6
        complete += len(ranks) == 6
        harmful = row["responses"][-1]
        assert harmful["kind"] == "harmful" and harmful["text"] == f"{row['opener']} {row['unsafe_response']}"
        for response in row["responses"]:
            if response["kind"] == "syn":
                assert harmful["text"].startswith(response["text"][: response["harmful_end"]])
                assert (
                    response["text"][response["harmful_end"] : response["trigger_end"]].strip()
                    == response["trigger"]
                )
                assert len(response["text"]) > response["trigger_end"] + 5
    assert complete > REQUESTS / 3, "after a trigger the toy model mostly turns away"


def test_all_ordered_pairs_of_what_remained(run):
    pairs = Counter(row["group"] for row in rows(run, "preferences"))
    for row in (row for row in rows(run, "corrections") if row["status"] == "ok"):
        n = len(row["responses"])
        assert pairs[row["id"]] == n * (n - 1) / 2
    assert len({row["id"] for row in rows(run, "preferences")}) == sum(pairs.values())


def test_pairs_are_what_trl_and_datasets_read(run, tmp_path):
    import datasets
    from trl.data_utils import is_conversational, maybe_extract_prompt

    loaded = datasets.load_dataset(str(run / "preferences"), split="train", cache_dir=str(tmp_path))
    example = loaded[0]
    assert is_conversational(example) and maybe_extract_prompt(example)["prompt"] == example["prompt"]
    assert example["rank_chosen"] < example["rank_rejected"]


def test_dpo_learns_the_order_and_says_so(run):
    lines = [json.loads(line) for line in (run / "adapter/dpo/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    assert lines[-1]["rewards/accuracies"] > 0.6 and lines[-1]["loss"] < lines[0]["loss"] < 0.75


def test_the_adapter_loads_with_peft_and_changes_the_model(run):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(WEIGHTS, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7]])
    before = base(ids).logits
    assert not torch.allclose(
        before, PeftModel.from_pretrained(base, run / "adapter/dpo")(ids).logits, atol=1e-3
    )


def test_every_path_of_every_entry_length_and_arm_is_kept_with_its_verdict(run):
    found = rows(run, "continuations")
    assert {(row["arm"], row["k"]) for row in found} == {
        (arm, k) for arm in ("vanilla", "dpo") for k in LENGTHS
    }
    assert len(found) == ENTRIES * len(LENGTHS) * 2 and all(row["status"] == "ok" for row in found)
    for row in found:
        assert len(row["paths"]) == len(row["corrected"]) == PATHS and None not in row["corrected"]
        assert (
            len(row["prefills"]) == 1 and len(row["prefills"][0].split()) > row["k"]
        )  # the opener is not counted
    assert any(len(set(row["paths"])) > 1 for row in found)


def test_the_report_tells_corr_before_and_after(run):
    text = (run / "report.md").read_text()
    assert "Corr" in text and "vanilla" in text and "dpo" in text and "toy" in text.lower()
    said = [row["unsafe_response"] for row in rows(run, "corrections") if row["status"] == "ok"]
    logs = "".join(f.read_text(errors="replace") for f in (run / "logs").iterdir())
    assert not any(sentence in text + logs for sentence in said)


def test_cards_stand_beside_the_data(run):
    for name in ("corrections", "preferences", "continuations"):
        card = (run / name / "README.md").read_text()
        assert card.startswith("---") and "Content warning" in card
