"""The pieces of the papers' comparisons by the real engine and real training, in one small run on the toy model:
recovery by SFT, a second fine-tuning, condition `think`, and the discrimination suite on both splits."""

import json
from pathlib import Path

import pytest

from pipeline import experiment
from pipeline.config import Config
from pipeline.data.dataset import Dataset

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]  # the run is made within the first test

TRAIN = {"path": "toy:harmful-train", "limit": 6}
SFT = {"epochs": 2, "learning_rate": 3e-4, "batch_size": 2, "max_length": 512, "bf16": False}
ARMS = ("vanilla", "hindsight", "recovery", "recovery_after_3")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("comparisons")
    openers = [{"instruction": f"How can I do deed {n}?", "response": "Sure."} for n in range(8)]
    (place / "openers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in openers))
    self_rated = {"judge": {"draw": {"max_tokens": 48}}, "allow_self_judging": True}
    tree = {
        "run_dir": str(place / "run"),
        "model": {"path": "toy", "dtype": "float32"},
        "engine": {"max_num_seqs": 64, "rows_per_commit": 16},
        "methods": {
            "corrections": {
                "name": "course_correction",
                "instructions": {"path": "toy:detailed-train", "limit": 16},
                "continuation": {"max_tokens": 48, "temperature": 0.7},
                "judge": {"kind": "toy"},
            },
            "comparisons": {"name": "chain_of_hindsight", "instructions": TRAIN},
        },
        "train": SFT,
        "arms": {"recovery": {"kinds": ["recovery"]}, "hindsight": {"kinds": ["hindsight"]}},
        "durability": {
            "data": {"path": str(place / "openers.jsonl")},
            "steps": [0, 3],
            "arms": ["recovery"],
            "learning_rate": 1e-3,
            "batch_size": 2,
        },
        "suites": {
            "safety": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 6},
                "conditions": ["plain", "think"],
                "answer": {"max_tokens": 64},
                "help": None,
            },
            "discrimination": {
                "instructions": {"path": "toy:harmful-heldout", "limit": 4},
                "training": TRAIN,
                "answer": {"max_tokens": 64},
                "analyse": {"max_tokens": 96},
                **self_rated,
            },
        },
    }
    experiment.run(Config.model_validate(tree))
    return place / "run"


def rows(run: Path, name: str) -> list[dict]:
    dataset = Dataset.at(str(run / name))
    assert dataset is not None
    return list(dataset.rows())


def test_half_of_the_recoveries_follow_a_harmful_beginning(run):
    recoveries = [row for row in rows(run, "sft") if row["kind"] == "recovery"]
    prefixed = [row for row in recoveries if row["prefix"]]
    assert 0 < len(prefixed) < len(recoveries)
    assert all(row["prefix_tokens"] == 100 for row in prefixed)


def test_every_arm_thinks_before_it_answers_and_judges_its_own_answers(run):
    answers = rows(run, "evaluation")
    assert {row["arm"] for row in answers} == set(ARMS)
    assert all(row["status"] == "ok" for row in answers)
    thought = [row for row in answers if row["condition"] == "think"]
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant", "user"] for row in thought)
    found = rows(run, "discriminations")
    assert {(row["arm"], row["split"]) for row in found} == {
        (arm, split) for arm in ARMS for split in ("training", "held_out")
    }
    assert all(row["analysis_guided"] and row["analysis_unguided"] for row in found if not row["empty"])
    assert sum(row["rating_guided"] is not None for row in found) > len(found) / 2


def test_the_arm_is_asked_with_its_phrase_for_answers_and_not_for_thoughts(run):
    [first, *_] = [r for r in rows(run, "evaluation") if (r["arm"], r["condition"]) == ("hindsight", "plain")]
    phrase = first["messages"][-1]["content"].removeprefix(first["instruction"]).strip()
    assert phrase
    for row in rows(run, "evaluation"):
        asked = [phrase in message["content"] for message in row["messages"] if message["role"] == "user"]
        wanted = row["arm"] == "hindsight"
        assert asked == ([False, wanted] if row["condition"] == "think" else [wanted])


def test_the_report_has_curve_splits_and_conditions(run):
    page = (run / "report.md").read_text()
    assert "(safety, condition plain, judged by refusal)" in page
    assert "after 0, %" in page and "after 3, %" in page
    assert "Training instructions, mean ratings: answers" in page and "Held-out instructions" in page
    assert "Asked to think about harm first" in page
