"""Weights that are split over the workers: kills, stages, four workers, and another number after a restart."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.data.dataset import Dataset
from pipeline.runtime.attempt import Attempt
from tests import gloo, tiny
from tests.integration import test_fsdp as alone
from tests.integration.test_fsdp import trained  # noqa: F401  a fixture
from tests.integration.test_training import worker_pids

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


# Relative of a loss, absolute of a weight. On two workers they were equal bit for bit. More workers add up
# gradients in another order, and Adam divides by their size: where a gradient is rounding, a weight differs by
# as much as a step.
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
    """An arm of four steps, unless `epochs` says more."""
    settings = {"method": method, "epochs": 2, "batch_size": 8, "max_length": 160}
    if method == "dpo":
        settings |= {"pairs_per_device": 4, "epochs": 0.5}
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


def assert_alike(
    place: Path, name: str, other: str, loss: float = LOSS, weights: float = WEIGHTS, same_tokens: bool = True
) -> None:
    import torch

    lines = [metrics(place, one) for one in (name, other)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    for key in ("loss", "learning_rate", *(["tokens"] if same_tokens else [])):
        assert [line[key] for line in lines[0]] == pytest.approx(
            [line[key] for line in lines[1]], rel=loss
        ), key
    found, expected = adapter(place, name), adapter(place, other)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(
            tensor, expected[key], rtol=0, atol=weights, msg=lambda m, k=key: f"{k}: {m}"
        )
    assert any(tensor.abs().max() > 10 * weights for key, tensor in found.items() if "lora_B" in key)


MORE = {"sft": {"epochs": 16}, "dpo": {"epochs": 4}}  # some thirty steps
STAGED = {"epochs": 8, "curriculum": "staged", "min_gap": 4, "gradient_checkpointing": True}


@pytest.fixture(scope="module")
def undisturbed(place, cluster):
    """Both methods, and stages, split over two workers and with whole weights."""
    kinds = {"split": True, "whole": False}
    train(
        place,
        "undisturbed",
        [
            *(
                spec(place, m, f"{m}-{kind}", fsdp=kinds[kind], merge=True, **MORE[m])
                for m in MORE
                for kind in kinds
            ),
            *(spec(place, "dpo", f"staged-{kind}", fsdp=kinds[kind], **STAGED) for kind in kinds),
        ],
    )


@pytest.mark.parametrize("method", ["sft", "dpo", "staged"])
def test_split_weights_learn_what_whole_ones_learn(place, undisturbed, method):
    """Stages share the workers, and each reads the model anew; recomputed layers are gathered again."""
    assert_alike(place, f"{method}-split", f"{method}-whole")


def test_a_worker_killed_in_each_arm_costs_nothing(place, undisturbed):
    killed = []

    def kill_once_an_arm(line: dict) -> None:
        if line["step"] >= 5 and len(killed) < 1 + ("rewards/margins" in line):
            killed.append(random.choice(worker_pids()))
            os.kill(killed[-1], signal.SIGKILL)

    train(
        place,
        "killed",
        [spec(place, method, f"{method}-killed", fsdp=True, **MORE[method]) for method in MORE],
        kill_once_an_arm,
    )
    assert len(killed) == 2
    for method in MORE:
        found, expected = (
            (place / "adapter" / f"{method}-{kind}" / "adapter_model.safetensors").read_bytes()
            for kind in ("killed", "split")
        )
        assert found == expected
        lines, undisturbed_lines = (metrics(place, f"{method}-{kind}") for kind in ("killed", "split"))
        assert [line["loss"] for line in lines] == [line["loss"] for line in undisturbed_lines]


def test_the_adapter_is_merged_like_any_other(place, undisturbed):
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    out, ids = place / "adapter" / "sft-split", torch.tensor([[5, 6, 7, 8]])
    adapted = AutoPeftModelForCausalLM.from_pretrained(out)
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)


def _by_four(where: Path) -> None:
    for method in alone.METHODS:
        alone.train(where, method, True, f"{method}-four", workers=4)
        checkpoint = where / f"{method}-split" / str(alone.RESUMED)
        alone.train(where, method, True, f"{method}-grown", checkpoint, workers=4)


@pytest.mark.parametrize("kind", ["four", "grown"])
def test_four_workers_learn_what_two_learn(trained, kind):  # noqa: F811
    """From the start, or from a checkpoint of two."""
    import torch

    if not (trained / "sft-four").exists():
        gloo.run(4, _by_four, trained)
    for method in alone.METHODS:
        found, expected = (alone.losses(trained, f"{method}-{one}") for one in (kind, "split"))
        assert found == pytest.approx(expected, rel=1e-6)
        adapters = [alone.adapter(trained, f"{method}-{one}") for one in (kind, "split")]
        for name, tensor in adapters[0].items():
            torch.testing.assert_close(tensor, adapters[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "loss", "weights"), [({"workers": 4}, 1e-4, 1e-3), ({"fsdp": False}, 1e-5, 2e-4)]
)
def test_a_training_goes_on_with_other_workers(place, undisturbed, changes, loss, weights):
    """The driver of two workers with split weights is killed. The next attempt has four, or whole weights, and
    continues the checkpoint: it holds the adapter and its optimizer whole."""
    name = f"sft-with-other-{min(changes)}"
    script = f"""
import os, ray
from pathlib import Path
from pipeline.runtime.attempt import Attempt
from tests.long.test_fsdp import spec, train
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
place = Path({str(place)!r})
with Attempt({str(place / name)!r}, ["train"]):
    train(place, {name!r}, [spec(place, "sft", {name!r}, fsdp=True, epochs={MORE["sft"]["epochs"]})],
        lambda line: line["step"] >= 5 and os.kill(os.getpid(), 9))
"""
    root = Path(__file__).parents[2]
    driver = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=400
    )
    assert driver.returncode == -signal.SIGKILL
    assert not (place / "adapter" / name).exists()
    steps = []
    with Attempt(str(place / name), ["train"]):
        one = spec(place, "sft", name, **{"fsdp": True} | changes, **MORE["sft"])
        train(place, name, [one], lambda line: steps.append(line["step"]))
    assert all(step > 3 for step in steps), "begun again"
    assert_alike(place, name, "sft-whole", loss, weights)
