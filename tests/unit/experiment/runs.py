"""What tests of whole runs share: the stages that work, and a run of course correction."""

import json

from pipeline.run import Machinery


class Calls(list):
    machinery: Machinery
    specs: list  # of every start of engines, after the stage


EVERYTHING = ["generate", "train sft", "train mistake_analysis", "evaluate"]


def metrics(tmp_path) -> list[str]:
    return [
        json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]


CORRECTION = {
    "model": {"path": "toy"},
    "instructions": {"path": "toy:detailed-train", "limit": 3},
    "recipe": {"name": "course_correction", "check": {"kind": "phrases"}},
    "train": {"method": "dpo"},
    "mix": None,
    "evaluation": {
        "course_correction": {
            "entries": {"path": "toy:detailed-heldout", "limit": 2},
            "lengths": [10, 80],
            "judge": {"kind": "toy"},
        },
        "harmful": {"path": "toy:harmful-heldout", "limit": 2},
        "conditions": ["plain"],
    },
}


def suites_recorded(tmp_path) -> list[str]:
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["suite"] for line in lines if line["stage"] == "evaluate"]
