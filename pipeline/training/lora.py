"""LoRA layers that compute base layer and adapter as one operation, with fewer passes over memory and fewer
kernels than PEFT's own forward pass makes."""

from typing import Any

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch.nn.functional import linear


def fuse(model: Any) -> None:
    """Prepare the LoRA layers of a PEFT model with one adapter for training.

    Plain layers over frozen weights become `FusedLinear`. Layers with dropout, biases or a variant such as
    DoRA, and those of a base in 4 bits, keep PEFT's forward pass. It casts their inputs to float32, and in
    bfloat16 training, autocast casts these back for the products. PEFT's casts are left out, unless the
    factor of dropout would then be rounded.
    """
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and not _has_dropout(layer):
            layer.cast_input_dtype_enabled = False
            if _is_plain(layer):
                layer.__class__ = FusedLinear


def _has_dropout(layer: Any) -> bool:
    return any(not isinstance(dropout, torch.nn.Identity) for dropout in layer.lora_dropout.values())


def _is_plain(layer: Any) -> bool:
    base = layer.base_layer
    return (
        type(layer) is Linear
        and type(base) is torch.nn.Linear
        and "forward" not in vars(base)  # another one was set
        and not any(parameter.requires_grad for parameter in base.parameters())
        and not layer.lora_variant
        and not any(layer.lora_bias.values())
    )


class FusedLinear(Linear):
    """A LoRA layer without dropout: x · Wᵀ + b + scaling · (x · Aᵀ) · Bᵀ."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[…, inputs] → […, outputs]; the base layer alone while adapters are off or merged."""
        if self.disable_adapters or self.merged or args or kwargs:
            return super().forward(x, *args, **kwargs)
        [name] = self.active_adapters
        base, a, b = self.base_layer, self.lora_A[name].weight, self.lora_B[name].weight
        # Some models change the output in place, which a view made in the function would forbid.
        rows = x.reshape(-1, x.shape[-1])
        result = _Product.apply(rows, base.weight, base.bias, a, b, self.scaling[name])
        return result.view(*x.shape[:-1], result.shape[-1])


class _Product(torch.autograd.Function):
    """The layer's output, and the gradients of x, A and B.

    PEFT scales the product with B and adds it to the base's output, and autograd scales the output's gradient
    and adds up the input's. Here, products are scaled and added to what is there as they are made. In
    bfloat16 autocast, factors are cast as PyTorch would cast them, and sums are rounded less often.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, a: Any, b: Any, scaling: float) -> torch.Tensor:
        """x: [rows, inputs]. Returns [rows, outputs]."""
        kind = _precision(x)
        x, weight, a, b = (tensor.to(kind) for tensor in (x, weight, a, b))
        result = linear(x, weight, bias if bias is None else bias.to(kind))
        hidden = linear(x, a)
        result.addmm_(hidden, b.T, alpha=scaling)
        ctx.save_for_backward(x, weight, a, b, hidden)
        ctx.scaling = scaling
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, a, b, hidden = ctx.saved_tensors
        [gradient], scaling = gradients, ctx.scaling
        of_hidden = gradient @ b
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_hidden, a, alpha=scaling)
        # With beta 0, nothing is added to a scaled product. Autograd casts gradients to their tensors' type.
        of_a = torch.addmm(a, of_hidden.T, x, beta=0, alpha=scaling)
        of_b = torch.addmm(b, gradient.T, hidden, beta=0, alpha=scaling)
        return of_x, None, None, of_a, of_b, None


def _precision(x: torch.Tensor) -> torch.dtype:
    """In which the product is computed: autocast's, else that of the input."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
