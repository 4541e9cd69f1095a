"""The estimate of activations against what PyTorch keeps for the backward pass, in bfloat16 on a CPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from pipeline import memory
from pipeline.memory import Lora, Shape

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


def made(cls, config, targets="all-linear"):
    """The model with its adapter, and the shapes of both."""
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    settings = LoraConfig(r=8, target_modules=targets, task_type="CAUSAL_LM")
    shape, lora = Shape.of(model), Lora.of(model, settings)
    return get_peft_model(model, settings).train(), shape, lora


def kept_bytes(model) -> int:
    """Bytes that the decoder keeps for the backward pass, besides parameters and what is no number."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own and tensor.is_floating_point():
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast("cpu"):
        ids = torch.arange(TOKENS)[None] % 500
        # kept alive, else a storage's address could be used twice
        hidden = model.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def estimated_bytes(shape: Shape, lora: Lora, checkpointing: bool = False) -> int:
    return memory.training(shape, lora, tokens=TOKENS, checkpointing=checkpointing).parts["activations"]


@pytest.mark.parametrize("cls", [LlamaForCausalLM, Qwen2ForCausalLM])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "v_proj"]])
def test_activations_are_estimated(cls, targets):
    config = (LlamaConfig if cls is LlamaForCausalLM else Qwen2Config)(**SIZES)
    model, shape, lora = made(cls, config, targets)
    measured, estimated = kept_bytes(model), estimated_bytes(shape, lora)
    print(f"{cls.__name__} {targets}: measured {measured}, estimated {estimated}: {estimated / measured:.3f}")
    assert 0.95 < estimated / measured < 1.05


def test_activations_with_checkpointing_are_estimated():
    model, shape, lora = made(LlamaForCausalLM, LlamaConfig(**SIZES))
    again = memory.activations_per_token(shape, lora, 2) * TOKENS  # the layer that is computed again
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    measured, estimated = kept_bytes(model), estimated_bytes(shape, lora, checkpointing=True) - again
    print(f"checkpointing: measured {measured}, estimated {estimated}: {estimated / measured:.3f}")
    assert 0.8 < estimated / measured < 1.25
