"""Attention and log-probabilities on CUDA, against float64 on the CPU: values and gradients."""

import random

import pytest
import torch

from pipeline.training import attention, pairs
from pipeline.training.head import Head

LENGTHS = (1, 7, 64, 129, 300, 2, 257)
HEADS, WIDTH = 8, 64
# Relative to the norm of what is exact. One rounding to bfloat16 is 0.0017 on average; kernels round more often.
ERROR = {torch.bfloat16: 0.02, torch.float32: 1e-5}
SHAPES = [(kv, window) for kv in (HEADS, 2) for window in (None, 16)]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def _without_cudnn():
    """As `loop.start` does."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def inputs(total: int, kv_heads: int) -> list[torch.Tensor]:
    """query, key, value and the weights of a loss, exact in bfloat16."""
    torch.manual_seed(0)
    shapes = [(1, heads, total, WIDTH) for heads in (HEADS, kv_heads, kv_heads)] + [(1, total, HEADS, WIDTH)]
    return [torch.randn(shape).bfloat16().double() for shape in shapes]


def run(function, tensors, device: str, dtype: torch.dtype, **options) -> dict[str, torch.Tensor]:
    """The output and the gradients of a loss."""
    *tensors, weights = tensors
    leaves = [tensor.detach().to(device, dtype).requires_grad_() for tensor in tensors]
    out, _ = function(torch.nn.Module(), *leaves, None, **options)
    (out * weights.to(out)).sum().backward()
    named = dict(zip(("query", "key", "value"), leaves, strict=True))
    return {"output": out.detach(), **{name: leaf.grad for name, leaf in named.items()}}


def compare(measured, name: str, found: dict, exact: dict, error: float) -> None:
    errors = {part: off(found[part], value) for part, value in exact.items()}
    measured(name, ", ".join(f"{part} {value:.1e}" for part, value in errors.items()))
    assert max(errors.values()) < error, errors


def off(found: torch.Tensor, exact: torch.Tensor) -> float:
    """The norm of the difference, relative to that of what is exact."""
    return ((found.double().cpu() - exact).norm() / exact.norm()).item()


def dense(module, query, key, value, _, cu_seq_lens_q, sliding_window, max_length_q):
    """Attention with the mask of the whole row, by its definition."""
    boundaries = cu_seq_lens_q.long()
    document = torch.repeat_interleave(torch.arange(len(boundaries) - 1), boundaries.diff())
    place = torch.arange(len(document))
    seen = (document[:, None] == document) & (place[:, None] >= place)
    if sliding_window:
        seen &= place[:, None] - place < sliding_window
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) / WIDTH**0.5).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@pytest.mark.parametrize(("kv_heads", "window"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_packed_documents(measured, monkeypatch, dtype, kv_heads, window):
    tensors = inputs(sum(LENGTHS), kv_heads)
    boundaries = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    options = {"max_length_q": max(LENGTHS), "sliding_window": window}
    exact = run(dense, tensors, "cpu", torch.float64, cu_seq_lens_q=boundaries, **options)
    other = "_document_by_document" if dtype == torch.bfloat16 else "_flash"
    monkeypatch.delattr(attention, other)
    found = run(
        attention.packed_attention, tensors, "cuda", dtype, cu_seq_lens_q=boundaries.cuda(), **options
    )
    name = f"packed attention, {dtype}, {kv_heads} of {HEADS} heads, window {window}"
    compare(measured, name, found, exact, ERROR[dtype])


def sequences() -> list[list[int]]:
    """Continuations of one prompt, some of which share more than that."""
    r = random.Random(0)
    prompt, longest = ([r.randrange(9) for _ in range(n)] for n in (90, 200))
    cuts = [longest[:n] + [9] * 12 for n in (30, 31, 120)]
    return [prompt + rest for rest in ([8] * 40, *cuts, longest)] + [[7] * 55]


@pytest.mark.parametrize(("kv_heads", "window"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_prefixes(measured, dtype, kv_heads, window):
    row = pairs.lay_out(sequences())
    tensors = inputs(len(row.tokens), kv_heads)

    def attended(device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        shared = attention.SharedRow(row.own, [torch.tensor(path, device=device) for path in row.paths])
        return run(attention.shared_attention, tensors, device, dtype, shared=shared, sliding_window=window)

    exact, found = attended("cpu", torch.float64), attended("cuda", dtype)
    name = f"shared prefixes, {dtype}, {kv_heads} of {HEADS} heads, window {window}"
    compare(measured, name, found, exact, ERROR[dtype])
    again = attended("cuda", dtype)
    differ = [part for part, value in found.items() if not torch.equal(again[part], value)]
    measured(f"{name}, again", f"other bits in {differ}" if differ else "the same bits")
    # The order of sums over a query's keys is the kernel's; that of the other gradients is ours, too.
    assert not {"output", "key", "value"} & {*differ}


def test_log_probabilities_of_the_output_layer(measured):
    """More tokens than are computed at the same time, under autocast as in training."""
    torch.manual_seed(0)
    tokens, width, words = 2500, 128, 1280
    hidden = torch.randn(tokens, width).bfloat16()
    layer = torch.nn.Linear(width, words, bias=False).requires_grad_(False)
    layer.weight.copy_((layer.weight * 3).bfloat16())
    targets, weights = torch.randint(words, (tokens,)), torch.randn(tokens).double()

    exact_hidden = hidden.double().requires_grad_()
    exact = (exact_hidden @ layer.weight.double().T).log_softmax(1)[range(tokens), targets]
    (exact * weights).sum().backward()

    on_gpu = hidden.float().cuda().requires_grad_()
    head, targets = Head(layer.cuda()), targets.cuda()
    with torch.autocast("cuda", torch.bfloat16), head.scoring(targets):
        found = head(on_gpu[None])[0]
    assert found.dtype == torch.float32
    (found * weights.to(found)).sum().backward()
    compare(
        measured,
        "log-probabilities, bfloat16",
        {"value": found.detach(), "gradient": on_gpu.grad},
        {"value": exact.detach(), "gradient": exact_hidden.grad},
        0.01,
    )
