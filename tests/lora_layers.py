"""A LoRA layer as PEFT computes it and as a training does, for tests on CPUs and GPUs."""

import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear

from pipeline.training import lora
from tests import tiny


def layers_of(*, dropout=0.0, target="all-linear", dtype=torch.bfloat16, **settings) -> tuple[Linear, Linear]:
    """The same layer twice: as PEFT computes it, and as a training does."""
    found = []
    for prepare in (lambda model: None, lora.fuse):
        torch.manual_seed(0)
        config = LoraConfig(
            r=4,
            lora_alpha=12,
            lora_dropout=dropout,
            target_modules=target,
            init_lora_weights=False,
            **settings,
        )
        model = get_peft_model(tiny.model().to(dtype), config, autocast_adapter_dtype=True)
        prepare(model)
        found.append(model.get_base_model().model.layers[0].mlp.up_proj)
    return found[0], found[1]


def outputs(
    layer: Linear, x: torch.Tensor, slope: torch.Tensor, *, autocast: bool = True
) -> dict[str, torch.Tensor]:
    """The layer's output, by default in autocast, and the gradients of its input and of its matrices."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        y = layer(x)
    y.backward(slope)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    return {"y": y.detach(), "x": x.grad, "A": a.grad, "B": b.grad}


def some(layer: Linear, dtype: torch.dtype = torch.bfloat16) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(2, 15, layer.in_features, dtype=dtype)
    return x, torch.randn(2, 15, layer.out_features, dtype=torch.bfloat16)


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float(torch.linalg.norm(found.double() - exact.double()) / torch.linalg.norm(exact.double()))
