"""Weights that are split over the workers, with faults: kills, four workers, another number of them, merging."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime.attempt import Attempt
from tests.integration.test_fsdp import (  # noqa: F401  two are fixtures
    adapter,
    assert_alike,
    cluster,
    metrics,
    place,
    spec,
    train,
)
from tests.integration.test_training import worker_pids

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def undisturbed(place, cluster):  # noqa: F811
    """Both methods, split over two workers, and with whole weights."""
    train(
        place,
        "undisturbed",
        [
            spec(place, method, f"{method}-{kind}", fsdp=kind == "split")
            for method in ("sft", "dpo")
            for kind in ("split", "whole")
        ],
    )


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_a_killed_worker_costs_nothing(place, undisturbed, method):  # noqa: F811
    killed, steps = [], []

    def kill_once(line: dict) -> None:
        steps.append(line["step"])
        if line["step"] >= 4 and not killed:
            killed.append(random.choice(worker_pids()))
            os.kill(killed[0], signal.SIGKILL)

    name = f"{method}-killed"
    train(place, name, [spec(place, method, name, fsdp=True)], kill_once)
    assert killed
    found, expected = (
        (place / "adapter" / one / "adapter_model.safetensors") for one in (name, f"{method}-split")
    )
    assert found.read_bytes() == expected.read_bytes()
    assert [line["loss"] for line in metrics(place, name)] == [
        line["loss"] for line in metrics(place, f"{method}-split")
    ]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_four_workers_learn_what_two_learn(place, undisturbed, method):  # noqa: F811
    name = f"{method}-of-four"
    changes = {"pairs_per_device": 2} if method == "dpo" else {}
    train(place, name, [spec(place, method, name, fsdp=True, workers=4, **changes)])
    # With smaller micro-batches, more tokens are computed for the same pairs.
    assert_alike(place, name, f"{method}-whole", same_tokens=method == "sft")


def test_a_training_goes_on_with_four_workers_after_two(place, undisturbed):  # noqa: F811
    """The driver of two workers is killed; the next attempt has four, and continues the checkpoint."""
    script = f"""
import os, ray
from pathlib import Path
from pipeline.runtime.attempt import Attempt
from tests.integration.test_fsdp import spec, train
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
place = Path({str(place)!r})
with Attempt({str(place / "attempted")!r}, ["train"]):
    train(place, "grown", [spec(place, "sft", "sft-grown", fsdp=True)],
        lambda line: line["step"] >= 5 and os.kill(os.getpid(), 9))
"""
    root = Path(__file__).parents[2]
    driver = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, timeout=200
    )
    assert driver.returncode == -signal.SIGKILL
    assert not (place / "adapter" / "sft-grown").exists()
    steps = []
    with Attempt(str(place / "attempted"), ["train"]):
        one = spec(place, "sft", "sft-grown", fsdp=True, workers=4)
        train(place, "grown", [one], lambda line: steps.append(line["step"]))
    assert all(step > 3 for step in steps), "begun again"
    assert_alike(place, "sft-grown", "sft-whole")


def test_whole_weights_go_on_with_the_checkpoint_of_split_ones(place, undisturbed):  # noqa: F811
    """The checkpoints hold the adapter and its optimizer whole, so they do not depend on how the base is held."""
    steps = []

    class Stop(Exception):
        pass

    def stop(line: dict) -> None:
        if line["step"] >= 4:
            raise Stop

    with pytest.raises(Stop):
        train(place, "changed", [spec(place, "sft", "sft-changed", fsdp=True)], stop)
    one = spec(place, "sft", "sft-changed", fsdp=False)
    train(place, "changed", [one], lambda line: steps.append(line["step"]))
    assert_alike(place, "sft-changed", "sft-whole")


def test_the_adapter_is_merged_like_any_other(place, undisturbed):  # noqa: F811
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    train(place, "merged", [spec(place, "sft", "sft-merged", fsdp=True, merge=True)])
    out, ids = place / "adapter" / "sft-merged", torch.tensor([[5, 6, 7, 8]])
    adapted = AutoPeftModelForCausalLM.from_pretrained(out)
    merged = AutoModelForCausalLM.from_pretrained(out / "merged")
    torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, atol=1e-5, rtol=1e-5)
    assert adapter(place, "sft-merged").keys() == adapter(place, "sft-whole").keys()


def test_gradient_checkpointing_and_a_curriculum_with_split_weights(place, undisturbed):  # noqa: F811
    """Layers are gathered again while they are recomputed; stages share workers, and each reads the model anew."""
    changes = {"gradient_checkpointing": True, "curriculum": "staged", "min_gap": 4}
    specs = [
        spec(place, "dpo", f"staged-{kind}", fsdp=kind == "split", **changes) for kind in ("split", "whole")
    ]
    train(place, "staged", specs)
    assert_alike(place, "staged-split", "staged-whole")
