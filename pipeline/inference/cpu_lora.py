"""LoRA on a CPU engine, one matrix product per adapter instead of a copy of its matrices per token.

vLLM 0.32 gathers, for every token of a batch, the whole matrices of that token's adapter; tokens without an
adapter (index −1) get the last slot's. These kernels group tokens by adapter; tokens without one get zero.
vLLM calls `register` in every process of an engine, as an entry point of group `vllm.general_plugins`;
`register` does nothing unless `vllm.py` has enabled it.
"""

import inspect
import os
from collections.abc import Callable
from types import ModuleType

from pipeline.errors import RunFailed

SWITCH = "SETBACKS_GROUPED_CPU_LORA"
PLUGIN = "setbacks_cpu_lora"  # the entry point


def register() -> None:
    """Replace vLLM's three CPU kernels in this process, if the environment says so. Idempotent.

    Raises RunFailed, having replaced nothing, if the arguments of vLLM's kernels differ from ours: their
    meaning may differ too, and a wrong product would only show as a worse model.
    """
    if os.environ.get(SWITCH) != "1":
        return
    import vllm

    try:
        from vllm.lora.ops.torch_ops import lora_ops
        from vllm.lora.punica_wrapper import punica_cpu
    except ImportError as e:
        if e.name is None or not e.name.startswith("vllm."):
            raise  # another package is missing
        raise _unknown(e.name, vllm.__version__) from e
    kernels = (bgmv_shrink, bgmv_expand, bgmv_expand_slice)
    callers = (lora_ops, punica_cpu)  # the kernels for prompts, and the wrapper for single tokens
    for kernel in kernels:
        for module in callers:
            _check(kernel, module, vllm.__version__)
    for kernel in kernels:
        for module in callers:
            setattr(module, kernel.__name__, kernel)


def _check(kernel: Callable, module: ModuleType, version: str) -> None:
    theirs = getattr(module, kernel.__name__, None)
    if not callable(theirs) or _parameters(theirs) != _parameters(kernel):
        raise _unknown(f"{module.__name__}.{kernel.__name__}", version)


def _parameters(function: Callable) -> list[tuple]:
    """Names, kinds and defaults, in order; annotations do not affect calls."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


def _unknown(name: str, version: str) -> RunFailed:
    return RunFailed(
        f"LoRA on a CPU: {name} of vLLM {version} is not what setbacks replaces; "
        "install the vLLM that requirements.lock and pyproject.toml name (in a clone: make setup)"
    )


def products(inputs, matrices, adapters):
    """inputs [tokens, in] times the transposed matrix of each token's adapter: [tokens, out].

    Tokens whose adapter is −1 get zero.

    matrices: [adapters, out, in], or [adapters, 1, out, in]; adapters: [tokens].
    """
    if matrices.dim() == 4:
        matrices = matrices.squeeze(1)
    used = adapters.unique().tolist()
    if len(used) == 1 and used[0] >= 0:
        return inputs @ matrices[used[0]].to(inputs.dtype).T
    found = inputs.new_zeros(len(adapters), matrices.shape[1])
    for adapter in used:
        if adapter >= 0:
            tokens = (adapters == adapter).nonzero().squeeze(1)
            found[tokens] = inputs[tokens] @ matrices[adapter].to(inputs.dtype).T
    return found


# `register` checks that these signatures equal those of `vllm.lora.ops.torch_ops.lora_ops`. Each kernel
# writes into `output_tensor`.


def bgmv_shrink(inputs, lora_b_weights, output_tensor, lora_indices_tensor, scaling=1.0):
    found = products(inputs.to(output_tensor.dtype), lora_b_weights, lora_indices_tensor)
    output_tensor[:, : found.shape[1]] = scaling * found


def bgmv_expand(inputs, lora_b_weights, output_tensor, lora_indices_tensor, add_inputs=True):
    found = products(inputs.to(output_tensor.dtype), lora_b_weights, lora_indices_tensor)
    width = min(found.shape[1], output_tensor.shape[1])  # adapter and model may be padded differently
    _write(output_tensor[:, :width], found[: output_tensor.shape[0], :width], add_inputs)


def bgmv_expand_slice(
    inputs, lora_b_weights, output_tensor, lora_indices_tensor, slice_offset, slice_size, add_inputs=True
):
    found = products(inputs.to(output_tensor.dtype), lora_b_weights, lora_indices_tensor)
    _write(output_tensor[:, slice_offset : slice_offset + slice_size], found, add_inputs)


def _write(target, found, add: bool) -> None:
    if add:
        target += found
    else:
        target[:] = found
