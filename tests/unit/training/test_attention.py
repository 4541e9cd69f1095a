"""Packed sequences train exactly as their examples would one by one."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

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
