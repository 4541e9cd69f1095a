"""Log-probabilities of given tokens, without a table of logits over the whole vocabulary.

The output layer is frozen, so all that a loss needs of its logits are one number per token and the gradient
of that number by the hidden state. Both are computed some tokens at a time, and the logits are forgotten.
"""

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import linear

# Tokens whose logits are in memory at the same time. Fewer read the layer's weights more often.
_TOKENS = {"cuda": 1024, "cpu": 256}
# A model whose logits are what its output layer returns, as its own code says; others scale or cap them.
_PLAIN = re.compile(r"logits = self\.lm_head\(hidden_states\[:, slice_indices, :\]\)\s*\n\s*loss = None\n")


class Head:
    """The output layer of a model, which returns the log-probabilities of `targets` where these are set."""

    def __init__(self, layer: torch.nn.Linear):
        self.layer = layer
        self._targets: torch.Tensor | None = None

    @classmethod
    def of(cls, model: Any) -> "Head | None":
        """Put a head in the place of a model's output layer; None if its logits are not the layer's."""
        layer, code = model.get_output_embeddings(), inspect.getsource(type(model).forward)
        if not isinstance(layer, torch.nn.Linear) or not _PLAIN.search(code):
            return None
        head = cls(layer)
        layer.forward = head  # called by the layer, after the hooks by which FSDP gathers its weights
        return head

    @contextmanager
    def scoring(self, targets: torch.Tensor) -> Iterator[None]:
        self._targets = targets
        try:
            yield
        finally:
            self._targets = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[1, n, width] → [1, n] if there are targets, else [1, n, vocabulary]."""
        if self._targets is None:
            return linear(hidden, self.layer.weight, self.layer.bias)
        return _LogProbs.apply(hidden[0], self.layer.weight, self.layer.bias, self._targets)[None]


def log_probs(
    model: Any, head: Head | None, at: torch.Tensor, targets: torch.Tensor, **inputs
) -> torch.Tensor:
    """[n]: the log-probability of each target after the place `at` [n] of the one row of inputs."""
    if head is not None:
        with head.scoring(targets):
            return model(**inputs, use_cache=False, logits_to_keep=at).logits[0]
    logits = _at_least_float32(model(**inputs, use_cache=False, logits_to_keep=at).logits[0])
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(1)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class _LogProbs(torch.autograd.Function):
    """log softmax(hidden · weightᵀ + bias)[target], for weights that are not trained."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> torch.Tensor:
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            kind = torch.get_autocast_dtype(device)
            hidden, weight = hidden.to(kind), weight.to(kind)
            bias = bias if bias is None else bias.to(kind)
        found, slopes = [], []
        for h, target in zip(hidden.split(_TOKENS[device]), targets.split(_TOKENS[device]), strict=True):
            logits = _at_least_float32(linear(h, weight, bias))
            total = logits.logsumexp(1, keepdim=True)
            found.append((logits.gather(1, target[:, None]) - total)[:, 0])
            if ctx.needs_input_grad[0]:
                rest = logits.sub_(total).exp_().neg_()
                rest.scatter_add_(1, target[:, None], torch.ones_like(total))
                slopes.append(rest.to(weight.dtype) @ weight)
        ctx.save_for_backward(torch.cat(slopes) if slopes else None)
        return torch.cat(found) if found else hidden.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        [slopes] = ctx.saved_tensors
        return gradients[0][:, None] * slopes, None, None, None
