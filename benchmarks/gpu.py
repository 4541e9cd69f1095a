"""What the benchmarks of training measure on a GPU: time, memory beside our estimate, and the share of the
GPU's FLOPs that the model needed.

Model FLOPs of a token, for a frozen base model with a LoRA adapter:

    forward                2 N + 2 L n d
    forward and backward   4 N + 6 L n d

N: parameters of the base model without the input embedding (tied ones are the head's, and count)
L: layers; d: width of the queries of all heads
n: tokens of its document or sequence, on average over all tokens; half of them, by causality, are before it

A product with N weights takes 2 N FLOPs. In the backward pass it takes as many for the gradient of its input,
and none for that of the weights, which are frozen. Attention multiplies twice (QKᵀ, and with V), and four
times in the backward pass. The products of the adapter, under 1% at rank 16, are not counted. The head counts
for each token, although only tokens that carry loss need it. What is computed a second time (gradient
checkpointing, attention's scores in the backward pass) and padding are no model FLOPs.
"""

import argparse
import gc
import os
import shutil
import statistics
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trl.kernels import chunked_logprob

from pipeline import pretrained
from pipeline.config import Config
from pipeline.memory import GIB, Shape
from pipeline.preflight import memory

MEMORY = ("allocated", "reserved", "beside", "before")  # what `with_memory` adds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that both benchmarks of training have for GPUs."""
    parser.add_argument("--gpu", action="store_true", help="on the first GPU; --threads does not apply")
    parser.add_argument("--peak-tflops", type=float, default=989, help="of the GPU, bf16; default: an H100's")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="on both sides")
    parser.add_argument("--model-dir", help="keep random models in this directory, or find them there")
    parser.add_argument("--sides", nargs="+", default=["ours", "TRL"], choices=["ours", "TRL"])


def begin() -> None:
    """Set PyTorch's allocator, for both sides, as that of a training worker (`pipeline/training/workers.py`).

    Call it before anything is on the GPU.
    """
    torch._C._accelerator_setAllocatorSettings("expandable_segments:True")
    headers = Path(sysconfig.get_paths(scheme="posix_prefix")["include"], "Python.h")
    if not (shutil.which("gcc") or shutil.which("clang") or "CC" in os.environ) or not headers.exists():
        # Else both sides of SFT, and TRL's DPO, would end at their first loss.
        chunked_logprob._TRITON_AVAILABLE = False
        print("Triton finds no C compiler or no Python.h: TRL's fused head takes PyTorch, and all tokens")


def clock() -> float:
    """Seconds, when a GPU in use has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def with_memory(run: Callable[[], dict]) -> dict:
    """What `run` measures, and how much memory of the GPU it took at most, in bytes.

    Of a run for which the GPU is too small, only the memory is known.
    """
    _free()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    try:
        found = run()
    except torch.OutOfMemoryError as e:
        print(f"out of memory: {str(e).splitlines()[0]}", flush=True)
        found = {}
    free, total = torch.cuda.mem_get_info()
    found |= {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        # CUDA's context and libraries, which PyTorch's allocator does not see; of other processes, too
        "beside": total - free - torch.cuda.memory_reserved(),
        "before": before,  # by an earlier side, so it should be nothing
    }
    _free()
    return found


def _free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def medians(runs: dict[str, list[dict]]) -> dict[str, dict[str, float]]:
    """The median of each number of a side's rounds, without sides for which the GPU was too small."""
    return {
        name: {
            key: statistics.median(run[key] for run in each)
            for key, value in each[0].items()
            if isinstance(value, int | float)
        }
        for name, each in runs.items()
        if all("precision" in run for run in each)
    }


def report_memory(runs: dict[str, list[dict]]) -> None:
    """Print the most that each side took."""
    for name, each in runs.items():
        most = {key: max(run[key] for run in each) / GIB for key in MEMORY}
        print(
            f"{name:5} peak memory {most['allocated']:.1f} GiB allocated, {most['reserved']:.1f} reserved,"
            f" {most['beside']:.1f} beside the allocator; {most['before']:.1f} allocated before"
        )


def estimate(config: Config) -> str:
    """The memory of a worker, as `setbacks plan` computes it for the configuration's only training."""
    [found] = memory.footprints(config, ["train"])
    return f"{found.memory.total / GIB:.1f} GiB ({found.memory.told()})"


def precision(trainer: Any) -> str:
    """The dtypes of what is trained, and of its optimizer's states."""
    trained = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
    states = {
        str(value.dtype)
        for state in trainer.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value) and value.numel() > 1
    }
    names = (", ".join(sorted(found)).replace("torch.", "") for found in (trained, states))
    return "adapter {}, optimizer {}".format(*names)


@dataclass(frozen=True)
class Flops:
    """Model FLOPs of a token; see above."""

    shape: Shape
    weights: int
    length: float

    @classmethod
    def of(cls, model_dir: str, lengths: list[int]) -> "Flops":
        """lengths: tokens of each document or sequence."""
        model = pretrained.empty(pretrained.architecture(model_dir))
        shape = Shape.of(model)
        tied = model.config.tie_word_embeddings
        weights = shape.parameters - (0 if tied else shape.vocabulary * shape.hidden)
        return cls(shape, weights, sum(n * n for n in lengths) / sum(lengths))

    @property
    def forward(self) -> float:
        return 2 * self.weights + 2 * self._attention

    @property
    def trained(self) -> float:
        """Forward and backward."""
        return 4 * self.weights + 6 * self._attention

    @property
    def _attention(self) -> float:
        return self.shape.layers * self.length * self.shape.query
