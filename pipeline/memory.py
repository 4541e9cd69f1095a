"""Estimates of GPU and host memory, from the shapes of a model without weights.

Pure arithmetic, all of it in bytes unless a name says GiB. What is counted exactly: weights, adapter,
gradients, optimizer, key-value cache. What is estimated: activations and reserves. The estimate of
activations was compared with what PyTorch keeps for the backward pass, on a CPU
(tests/unit/test_memory_measured.py), and the sum with trainings of a 7B on an H100 (benchmarks/RESULTS.md).
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GIB = 2**30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}  # of a number, by dtype

# GiB of a GPU, by Ray's name of its kind (the resource `accelerator_type:H100`). Several sizes are sold under
# some names, and the largest is here: what it cannot hold, none of them can.
GPU_GIB: dict[str, float] = {
    "T4": 15, "P4": 7.5, "P100": 16, "V100": 32, "L4": 22.5, "A10G": 22.5, "L40S": 45, "A100": 80,
    "A100-40G": 40, "A100-80G": 80, "H20": 95.5, "H100": 93.5, "H200": 140, "B200": 179, "GB200": 185,
    "B300": 268, "GB300": 277, "RTX-PRO-6000": 95.5, "AMD-Instinct-MI210": 64, "AMD-Instinct-MI250X": 64,
    "AMD-Instinct-MI250X-MI250": 64, "AMD-Instinct-MI300X-OAM": 192, "AMD-Instinct-MI325X-OAM": 256,
    "AMD-Instinct-MI350X-OAM": 288, "AMD-Instinct-MI355X-OAM": 288,
}  # fmt: skip

# A process on a GPU has CUDA's context (about 0.5 GiB), the workspaces of cuBLAS, and buffers of NCCL, and
# the allocator loses some memory between blocks. On an H100 with one worker, 0.8 to 1.3 GiB were in use
# beside PyTorch's allocator, and the allocator lost 0.6 GiB at most.
RESERVE_GIB = 2.0
# Share of estimated parts that is taken for certain, when something is refused.
CERTAIN = 0.8
# Above this share of a GPU, an estimate is told to be close.
CLOSE = 0.9

# The parts of what a GPU holds, in the order in which they are told.
PARTS = (*("weights", "adapters", "gradients", "optimizer", "cache", "activations", "logits", "reserve"),)

NF4_BITS = 4.127  # 4, and a scale of 8 bits for 64 numbers, whose own scales are 32 bits for 256 (QLoRA)
# TRL's fused head projects so many tokens at a time through so many words of the vocabulary.
_HEAD_TOKENS, _HEAD_WORDS = 4096, 32_768


@dataclass(frozen=True)
class Shape:
    """What of a model its memory depends on.

    parameters:        all of them; tied ones once
    layers:            transformer layers
    layer_parameters:  of the largest layer
    linear_parameters: of the linear modules within layers: those that a 4-bit base holds in 4 bits
    hidden:            width of the residual stream
    intermediate:      width within the MLP, of all experts that a token passes
    query, key_value:  width of all heads' queries; of all heads' keys (= values)
    heads, kv_heads:   number of heads of queries, and of keys
    cached:            numbers that the cache keeps for a token in one layer: keys and values
    cached_layers:     layers that keep some
    vocabulary:        words
    """

    parameters: int
    layers: int
    layer_parameters: int
    linear_parameters: int
    hidden: int
    intermediate: int
    query: int
    key_value: int
    heads: int
    kv_heads: int
    cached: int
    cached_layers: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> "Shape":
        """The shape of a model of transformers, which may be on the device `meta`.

        Raises ValueError if its configuration does not say what is needed, as that of a model without
        attention.
        """
        import torch

        text = model.config.get_text_config()
        try:
            layers, heads, hidden = text.num_hidden_layers, text.num_attention_heads, text.hidden_size
            kv_heads = getattr(text, "num_key_value_heads", None) or heads
            head = getattr(text, "head_dim", None) or hidden // heads
            inner = getattr(text, "intermediate_size", None) or 4 * hidden
        except AttributeError as e:
            raise ValueError(f"the model's configuration has no {e.name}") from None
        if experts := getattr(text, "num_experts_per_tok", None):
            inner = experts * (getattr(text, "moe_intermediate_size", None) or inner)
        latent = getattr(text, "kv_lora_rank", None)  # DeepSeek's: the cache keeps one vector for all heads
        cached = latent + text.qk_rope_head_dim if latent else 2 * kv_heads * head
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
        lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList) and len(part)]
        blocks = max(lists, key=_parameters, default=[model])
        return cls(
            parameters=_parameters(model),
            layers=layers,
            layer_parameters=max(map(_parameters, blocks)),
            linear_parameters=sum(
                part.weight.numel()
                for block in blocks
                for part in block.modules()
                if isinstance(part, torch.nn.Linear)
            ),
            hidden=hidden,
            intermediate=inner,
            query=heads * head,
            key_value=kv_heads * head,
            heads=heads,
            kv_heads=kv_heads,
            cached=cached,
            cached_layers=sum("attention" in kind and "linear" not in kind for kind in kinds),
            vocabulary=text.vocab_size,
        )

    def weights(self, dtype_bytes: float, base_bits: int = 16) -> int:
        """Bytes of the weights. base_bits: 4 if the linear modules of layers are held in NF4."""
        if base_bits != 4:
            return round(self.parameters * dtype_bytes)
        others = self.parameters - self.linear_parameters
        return round(self.linear_parameters * NF4_BITS / 8 + others * dtype_bytes)


@dataclass(frozen=True)
class Lora:
    """A LoRA adapter.

    inputs, inner: per layer, the widths of the inputs of all adapted modules, and the ranks
    shares_inputs: modules with the same input keep it once: there is no dropout (see `training.lora`)
    """

    parameters: int
    inputs: int
    inner: int
    shares_inputs: bool = False

    @classmethod
    def of(cls, model: Any, config: Any) -> "Lora":
        """The adapter that PEFT would put on a model, of linear modules.

        config: PEFT's. The adapter is not made: on `meta` that takes many times as long as the model.
        """
        import torch
        from peft.tuners.tuners_utils import check_target_module_exists

        head = model.get_output_embeddings()
        adapted = [
            part
            for name, part in model.named_modules()
            if isinstance(part, torch.nn.Linear)
            and (
                part is not head
                if config.target_modules == "all-linear"
                else check_target_module_exists(config, name)
            )
        ]
        layers = model.config.get_text_config().num_hidden_layers
        return cls(
            parameters=config.r * sum(part.in_features + part.out_features for part in adapted),
            inputs=round(sum(part.in_features for part in adapted) / layers),
            inner=round(config.r * len(adapted) / layers),
            shares_inputs=not config.lora_dropout,
        )


@dataclass(frozen=True)
class Memory:
    """What a GPU holds at a time, in bytes by part.

    estimated:  the parts that are not counted but estimated
    at_most:    the parts that depend on data: shorter rows need less
    """

    parts: Mapping[str, int]
    estimated: frozenset[str] = frozenset()
    at_most: frozenset[str] = frozenset()

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def least(self) -> int:
        """What is needed whatever the data and the error of estimates."""
        certain = {name: size for name, size in self.parts.items() if name not in self.at_most}
        return round(sum(size * (CERTAIN if name in self.estimated else 1) for name, size in certain.items()))

    def told(self) -> str:
        """`weights 14.2, adapters 0.2, …`, in GiB; parts below 50 MiB are left out."""
        return ", ".join(
            f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size / GIB >= 0.05
        )


# -- training


def activations_per_token(shape: Shape, lora: Lora, number: int) -> int:
    """Bytes that one layer keeps of one token for the backward pass. number: bytes of a number, 2 or 4.

    As Korthikanti et al. count them (Reducing Activation Recomputation in Large Transformer Models, 2022,
    section 4.1: 34 s·b·h for a layer without the attention's scores, which flash attention does not keep),
    but for what is trained here: RMSNorm, grouped heads, a gated MLP, and a frozen base with LoRA. A frozen
    linear module needs its weights only, and not its input; LoRA's A needs its input.

    * two norms: their input in float32 each
    * the inputs of adapted modules. Modules with the same input share it. With dropout under autocast, PEFT
      converts the input of each to float32 and autocast back, so they keep a copy each. And A's outputs.
    * attention: queries, keys, values, output, and a float32 per head
    * the gated MLP: the gate before and after its activation, and the other half (their product is the input
      of an adapted module)
    """
    norms = 2 * 4 * shape.hidden
    shared = 2 * shape.hidden + shape.query + shape.intermediate
    inputs = min(lora.inputs, shared) if lora.shares_inputs or number == 4 else lora.inputs
    attention = number * (2 * shape.query + 2 * shape.key_value) + 4 * shape.heads
    return norms + number * (inputs + lora.inner + 3 * shape.intermediate) + attention


def training(
    shape: Shape,
    lora: Lora,
    *,
    tokens: int,
    scored: int | None = None,
    repeated: int = 0,
    number: int = 2,
    base_bits: int = 16,
    workers: int = 1,
    shards: int = 1,
    checkpointing: bool = False,
    rows_are_full: bool = False,
) -> Memory:
    """The memory of one training worker, on its GPU.

    tokens:        of a micro-step, at most
    scored:        tokens with logits at the same time; None = TRL's fused head, which works in tiles
    repeated:      tokens whose keys and values are copied, in every layer, for each head of the queries
                   (sequences with shared prefixes)
    number:        bytes of a number in computation and in the base weights: 2 = bfloat16, 4 = float32
    base_bits:     4 = the base is held in NF4
    shards:        workers over which FSDP2 splits the base model's weights; each holds all of the adapter
    rows_are_full: rows are packed, so that they have that many tokens in any case
    """
    weights = shape.weights(number, base_bits)
    if shards > 1:
        # FSDP2 keeps a share, and gathers whole layers: the one that computes and the next. What is in no
        # layer (embeddings, head) stays gathered throughout a step.
        others = shape.parameters - shape.layers * shape.layer_parameters
        gathered = number * (2 * shape.layer_parameters + max(0, others))
        weights = weights // shards + gathered
    if base_bits == 4:  # a module's weights are converted when it computes
        weights += number * shape.layer_parameters
    layer = activations_per_token(shape, lora, number)
    layer_input = number * shape.hidden
    kept = shape.layers * layer_input + layer if checkpointing else shape.layers * layer
    # The last norm and the head's input; embeddings keep nothing, because they are frozen.
    activations = tokens * (kept + (4 + number) * shape.hidden)
    copied_layers = 1 if checkpointing else shape.layers
    activations += repeated * copied_layers * 2 * number * shape.query
    if scored is None:
        # a tile of logits, and the same in float32
        logits = min(tokens, _HEAD_TOKENS) * min(shape.vocabulary, _HEAD_WORDS) * (number + 4)
    else:
        # logits, the same in float32, and the gradients of both
        logits = scored * shape.vocabulary * (2 * number + 8)
    logits += tokens * 4 * shape.hidden  # the gradient of the head's input
    buckets = 2 if workers > 1 else 1  # what is sent to the other workers is a second copy
    return Memory(
        {
            "weights": weights,
            "adapters": 4 * lora.parameters,  # PEFT keeps it in float32
            "gradients": buckets * 4 * lora.parameters,
            "optimizer": 8 * lora.parameters,  # AdamW: two float32
            "activations": activations,
            "logits": logits,
            "reserve": round(RESERVE_GIB * GIB),
        },
        estimated=frozenset({"activations", "logits", "reserve"}),
        at_most=frozenset() if rows_are_full else frozenset({"activations", "logits"}),
    )


# -- engines


def cache_per_token(shape: Shape, gpus: int, number: int = 2) -> int:
    """Bytes of key-value cache for a token on each of an engine's GPUs.

    Tensor parallelism gives each GPU a share of the heads; with more GPUs than heads of keys, they are
    copied. DeepSeek's latent vector is on every GPU.
    """
    heads = 2 * shape.kv_heads
    share = math.ceil(shape.kv_heads / gpus) / shape.kv_heads if shape.cached % heads == 0 else 1
    return round(shape.cached_layers * shape.cached * share * number)


def engine(
    shape: Shape,
    *,
    gpus: int,
    length: int,
    weights: int | None = None,
    number: int = 2,
    cache_number: int = 2,
    adapters: int = 0,
    adapter_parameters: int = 0,
    batched_tokens: int = 16_384,
    sequences: int = 1024,
) -> Memory:
    """The memory of an engine of vLLM on each of its GPUs, with a cache for one sequence.

    gpus:           tensor-parallel degree
    length:         tokens of a sequence at most
    weights:        bytes of the weights, if they are known from the files
    adapters:       how many it holds at a time; of `adapter_parameters` each, in 16 bits, on every GPU
    batched_tokens: of a step at most; sequences: of a step, which have logits
    """
    weights = shape.weights(number) if weights is None else weights
    # vLLM measures a step of `batched_tokens`: residual stream, attention, and one MLP at its widest (gate,
    # up and their product); then float32 logits of every sequence, twice for the sampler.
    step = batched_tokens * number * (3 * shape.hidden + 3 * shape.intermediate / gpus)
    step += sequences * shape.vocabulary * 8
    return Memory(
        {
            "weights": weights // gpus,
            "adapters": adapters * adapter_parameters * 2,
            "cache": length * cache_per_token(shape, gpus, cache_number),
            "activations": round(step),
            "reserve": round(RESERVE_GIB * GIB),
        },
        estimated=frozenset({"activations", "reserve"}),
        at_most=frozenset({"activations", "adapters"}),
    )


# -- host memory, known without the model's files


def parameters_by_name(path: str) -> float | None:
    """Billions of parameters as a model's name says: 7 for `Qwen/Qwen2.5-7B-Instruct`, 56 for `8x7B`.

    None if it does not say. Names round down: Qwen2.5-7B has 7.6 billion.
    """
    name = path.rstrip("/").rpartition("/")[2]
    found = re.search(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)[bB](?![a-zA-Z0-9])", name.replace("_", "-"))
    return float(found[2]) * int(found[1] or 1) if found else None


def _parameters(part: Any) -> int:
    return sum(p.numel() for p in part.parameters())
