"""The estimate of activations against what PyTorch keeps for the backward pass, in bfloat16 on a CPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pipeline import memory
from pipeline.memory import Lora, Shape
from pipeline.training import attention, lora, pairs
from pipeline.training.config import DPO

TOKENS = 128
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "num_hidden_layers": 4,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}


def made(cls, config, targets="all-linear", attention="sdpa"):
    """The model with its adapter, and the shapes of both."""
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    settings = LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM")
    shape, adapter = Shape.of(model), Lora.of(model, settings)
    model = get_peft_model(model, settings).train()
    lora.fuse(model)
    return model, shape, adapter


def kept_bytes(model, **inputs) -> int:
    """Bytes that the decoder keeps for the backward pass, besides parameters and what is no number."""
    inputs = inputs or {"input_ids": torch.arange(TOKENS)[None] % 500}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.is_floating_point():
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu"):
        # kept alive, else a storage's address could be used twice
        hidden = model.get_base_model().model(**inputs, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def estimated_bytes(shape: Shape, adapter: Lora, checkpointing: bool = False) -> int:
    return memory.training(shape, adapter, tokens=TOKENS, checkpointing=checkpointing).parts["activations"]


@pytest.mark.parametrize("cls", [LlamaForCausalLM, Qwen2ForCausalLM])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_activations_are_estimated(cls, targets):
    config = (LlamaConfig if cls is LlamaForCausalLM else Qwen2Config)(**SIZES)
    model, shape, adapter = made(cls, config, targets)
    measured, estimated = kept_bytes(model), estimated_bytes(shape, adapter)
    print(f"{cls.__name__} {targets}: measured {measured}, estimated {estimated}: {estimated / measured:.3f}")
    assert 0.95 < estimated / measured < 1.1


def test_activations_with_checkpointing_are_estimated():
    model, shape, adapter = made(LlamaForCausalLM, LlamaConfig(**SIZES))
    again = memory.activations_per_token(shape, adapter, 2) * TOKENS  # the layer that is computed again
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    measured, estimated = kept_bytes(model), estimated_bytes(shape, adapter, checkpointing=True) - again
    print(f"checkpointing: measured {measured}, estimated {estimated}: {estimated / measured:.3f}")
    assert 0.8 < estimated / measured < 1.25


LENGTH = 96
PROMPT, TEXT = [1] * 20, [2] * (LENGTH - 21)
SEQUENCES = {
    # of C²-Syn: a prompt, longer and longer cuts of one text, and other ways to go on
    "cuts": [*(PROMPT + TEXT[:cut] + [3] * 10 for cut in (10, 20, 30, 40)), PROMPT + [4] * 30, PROMPT + TEXT],
    "nothing in common": [[word] * LENGTH for word in range(6)],
    "one is long": [[9] * LENGTH, *([word] * 8 for word in range(5))],
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_activations_of_padded_sequences_are_estimated(name, monkeypatch):
    """As on a GPU, in one call of SDPA. The estimate is for responses of `max_length` with nothing in common:
    exact for these, and enough for rows of fewer tokens, with however much padding."""
    monkeypatch.setattr(attention, "_sequence_by_sequence", attention._padded)
    model, shape, adapter = made(LlamaForCausalLM, LlamaConfig(**SIZES), attention=attention.SHARED)
    row = pairs.lay_out(SEQUENCES[name])
    measured = kept_bytes(
        model,
        input_ids=torch.tensor(row.tokens)[None],
        position_ids=torch.tensor(row.positions)[None],
        shared=attention.SharedRow(row.own, [torch.tensor(path) for path in row.paths]),
    )
    batch = DPO(pairs_per_device=15, batch_size=15, max_length=LENGTH).micro_batch(widest_gap=5)
    needed = memory.training(shape, adapter, tokens=batch.tokens, repeated=batch.repeated)
    ratio = needed.parts["activations"] / measured
    print(f"{name}: {len(row.tokens)} of {batch.tokens} tokens, estimated / measured {ratio:.3f}")
    assert ratio > 1
    assert (ratio < 1.05) == (len(row.tokens) == batch.tokens)
