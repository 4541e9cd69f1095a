"""The trainers on a GPU: against a CPU, in bfloat16, twice, with recomputed activations, and in 4 bits."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from pipeline.training import attention
from tests.gpu import toy

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(place, tmp_path_factory):
    """Trains an arm with these settings, once, unless it is to be done again."""
    done: dict[str, toy.Trained] = {}

    def train(arm: str, *, again: bool = False, **settings) -> toy.Trained:
        key = repr((arm, sorted(settings.items())))
        if key not in done or again:
            done[key] = toy.train(place, tmp_path_factory.mktemp("training"), arm, **settings)
        return done[key]

    return train


def furthest(found: toy.Trained, expected: toy.Trained) -> float:
    """The largest difference of a step's losses, relative to the expected one."""
    steps = list(zip(found.losses, expected.losses, strict=True))
    assert len(steps) >= 10
    return max(abs(one - other) / other for one, other in steps)


def learned(found: toy.Trained) -> bool:
    return sum(found.losses[-3:]) < 0.95 * sum(found.losses[:3])


@pytest.mark.parametrize("arm", toy.ARMS)
def test_float32_is_that_of_a_cpu(trained, measured, arm):
    assert not torch.backends.cuda.matmul.allow_tf32, "TF32 has 10 bits"
    on_gpu = trained(arm, bf16=False)
    on_cpu = trained(arm, bf16=False, use_gpu=False)
    assert not torch.backends.cuda.matmul.allow_tf32, "no library has turned it on"
    losses, weights = furthest(on_gpu, on_cpu), toy.apart(on_gpu.weights, on_cpu.weights)
    measured(f"{arm}, float32, GPU against CPU: losses", losses)
    measured(f"{arm}, float32, GPU against CPU: weights", weights)
    assert learned(on_gpu)
    assert losses < 1e-3
    assert weights < 0.05


@pytest.mark.parametrize("arm", toy.ARMS)
def test_bfloat16_learns_what_float32_learns(trained, measured, monkeypatch, arm):
    calls, flash = [], attention._flash
    monkeypatch.setattr(attention, "_flash", lambda *tensors: calls.append(1) or flash(*tensors))
    half = trained(arm, again=True)
    losses = furthest(half, trained(arm, bf16=False))
    measured(f"{arm}, bfloat16 against float32: losses", losses)
    assert learned(half)
    assert losses < 0.05
    assert bool(calls) == (arm == "sft"), "packed documents take PyTorch's flash kernel"


@pytest.mark.parametrize("arm", toy.ARMS)
def test_the_same_training_twice(trained, measured, arm):
    first = trained(arm)
    second = trained(arm, again=True)
    equal = all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    weights, losses = toy.apart(second.weights, first.weights), furthest(second, first)
    measured(f"{arm}, bfloat16, twice: bitwise equal", equal)
    measured(f"{arm}, bfloat16, twice: losses", losses)
    measured(f"{arm}, bfloat16, twice: weights", weights)
    assert losses < 0.02
    assert weights < 0.2


@pytest.mark.parametrize("arm", toy.ARMS)
def test_recomputed_activations_change_nothing(trained, measured, arm):
    losses = furthest(trained(arm, bf16=False, gradient_checkpointing=True), trained(arm, bf16=False))
    measured(f"{arm}, float32, gradient checkpointing: losses", losses)
    assert losses < 1e-4


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'setbacks[qlora]'")
@pytest.mark.parametrize("arm", toy.ARMS)
def test_a_base_in_4_bits(trained, measured, arm):
    rounded = trained(arm, load_in_4bit=True)
    losses = furthest(rounded, trained(arm))
    measured(f"{arm}, 4 bits against bfloat16: losses", losses)
    assert losses > 0, "the weights are rounded"
    assert learned(rounded)
    assert losses < 0.3
