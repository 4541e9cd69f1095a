"""LoRA layers that compute base layer and adapter as one operation, with fewer passes over memory and fewer
kernels than PEFT's own forward pass makes."""

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch.nn.functional import linear


def fuse(model: Any) -> None:
    """Prepare the LoRA layers of a PEFT model with one adapter, whose base weights are frozen, for training.

    Plain layers become `FusedLinear`. Layers with dropout, biases or a variant such as DoRA, and those of a
    base in 4 bits, keep PEFT's forward pass. It casts their inputs to float32, and in bfloat16 training,
    autocast casts these back for the products. PEFT's casts are left out, unless the factor of dropout would
    then be rounded.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not _has_dropout(layer):
            layer.cast_input_dtype_enabled = False
            if _is_plain(layer):
                layer.__class__ = FusedLinear


def _has_dropout(layer: Any) -> bool:
    return any(not isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())


def _is_plain(layer: Any) -> bool:
    return (
        type(layer) is Linear
        and type(layer.base_layer) is torch.nn.Linear
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


class FusedLinear(Linear):
    """A LoRA layer without dropout: x · Wᵀ + b + scaling · (x · Aᵀ) · Bᵀ."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[…, inputs] → […, outputs]; the base layer alone while adapters are off or merged."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        return _Product.apply(x, base.weight, base.bias, a, b, self.scaling[name])


class _Product(torch.autograd.Function):
    """The layer's output, and the gradients of x, A and B.

    PEFT makes three passes over the output (product with B, scaling, sum), and autograd scales the output's
    gradient and adds up the input's. Here, a product adds its result to what is there. In bfloat16 autocast,
    factors are cast as PyTorch would cast them, and sums are rounded less often.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:
        kind = _precision(x)
        ctx.shape, ctx.scaling = x.shape, scaling
        x, weight, a, b = (tensor.to(kind) for tensor in (x.flatten(0, -2), weight, a, b))
        result = linear(x, weight, bias if bias is None else bias.to(kind))
        hidden = linear(x, a)
        result.addmm_(hidden, b.T, alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, hidden)
        return result.view(*ctx.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, a, b, hidden = ctx.saved_tensors
        gradient, scaling = gradients[0].flatten(0, -2), ctx.scaling
        of_hidden = gradient @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_hidden, a, alpha=scaling).view(ctx.shape)
        # With beta 0, nothing is added to a scaled product. Autograd casts gradients to their tensors' type.
        of_a = torch.addmm(a, of_hidden.T, x, beta=0, alpha=scaling)
        of_b = torch.addmm(b, gradient.T, hidden, beta=0, alpha=scaling)
        return of_x, None, None, of_a, of_b, None


def _precision(x: torch.Tensor) -> torch.dtype:
    """In which the product is computed: autocast's, else that of the input."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
