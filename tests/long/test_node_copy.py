"""Engine and trainer read a node's copy of a model: the original has other weights by then, and a run's rows
and adapter are those of the weights that were copied."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.data import node_copy, storage
from pipeline.toy.model import WEIGHTS

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def run(place: Path, model: Path, cache: Path | None) -> Path:
    tree = {
        "run_dir": str(place),
        "model": {"path": str(model), "dtype": "float32"},
        "engine": {"rows_per_commit": 8, "max_num_seqs": 16},
        "methods": {
            "mistakes": {
                "name": "mistake_analysis",
                "instructions": {"path": "toy:harmful-train", "limit": 16},
                "induce": {"max_tokens": 48, "temperature": 0},
                "analyse": {"max_tokens": 64, "temperature": 0},
                "verify": {"kind": "refusal"},
                "mix": {"helpful": {"path": "toy:helpful-train", "limit": 16}},
            }
        },
        "train": {"epochs": 1, "learning_rate": 3e-4, "batch_size": 4, "max_length": 512, "bf16": False},
        "arms": {"sft": {"kinds": ["safe", "helpful"]}},
        "suites": {
            "safety": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 8},
                "conditions": ["plain"],
                "harmless": {"kind": "refusal"},
                "answer": {"max_tokens": 32, "temperature": 0},
                "help": None,
            }
        },
    }
    config = place.with_suffix(".yaml")
    config.write_text(json.dumps(tree))
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "run", str(config)],
        capture_output=True,
        text=True,
        env=environment | ({node_copy.CACHE: str(cache)} if cache else {}),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def rows(place: Path, name: str) -> list[dict]:
    files = storage.files(str(place / name), ".parquet")
    found = [row for file in files for row in pq.read_table(file).to_pylist()]
    return sorted(found, key=lambda row: row["id"])


def test_a_run_reads_the_copy_alone(tmp_path, monkeypatch):
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(WEIGHTS, model)
    whole = run(tmp_path / "whole", model, None)

    monkeypatch.setenv(node_copy.CACHE, str(cache))
    monkeypatch.setattr(node_copy, "_locks", {})
    copy = Path(node_copy.read_from(str(model), pytest.fail))
    [file] = model.glob("*.safetensors")
    about = file.stat()
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_size == about.st_size, "the cache cannot tell, so it is not copied again"

    copied = run(tmp_path / "copied", model, cache)
    assert [place for place in copy.parent.iterdir() if place.is_dir()] == [copy]
    for name in ("mistakes", "evaluation"):
        assert rows(copied, name) == rows(whole, name)
    first, second = (place / "adapter/sft/adapter_model.safetensors" for place in (copied, whole))
    assert first.read_bytes() == second.read_bytes()
    settings = json.loads((copied / "adapter/sft/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model), "it does not name the copy"
