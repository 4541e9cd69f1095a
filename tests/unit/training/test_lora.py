"""LoRA layers of a training compute what PEFT's compute, in fewer passes."""

import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear, LoraLayer

from pipeline.training import lora
from pipeline.training.job import Run
from tests import tiny
from tests.lora_layers import distance, layers_of, outputs, some


def exact_outputs(layer, x, slope):
    """In float64."""
    w, a, b = (
        m.weight.detach().double()
        for m in (layer.base_layer, layer.lora_A["default"], layer.lora_B["default"])
    )
    g, x, scaling = slope.flatten(0, 1).double(), x.flatten(0, 1).double(), 3.0
    return {
        "y": x @ w.T + scaling * x @ a.T @ b.T,
        "x": g @ w + scaling * g @ b @ a,
        "A": scaling * (g @ b).T @ x,
        "B": scaling * g.T @ (x @ a.T),
    }


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, True), (torch.float32, True), (torch.float32, False)]
)
def test_output_and_gradients_are_pefts_but_for_rounding(dtype, autocast):
    """Both are about equally far from the results in float64."""
    peft, ours = layers_of(dtype=dtype)
    assert type(peft) is Linear and type(ours) is lora.FusedLinear
    x, slope = some(peft, dtype)
    slope = slope if autocast else slope.float()
    by_peft, by_us = (outputs(layer, x, slope, autocast=autocast) for layer in (peft, ours))
    exact = exact_outputs(peft, x, slope)
    for name, value in by_us.items():
        assert value.dtype == by_peft[name].dtype and value.shape == by_peft[name].shape
        one, other = (distance(of, exact[name].view_as(value)) for of in (value, by_peft[name]))
        assert one < 1.5 * other < (0.01 if autocast else 1e-6), f"{name}: {one:.2g}, PEFT's {other:.2g}"


def test_gradients_are_those_of_the_product():
    """By finite differences, in float64."""
    _, layer = layers_of(dtype=torch.float32)
    layer.double()
    x = torch.randn(1, 3, layer.in_features, dtype=torch.float64, requires_grad=True)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, a, b))


def test_its_output_may_be_changed_in_place():
    """As OLMo clips queries, keys and values."""
    peft, ours = layers_of(dtype=torch.float32)
    x, slope = some(peft, torch.float32)
    for layer in (peft, ours):
        layer(x).mul_(2).clamp_(-1, 1).backward(slope.float())
    one, other = (layer.lora_A["default"].weight.grad for layer in (ours, peft))
    assert distance(one, other) < 1e-6


@pytest.mark.parametrize("shape", [(), (0,), (1, 0)])
def test_inputs_of_any_shape(shape):
    peft, ours = layers_of(dtype=torch.float32)
    x = torch.ones(*shape, peft.in_features)
    assert ours(x).shape == peft(x).shape
    ours(x).sum().backward()


def test_a_base_that_is_trained_stays_with_peft():
    model = get_peft_model(tiny.model(), LoraConfig(target_modules="all-linear"))
    trained = model.get_base_model().model.layers[0].mlp.up_proj
    trained.base_layer.weight.requires_grad_()
    lora.fuse(model)
    assert type(trained) is Linear
    assert type(model.get_base_model().model.layers[0].mlp.down_proj) is lora.FusedLinear


def test_an_input_without_gradient_has_none():
    _, layer = layers_of(dtype=torch.float32)
    x, slope = some(layer, torch.float32)
    layer(x).backward(slope.float())
    assert x.grad is None and layer.lora_A["default"].weight.grad.abs().sum() > 0


@pytest.mark.filterwarnings("ignore:`lora_bias=True`")  # PEFT: such layers cannot be merged
@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"lora_bias": True}])
def test_layers_that_stay_with_peft_are_the_same_to_the_last_bit(settings):
    peft, ours = layers_of(**settings)
    assert ours.cast_input_dtype_enabled == ("dropout" in settings)
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
    assert type(ours) is Linear
    assert [type(v) for v in ours.lora_variant.values()] == [type(v) for v in peft.lora_variant.values()]


@pytest.mark.parametrize("bf16", [True, False])
def test_trainings_are_prepared(tmp_path, bf16):
    import datasets

    from pipeline.training import examples, sft

    encoded = examples.encode(tiny.template(), [tiny.conversation(random.Random(0), "safe")])
    model_dir = tiny.save(tmp_path / "model")
    config = tiny.config(model_dir, batch_size=1, bf16=bf16)
    job = tiny.job(config, "sft", str(tmp_path / "state"), 1, Run(1), "test")
    trainer = sft.trainer(job, datasets.Dataset(examples.table([encoded])), str(tmp_path))
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, LoraLayer)]
    assert [type(layer) for layer in layers] == [lora.FusedLinear] * 14
    trainer.start_clock()
    trainer.train()
    assert trainer.state.log_history[-1]["train_loss"] > 0
