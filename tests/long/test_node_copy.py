"""Engine and trainer read a node's copy of a model: the original holds nothing but zeros by then, and what a run
makes is made with the weights that were copied."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from pipeline import pretrained
from pipeline.data import node_copy, storage
from pipeline.toy.model import WEIGHTS

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

NEW_TOKENS = 32


def run(place: Path, model: Path, cache: Path) -> Path:
    """One training and one start of engines: the method asks no model."""
    tree = {
        "run_dir": str(place),
        "model": {"path": str(model), "dtype": "float32"},
        "engine": {"rows_per_commit": 8, "max_num_seqs": 16},
        "methods": {
            "comparisons": {
                "name": "chain_of_hindsight",
                "instructions": {"path": "toy:harmful-train", "limit": 16},
            }
        },
        "train": {"epochs": 1, "learning_rate": 3e-4, "batch_size": 4, "max_length": 512, "bf16": False},
        "arms": {"hindsight": {"kinds": ["hindsight"]}},
        "suites": {
            "safety": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 16},
                "conditions": ["plain"],
                "harmless": {"kind": "refusal"},
                "answer": {"max_tokens": NEW_TOKENS, "temperature": 0},
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
        env=environment | {node_copy.CACHE: str(cache)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def answers(run: Path, arm: str) -> list[tuple[list[dict], str]]:
    """What an arm was asked, and its answers."""
    files = storage.files(str(run / "evaluation"), ".parquet")
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    return [(row["messages"], row["response"]) for row in rows if row["arm"] == arm]


def likeliest_answers(asked: list[list[dict]]) -> list[str]:
    """By transformers, with the weights that were copied."""
    tokenizer, net = (
        pretrained.tokenizer(str(WEIGHTS)),
        pretrained.model(str(WEIGHTS), dtype="float32").eval(),
    )
    found = []
    for messages in asked:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        [given] = net.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)
        found.append(tokenizer.decode(given[ids.shape[1] :], skip_special_tokens=True))
    return found


def test_a_run_reads_the_copy_alone(tmp_path, monkeypatch):
    model, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(WEIGHTS, model)
    monkeypatch.setenv(node_copy.CACHE, str(cache))
    monkeypatch.setattr(node_copy, "_locks", {})
    copy = Path(node_copy.read_from(str(model), pytest.fail))
    [file] = model.glob("*.safetensors")
    about = file.stat()
    save_file({name: 0 * tensor for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert file.stat().st_size == about.st_size, "the cache cannot tell, so it is not copied again"

    made = run(tmp_path / "run", model, cache)
    assert [place for place in copy.parent.iterdir() if place.is_dir()] == [copy]
    found = answers(made, "vanilla")
    assert len({text for _, text in found}) > 8, "the answers differ"
    assert [text for _, text in found] == likeliest_answers([asked for asked, _ in found])
    adapter = made / "adapter" / "hindsight"
    matrices = load_file(adapter / "adapter_model.safetensors")
    assert all(matrix.any() for matrix in matrices.values()), "zeros in the base let no gradient through"
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model), "it does not name the copy"
