"""What training and engines need on a GPU, against sums made by hand."""

from dataclasses import replace

import pytest

from pipeline import memory
from pipeline.memory import GIB, Lora, Shape

# Two layers of width 8 with two heads of queries and one of keys, an MLP of 16, and 10 words; as for a Llama
# with untied embeddings: 8·8 + 2·8·4 + 8·8 of attention, 3·8·16 of the MLP, two norms of 8 each.
LAYER = 64 + 64 + 64 + 384 + 16
SMALL = Shape(
    parameters=2 * LAYER + 2 * 80 + 8,
    layers=2,
    layer_parameters=LAYER,
    linear_parameters=2 * (LAYER - 16),
    hidden=8,
    intermediate=16,
    query=8,
    key_value=4,
    heads=2,
    kv_heads=1,
    cached=8,
    cached_layers=2,
    vocabulary=10,
)
# Rank 2 on all seven linear modules of a layer: inputs of 8 but for the last, of 16.
ADAPTER = Lora(parameters=2 * 2 * (3 * 8 + 8 + 16 + 16 + 8 + 4 + 4 + 8 + 16 + 16 + 8), inputs=64, inner=14)


def training(**changes) -> memory.Memory:
    return memory.training(SMALL, ADAPTER, **{"tokens": 100, **changes})


def test_a_layer_keeps_of_a_token_what_backward_reads():
    norms = 2 * 4 * 8  # float32
    inputs = 2 * (64 + 14)  # of adapted modules, and what A makes of them
    gate_and_up = 2 * 3 * 16
    attention = 2 * (8 + 4 + 4 + 8) + 4 * 2
    assert memory.activations_per_token(SMALL, ADAPTER, 2) == norms + inputs + gate_and_up + attention == 372


def test_in_float32_modules_with_the_same_input_share_it():
    inputs = 4 * (8 + 8 + 8 + 16 + 14)  # of q, k and v; of o; of gate and up; of down; what A makes of them
    assert (
        memory.activations_per_token(SMALL, ADAPTER, 4)
        == 64 + inputs + 4 * 3 * 16 + 4 * (8 + 4 + 4 + 8) + 4 * 2
    )


def test_a_worker_holds_the_base_in_16_bits_and_16_bytes_for_each_trained_number():
    parts = training(rows_are_full=True).parts
    assert parts["weights"] == 2 * SMALL.parameters
    assert parts["adapters"] + parts["gradients"] + parts["optimizer"] == 16 * ADAPTER.parameters
    assert parts["activations"] == 100 * (2 * 372 + (4 + 2) * 8)
    assert parts["logits"] == 100 * 10 * (2 + 4) + 100 * 4 * 8
    assert parts["reserve"] == 2 * GIB


def test_ddp_has_a_second_copy_of_the_gradients():
    assert training(workers=8).parts["gradients"] == 2 * training().parts["gradients"]


def test_checkpointing_keeps_the_input_of_each_layer_and_one_whole_layer():
    assert training(checkpointing=True).parts["activations"] == 100 * (2 * 2 * 8 + 372 + (4 + 2) * 8)


def test_logits_of_all_scored_tokens_are_there_in_16_and_32_bits_with_gradients():
    assert training(scored=50).parts["logits"] == 50 * 10 * 12 + 100 * 4 * 8


def test_keys_and_values_of_every_sequence_are_copied_in_every_layer():
    more = training(repeated=30).parts["activations"] - training().parts["activations"]
    assert more == 30 * 2 * 2 * 2 * 8
    once = training(repeated=30, checkpointing=True).total - training(checkpointing=True).total
    assert once == 30 * 2 * 2 * 8


def test_shards_split_the_weights_and_gather_two_layers_and_what_is_in_none():
    outside = SMALL.parameters - 2 * LAYER
    assert training(shards=4).parts["weights"] == 2 * SMALL.parameters // 4 + 2 * (2 * LAYER + outside)
    assert training(shards=4).parts["adapters"] == training().parts["adapters"]


def test_a_base_in_4_bits_is_larger_than_half_a_byte_per_number():
    outside = SMALL.parameters - SMALL.linear_parameters
    assert SMALL.weights(2, 4) == round(SMALL.linear_parameters * 4.127 / 8 + 2 * outside)
    assert training(base_bits=4).parts["weights"] == SMALL.weights(2, 4) + 2 * LAYER


def test_what_rows_decide_is_no_part_of_the_least():
    fixed = training().total - training().parts["activations"] - training().parts["logits"]
    reserve = training().parts["reserve"]
    assert training().least == round(fixed - reserve + 0.8 * reserve)
    full = training(rows_are_full=True)
    assert full.least > training().least and full.least < full.total


def test_an_engine_needs_its_share_of_the_weights_and_the_cache_of_a_sequence():
    parts = memory.engine(SMALL, gpus=1, length=50, batched_tokens=100, sequences=3).parts
    assert parts["weights"] == 2 * SMALL.parameters
    assert parts["cache"] == 50 * 2 * 8 * 2  # tokens × layers × numbers × bytes
    assert parts["activations"] == 100 * 2 * (3 * 8 + 3 * 16) + 3 * 10 * 8
    two = memory.engine(SMALL, gpus=2, length=50, batched_tokens=100, sequences=3).parts
    assert two["weights"] == SMALL.parameters
    assert two["cache"] == parts["cache"]  # one head of keys cannot be split


def test_heads_of_keys_are_split_over_gpus():
    llama = Shape(**{**vars(SMALL), "kv_heads": 8, "cached": 2 * 8 * 128, "cached_layers": 80})
    assert memory.cache_per_token(llama, 1) == 327_680  # that of Llama-3-70B: 320 KiB
    assert memory.cache_per_token(llama, 4) == 327_680 / 4
    assert memory.cache_per_token(llama, 16) == 327_680 / 8


def test_a_latent_cache_is_on_every_gpu():
    deepseek = Shape(**{**vars(SMALL), "kv_heads": 128, "cached": 512 + 64, "cached_layers": 61})
    assert memory.cache_per_token(deepseek, 8) == 61 * 576 * 2


def test_adapters_of_an_engine_are_in_16_bits():
    with_two = memory.engine(SMALL, gpus=1, length=50, adapters=2, adapter_parameters=1000)
    assert with_two.parts["adapters"] == 4000


@pytest.mark.parametrize(
    ("path", "billions"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7),
        ("Qwen/Qwen3-1.7B", 1.7),
        ("meta-llama/Meta-Llama-3-70B-Instruct", 70),
        ("google/gemma-2-9b-it", 9),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 56),
        ("Qwen/Qwen3-30B-A3B", 30),
        ("/mnt/setbacks/models/mine_7b/", 7),
        ("HuggingFaceTB/SmolLM2-360M-Instruct", None),
        ("microsoft/Phi-3.5-mini-instruct", None),
        ("/models/run12b2/final", None),
        ("toy", None),
    ],
)
def test_names_of_models_say_their_size(path, billions):
    assert memory.parameters_by_name(path) == billions


def test_the_shape_of_a_model_is_read_off_its_modules():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 10, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    assert Shape.of(model) == SMALL


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"], r".*\.1\..*_proj"])
def test_an_adapter_is_that_which_peft_makes(targets):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 16, "vocab_size": 10, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=False)
    lora = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        found = Lora.of(model, lora)
        made = get_peft_model(model, lora)
    assert found.parameters == sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert targets != "all-linear" or found == replace(ADAPTER, shares_inputs=True)


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"model_type": "qwen3_moe", "num_experts_per_tok": 4, "moe_intermediate_size": 32}, "intermediate", 128),
        ({"model_type": "mixtral", "num_experts_per_tok": 2, "intermediate_size": 64}, "intermediate", 128),
        (
            {
                "model_type": "qwen2",
                "layer_types": ["full_attention", "sliding_attention"],
                "num_hidden_layers": 2,
            },
            "cached_layers",
            2,
        ),
    ],
)  # fmt: skip
def test_other_kinds_of_models(changes, field, value):
    from transformers import AutoConfig

    from pipeline import pretrained

    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 100,
    }
    settings = {**sizes, **changes}
    architecture = AutoConfig.for_model(settings.pop("model_type"), **settings)
    assert getattr(Shape.of(pretrained.empty(architecture)), field) == value


def test_a_model_without_attention_has_no_shape():
    from transformers import MambaConfig

    from pipeline import pretrained

    with pytest.raises(ValueError, match="configuration has no num_attention_heads"):
        Shape.of(pretrained.empty(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50)))
