"""Packed sequences train exactly as their examples would one by one."""

import random

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.errors import UserError
from pipeline.training import attention, pairs
from pipeline.training.job import Run
from tests import tiny


@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=6),
    st.sampled_from([None, 3, 8]),
    st.sampled_from([1, 2]),
)
@settings(max_examples=50)
def test_each_document_attends_to_itself_alone(lengths, window, kv_heads):
    torch.manual_seed(0)
    total = sum(lengths)
    query, key, value = (torch.randn(1, heads, total, 8) for heads in (4, kv_heads, kv_heads))
    boundaries = torch.tensor([0, *lengths]).cumsum(0).int()
    got, _ = attention.packed_attention(
        torch.nn.Module(), query, key, value, None, cu_seq_lens_q=boundaries, sliding_window=window
    )

    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    place = torch.arange(total)
    mask = (document[:, None] == document) & (place[:, None] >= place)
    if window:
        mask &= place[:, None] - place < window
    expected = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_one_flattened_row_only():
    for function, lacking in (
        (attention.packed_attention, "cu_seq_lens_q"),
        (attention.shared_attention, "shared"),
    ):
        with pytest.raises(ValueError, match=lacking):
            function(torch.nn.Module(), *torch.randn(3, 1, 2, 4, 8), None)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=6),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([1, 2]),
)
@settings(max_examples=50)
def test_a_token_of_a_shared_row_sees_its_own_sequence_alone(sequences, window, kv_heads):
    torch.manual_seed(0)
    row = pairs.lay_out(sequences)
    total = len(row.tokens)
    query, key, value = (torch.randn(1, heads, total, 8) for heads in (4, kv_heads, kv_heads))
    shared = attention.SharedRow(row.own, [torch.tensor(path) for path in row.paths])
    got, _ = attention.shared_attention(
        torch.nn.Module(), query, key, value, None, shared=shared, sliding_window=window
    )

    mask = torch.zeros(total, total, dtype=torch.bool)
    for place in range(total):
        seen, at = [], place
        while at >= 0 and (window is None or len(seen) < window):
            seen.append(at)
            at = row.previous[at]
        mask[place, seen] = True
    expected = scaled_dot_product_attention(query, key, value, mask, enable_gqa=True)
    torch.testing.assert_close(got, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def attended(function, sequences, window, kv_heads, dtype=torch.float64) -> list[torch.Tensor]:
    """The output and the gradients of query, key and value, of a loss with random weights."""
    torch.manual_seed(0)
    row = pairs.lay_out(sequences)
    shared = attention.SharedRow(row.own, [torch.tensor(path) for path in row.paths])
    inputs = [
        torch.randn(1, heads, len(row.tokens), 8, dtype=dtype, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    ]
    out = function(*inputs, shared, None, window, 0.0)
    out.backward(torch.randn(out.shape, dtype=dtype))
    return [out.detach(), *(x.grad for x in inputs)]


def long_sequence(*, cuts: tuple[int, ...]) -> list[list[int]]:
    """A sequence of 40 tokens, and others that leave it after some tokens."""
    return [[0] * 40, *([0] * cut + [1] for cut in cuts)]


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=6),
    st.sampled_from([None, 1, 3, 8]),
    st.sampled_from([1, 2, 4]),
)
@example([[0, 1, 0, 1, 0]], None, 2)
@example(long_sequence(cuts=(1, 2, 39)), None, 2)
@example(long_sequence(cuts=(1, 2, 39)), 8, 1)
@settings(max_examples=50)
def test_padded_sequences_attend_as_one_after_another(sequences, window, kv_heads):
    found, expected = (
        attended(function, sequences, window, kv_heads)
        for function in (attention._padded, attention._sequence_by_sequence)
    )
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


def test_padding_comes_to_nothing_whatever_it_holds():
    """The gradients of padding are zeros, so their places and their order do not matter."""
    row = pairs.lay_out(long_sequence(cuts=(1, 20)))
    shared = attention.SharedRow(row.own, [torch.tensor(path) for path in row.paths])
    padded = shared.padded(None, torch.float64)
    is_padding = torch.ones(len(padded.own), dtype=torch.bool).index_fill(0, padded.real, False)
    assert is_padding.sum() == 3 * max(row.own) - sum(row.own) > 0
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, len(row.tokens), 8, dtype=torch.float64, requires_grad=True) for _ in "qkv"]
    with Summed() as summed:
        out = attention._padded(*inputs, shared, None, None, 0.0)
        out.backward(torch.ones_like(out))
    # Each place of query and output has at most one gradient that is not zero: any order gives the same sum.
    assert len(summed.unordered) == 2
    for places, gradients in summed.unordered:
        is_something = gradients.ne(0).flatten(1).any(1)
        assert len(places[is_something].unique()) == is_something.sum() > 0
    assert summed.ordered == 2  # those of key and value: indexing adds them in a fixed order on CUDA


class Summed(TorchDispatchMode):
    """The sums at given places.

    unordered: places and summands, on CUDA as they come; ordered: how many others.
    """

    def __init__(self):
        super().__init__()
        self.unordered: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.ordered = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("index_add", "index_add_"):
            _, dim, places, summands = args
            self.unordered.append((places, summands.movedim(dim, 0).clone()))
        elif name in ("index_put", "index_put_", "_index_put_impl_"):
            assert args[3], "places are written, not added"
            self.ordered += 1
        else:
            assert "scatter" not in name, name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_attention_gives_the_same_bits_again(dtype):
    first, again = (
        attended(attention._padded, long_sequence(cuts=(1, 2, 20)), None, 2, dtype) for _ in range(2)
    )
    assert all(map(torch.equal, first, again))


class Launched(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_layer_launches_as_much_for_many_sequences_as_for_few():
    """And it neither waits for the device nor makes a bias of its own."""
    launched = []
    for cuts in ((1, 20), tuple(range(1, 30))):
        row = pairs.lay_out(long_sequence(cuts=cuts))
        shared = attention.SharedRow(row.own, [torch.tensor(path) for path in row.paths])
        bias = shared.padded(None, torch.bfloat16).bias
        assert bias.dtype == torch.bfloat16 and bias.shape == (len(row.own), 1, 40, 40)
        assert all(stride % 16 == 0 for stride in bias.stride()[:-1])
        heads = [torch.randn(1, n, len(row.tokens), 8).bfloat16().requires_grad_() for n in (4, 2, 2)]
        with Launched() as layer:
            out = attention._padded(*heads, shared, None, None, 0.0)
            out.backward(torch.ones_like(out))
        assert shared.padded(None, torch.bfloat16).bias is bias
        launched.append(layer.names)
    assert launched[0] == launched[1]
    assert sum("scaled_dot_product" in name for name in launched[0]) == 2  # forward and backward
    assert not {"nonzero", "_local_scalar_dense", "where", "masked_fill"} & {*launched[0]}


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_oss"])
def test_models_whose_attention_is_more_than_softmax_are_refused_for_dpo(model_type):
    from transformers import AutoConfig

    with pytest.raises(UserError, match=f"train.method = dpo cannot train models of type {model_type}"):
        attention.check_shared(AutoConfig.for_model(model_type), "train.method = dpo")


@pytest.mark.parametrize("sequences_per_device", [1, 3])
def test_packed_loss_and_gradients_equal_unpacked(tmp_path, sequences_per_device):
    """One optimizer step's loss and gradients: our trainer on packed sequences, the plain model on one
    example at a time."""
    import datasets

    from pipeline.training import examples, sft

    r = random.Random(0)
    model_dir = tiny.save(tmp_path / "model")
    encoded = examples.encode(
        tiny.template(), [tiny.conversation(r, kind) for kind in ["safe", "analysis"] * 6]
    )
    bins = examples.pack([len(e.tokens) for e in encoded], 160)[:3]
    assert max(map(len, bins)) > 1
    ordered = datasets.Dataset(examples.table([[encoded[i] for i in b] for b in bins]))
    config = tiny.config(model_dir, batch_size=3, sequences_per_device=sequences_per_device)
    job = tiny.job(config, "sft", str(tmp_path / "state"), 1, Run(len(bins)), "test")
    trainer = sft.trainer(job, ordered, str(tmp_path))
    model = trainer.model
    assert model.config._attn_implementation == attention.NAME
    with torch.no_grad():  # B starts at zero, and would hide the gradient of A
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)

    batches = [
        trainer.data_collator([ordered[i] for i in range(at, at + sequences_per_device)])
        for at in range(0, 3, sequences_per_device)
    ]
    targets = sum((batch["labels"] != examples.IGNORE).sum() for batch in batches)
    packed = sum(trainer.compute_loss(model, batch, num_items_in_batch=targets) for batch in batches)
    packed.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    model.set_attn_implementation("eager")
    plain = 0
    for e in (encoded[i] for b in bins for i in b):
        logits = model(input_ids=torch.tensor([e.tokens])).logits[0, :-1]
        plain += (
            torch.nn.functional.cross_entropy(logits, torch.tensor(e.labels[1:]), reduction="sum") / targets
        )
    plain.backward()

    torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-6)
    assert len(gradients) == 28  # A and B of seven projections in two layers
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )
