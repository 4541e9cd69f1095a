"""Log-probabilities in parts: those of the whole table of logits, which is never made."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.training import head
from pipeline.training.head import Head
from tests import tiny

TOKENS, WIDTH, WORDS = 50, 16, 300


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that was made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def layer(dtype: torch.dtype, bias: bool) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(WIDTH, WORDS, bias=bias, dtype=dtype).requires_grad_(False)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    hidden = 3 * torch.randn(1, TOKENS, WIDTH, dtype=dtype)
    return hidden.requires_grad_(), torch.randint(WORDS, (TOKENS,)), torch.randn(TOKENS, dtype=dtype)


def in_parts(layer, hidden, targets) -> torch.Tensor:
    one = Head(layer)
    with one.scoring(targets):
        return one(hidden)[0]


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("at_once", [7, 256])
def test_values_and_gradients_are_those_of_all_logits(monkeypatch, dtype, error, bias, at_once):
    monkeypatch.setitem(head._TOKENS, "cpu", at_once)
    hidden, targets, weights = inputs(dtype)
    found = in_parts(layer(dtype, bias), hidden, targets)
    [gradient] = torch.autograd.grad(found @ weights, hidden)
    expected = layer(dtype, bias)(hidden)[0].log_softmax(1)[range(TOKENS), targets]
    [expected_gradient] = torch.autograd.grad(expected @ weights, hidden)
    torch.testing.assert_close(found, expected, rtol=error, atol=error)
    torch.testing.assert_close(gradient, expected_gradient, rtol=error, atol=error)


def test_in_bfloat16_the_gradient_of_a_sure_token_is_not_lost():
    """Its probability is nearly one: the small rest is taken before anything is rounded."""
    hidden, targets, weights = inputs(torch.float32)
    gradients = []
    for in_half in (True, False):
        one = layer(torch.float32, False)
        one.weight[targets] *= 8
        with torch.autocast("cpu", torch.bfloat16) if in_half else nullcontext():
            found = in_parts(one, hidden, targets)
        gradients += torch.autograd.grad(found @ weights, hidden)
    near, exact = gradients
    assert (near - exact).norm() < 0.02 * exact.norm()


def test_no_tensor_has_a_row_of_logits_for_every_token(monkeypatch):
    monkeypatch.setitem(head._TOKENS, "cpu", 8)
    one, (hidden, targets, weights) = layer(torch.float32, False), inputs(torch.float32)
    with Largest() as largest:
        (in_parts(one, hidden, targets) @ weights).backward()
    assert largest.elements == WIDTH * WORDS, "the layer's own weights"
    with Largest() as whole:
        (one(hidden)[0].log_softmax(1)[range(TOKENS), targets] @ weights).backward()
    assert whole.elements == TOKENS * WORDS, "the check above can fail"


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Mistral", "SmolLM3", "Olmo2", "Phi3"])
def test_common_families_have_a_head(family):
    model = random(family)
    assert Head.of(model) is not None


@pytest.mark.parametrize(("family", "changes"), [("Granite", {"logits_scaling": 8.0}), ("Cohere", {})])
def test_a_model_that_scales_its_logits_keeps_them(family, changes):
    model = random(family, **changes)
    assert Head.of(model) is None
    ids, at, targets = torch.tensor([[5, 6, 7, 8]]), torch.tensor([1, 2]), torch.tensor([7, 8])
    found = head.log_probs(model, None, at, targets, input_ids=ids)
    logits = model(ids).logits[0]
    torch.testing.assert_close(found, logits.log_softmax(1)[at, targets])


def test_a_model_without_targets_returns_its_logits():
    model, ids = tiny.model(), torch.tensor([[5, 6, 7, 8]])
    expected = model(ids).logits
    Head.of(model)
    assert torch.equal(model(ids).logits, expected)


def random(family: str, **changes):
    """A random model of a family."""
    import transformers

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{family}Config")(
        vocab_size=64, num_key_value_heads=2, pad_token_id=0, **shape, **changes
    )
    return getattr(transformers, f"{family}ForCausalLM")(config)
