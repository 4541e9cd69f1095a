"""Weights that are split over the workers (FSDP2): the real trainer learns what it learns with whole ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.dataset import Dataset
from tests import tiny

# Sums of a sharded model are taken in another order. Adam divides by the gradient's size, so where that is
# rounding alone, weights differ by a step.
LOSS, WEIGHTS = 1e-5, 2e-4


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("fsdp")
    tiny.save(root / "model")
    tiny.write(root / "sft", tiny.rows(90))
    tiny.write_preferences(root / "dpo", tiny.preferences(4))
    return root


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def spec(place: Path, method: str, name: str, **train):
    """An arm of a few steps. epochs 2, batches of 8."""
    settings = {"method": method, "epochs": 2, "batch_size": 8, "max_length": 160}
    if method == "dpo":
        settings |= {"pairs_per_device": 4, "epochs": 1}
    settings |= {"workers": 2, "save_steps": 3, "log_steps": 1, "learning_rate": 1e-3}
    config = tiny.config(str(place / "model"), **settings | train)
    return replace(tiny.spec(config, method), name=name)


def train(place: Path, name: str, specs: list, on_progress=None) -> dict[str, list[dict]]:
    """Train arms in one worker group; returns the log lines of each."""
    from pipeline.training.arm import Places, Training

    arms = [
        (
            one,
            Places(
                Dataset.at(str(place / one.train.method)),
                str(place / "adapter" / one.name),
                str(place / "state" / one.name),
            ),
        )
        for one in specs
    ]
    with Training(arms, str(place / "checkpoints" / name)) as training:
        for one in specs:
            training.result(one.name, on_progress)
    return {one.name: metrics(place, one.name) for one in specs}


def metrics(place: Path, name: str) -> list[dict]:
    lines = (place / "adapter" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def adapter(place: Path, name: str) -> dict:
    from safetensors.torch import load_file

    return load_file(place / "adapter" / name / "adapter_model.safetensors")


def assert_alike(place: Path, name: str, other: str, same_tokens: bool = True) -> None:
    import torch

    lines = [metrics(place, one) for one in (name, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for key in ("loss", "learning_rate", *(["tokens"] if same_tokens else [])):
        assert [line[key] for line in lines[0]] == pytest.approx(
            [line[key] for line in lines[1]], rel=LOSS
        ), key
    found, expected = adapter(place, name), adapter(place, other)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(
            tensor, expected[key], rtol=0, atol=WEIGHTS, msg=lambda m, k=key: f"{k}: {m}"
        )
    assert any(tensor.abs().max() > 10 * WEIGHTS for key, tensor in found.items() if "lora_B" in key)


def test_losses_and_adapters_are_those_of_whole_weights(place, cluster):
    """Both methods, whole and split, one after the other in one group of two workers."""
    specs = [
        spec(place, method, f"{method}-{kind}", fsdp=kind == "split")
        for method in ("sft", "dpo")
        for kind in ("whole", "split")
    ]
    lines = train(place, "both", specs)
    for method in ("sft", "dpo"):
        assert len(lines[f"{method}-split"]) >= 5
        assert_alike(place, f"{method}-split", f"{method}-whole")
    split, whole = (
        json.loads((place / "adapter" / f"sft-{kind}" / "adapter_config.json").read_text())
        for kind in ("split", "whole")
    )
    assert split == whole
