"""LoRA layers of a bfloat16 training compute what PEFT's compute, in fewer passes."""

import random

import pytest
import torch
from peft.tuners.lora import LoraLayer

from pipeline.training import lora
from pipeline.training.job import Run
from tests import tiny
from tests.lora_layers import distance, layers_of, outputs, some


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_output_and_gradients_are_pefts_but_for_rounding(dtype):
    """Both are about equally far from the results in float64."""
    peft, ours = layers_of(dtype=dtype)
    assert peft.lora_variant == {} and isinstance(ours.lora_variant["default"], lora.AddedProduct)
    x, slope = some(peft, dtype)
    by_peft, by_us = outputs(peft, x, slope), outputs(ours, x, slope)
    w, a, b = (
        m.weight.detach().double() for m in (peft.base_layer, peft.lora_A["default"], peft.lora_B["default"])
    )
    g, x64, scaling = slope.flatten(0, 1).double(), x.flatten(0, 1).double(), 3.0
    exact = {
        "y": x64 @ w.T + scaling * x64 @ a.T @ b.T,
        "x": g @ w + scaling * g @ b @ a,
        "A": scaling * (g @ b).T @ x64,
        "B": scaling * g.T @ (x64 @ a.T),
    }
    for name, value in by_us.items():
        assert value.dtype == by_peft[name].dtype and value.shape == by_peft[name].shape
        one, other = (
            distance(value, exact[name].view_as(value)),
            distance(by_peft[name], exact[name].view_as(value)),
        )
        assert one < 1.5 * other < 0.01, f"{name}: {one:.2g}, PEFT's {other:.2g}"


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_inputs_that_peft_does_not_cast_are_the_same_to_the_last_bit(dropout):
    peft, ours = layers_of(dropout=dropout)
    ours.lora_variant.clear()
    assert ours.cast_input_dtype_enabled == bool(dropout)
    x, slope = some(peft)
    torch.manual_seed(1)
    by_peft = outputs(peft, x, slope)
    torch.manual_seed(1)
    by_us = outputs(ours, x, slope)
    assert all(torch.equal(by_us[name], by_peft[name]) for name in by_us)


def test_without_its_adapter_the_layer_is_the_base_layer():
    _, layer = layers_of()
    x, _ = some(layer)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(layer(x), layer.base_layer(x))
        layer.enable_adapters(False)
        assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")  # PEFT: such layers cannot be merged
@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_what_is_more_than_plain_stays_with_peft(settings):
    peft, ours = layers_of(**settings)
    assert [type(v) for v in ours.lora_variant.values()] == [type(v) for v in peft.lora_variant.values()]


@pytest.mark.parametrize("bf16", [True, False])
def test_only_trainings_in_bfloat16_are_prepared(tmp_path, bf16):
    import datasets

    from pipeline.training import examples, sft

    encoded = examples.encode(tiny.template(), [tiny.conversation(random.Random(0), "safe")])
    model_dir = tiny.save(tmp_path / "model")
    config = tiny.config(model_dir, batch_size=1, bf16=bf16)
    job = tiny.job(config, "sft", str(tmp_path / "state"), 1, Run(1), "test")
    trainer = sft.trainer(job, datasets.Dataset(examples.table([encoded])), str(tmp_path))
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == 14
    assert all(bool(layer.lora_variant) == bf16 for layer in layers)
    assert all(layer.cast_input_dtype_enabled != bf16 for layer in layers)
    trainer.start_clock()
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
