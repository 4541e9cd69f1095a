"""Starting vLLM in a process: its arguments, its environment, what it said if it did not start."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from pipeline.data import adapter as adapter_files
from pipeline.errors import UserError
from pipeline.inference import cpu_lora
from pipeline.runtime import imports
from pipeline.runtime.attempt import started
from pipeline.runtime.session import in_actor
from pipeline.settings.base import Model
from pipeline.settings.shown import first_line, shown

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs

_LAST_BYTES, _LONGEST_ERROR = 2**16, 300
# vLLM logs to stdout, unless VLLM_LOGGING_STREAM says otherwise, and Python prints tracebacks to stderr. In
# an actor, these are two files.
_OUTPUTS = ("/proc/self/fd/1", "/proc/self/fd/2")
# vLLM's line of an error: `(EngineCore pid=7) ERROR 11-26 10:00:00 [core.py:1] ValueError: no memory`
_LOGGED = re.compile(r" ERROR \S+ \S+ \[[^\]]+\] ([\w.]*(?:Error|Exception|Interrupt)(?:: .+)?)$", re.M)
# The exception that ended a process: in Python's traceback, the line after the indented ones.
_TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?: .*\n)+([\w.]+(?:: .+)?)$", re.M)
_REFERS = "root cause"  # in errors of vLLM that refer to those of another process

PIPELINE = "pipeline_parallel_size"

# Arguments of vLLM that are not options: fields of the configuration, or fixed here.
_FIELDS = {
    "model": "model.path",
    "tokenizer": "model.path",
    "revision": "model.revision",
    "tokenizer_revision": "model.revision",
    "dtype": "model.dtype",
    "max_model_len": "model.max_length",
    "tensor_parallel_size": "engine.num_gpus",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "max_num_seqs": "engine.max_num_seqs",
}
_FIXED = {
    "trust_remote_code": "code from model files is never run",
    "load_format": "pickled weights are never loaded",
    "tokenizer_mode": "prompts are made with the tokenizer of training",
    "config_format": "the model is read as training reads it",
    "generation_config": "the configuration's `sampling` says it",
    "enable_lora": "the run's adapters decide it",
    "max_loras": "the run's adapters decide it",
    "max_lora_rank": "the run's adapters decide it",
    "seed": "every request has its own",
    "disable_log_stats": "Ray's metrics hold vLLM's",
    "skip_tokenizer_init": "texts are decoded",
    "language_model_only": "no request holds an image",
    "data_parallel_size": "set engine.actors",
    "distributed_executor_backend": "engine.num_nodes decides it",
    "nnodes": "engine.num_nodes decides it",
}


def check_options(options: dict[str, Any], field: str) -> None:
    """Check options of vLLM. field: the engine's path. Imports vLLM. Raises UserError."""
    if not options:
        return
    field = f"{field}.options"
    with imports.quick():
        from vllm import AsyncEngineArgs

    known = {argument.name for argument in fields(AsyncEngineArgs)}
    for name in options:
        if name in _FIELDS:
            raise UserError(f"{field}.{name}: set {_FIELDS[name]} instead")
        if name in _FIXED:
            raise UserError(f"{field}.{name} is fixed: {_FIXED[name]}; remove it")
        if name not in known:
            near = get_close_matches(name, known - set(_FIELDS) - set(_FIXED), n=1)
            remedy = f"write {near[0]}" if near else "see vLLM's engine arguments"
            raise UserError(f"{field}.{name}: the installed vLLM has no such argument; {remedy}")


def check_parts(options: dict[str, Any], gpus: int, nodes: int, field: str) -> None:
    """Raises UserError if a model cannot be divided so among an engine's GPUs and their nodes."""
    if nodes > 1 and (not gpus or gpus % nodes):
        raise UserError(
            f"{field}.num_nodes = {nodes}: each node has equally many of the engine's GPUs; set"
            f" {field}.num_gpus, now {gpus}, to a multiple of {nodes}"
        )
    parts = options.get(PIPELINE, nodes)
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise UserError(
            f"{field}.options.{PIPELINE} = {shown(repr(parts))}: set a number of parts, such as 2"
        )
    if parts > 1 and gpus == 0:
        raise UserError(f"{field}.options.{PIPELINE} = {parts}: an engine on CPUs has one part; remove it")
    if parts > 1 and gpus % parts:
        raise UserError(
            f"{field}.options.{PIPELINE} = {parts}: each part takes equally many of the engine's GPUs; set"
            f" {field}.num_gpus, now {gpus}, to a multiple of {parts}"
        )


def arguments(
    model: Model,
    model_dir: str,
    adapters: list[str],
    *,
    gpus: int,
    options: Mapping[str, Any],
    nodes: int = 1,
) -> "AsyncEngineArgs":
    """`settings` as vLLM's arguments. nodes: as in `check_parts`."""
    from vllm import AsyncEngineArgs

    given = settings(model, model_dir, adapters, gpus=gpus, options={PIPELINE: nodes, **options})
    if nodes > 1:
        given["distributed_executor_backend"] = "ray"
    return AsyncEngineArgs(**given)


def settings(
    model: Model, model_dir: str, adapters: list[str], *, gpus: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """vLLM's settings for an engine of this many GPUs; 0: on the CPU. options: further ones, or others."""
    on_cpu = gpus == 0
    ours = dict(
        model=model_dir,
        revision=model.revision,
        trust_remote_code=False,
        # As in training. Mistral's own tokenizer has no chat template, and its own configuration does not fit
        # the weights in the usual format.
        tokenizer_mode="hf",
        config_format="hf",
        load_format="safetensors",  # else vLLM loads pickled weights if there are no others
        dtype=model.dtype,
        max_model_len=model.max_length,
        tensor_parallel_size=max(1, gpus // options.get(PIPELINE, 1)),
        enforce_eager=on_cpu,  # compiling for a CPU takes longer than it saves
        # On a CPU, vLLM 0.32 crashes on a seeded request with chunked prefill ("CPU Generator does not use
        # offset").
        enable_chunked_prefill=False if on_cpu else None,
        enable_prefix_caching=True,
        # No request holds an image: without this, encoders of images take memory and are profiled.
        language_model_only=True,
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
    return ours | dict(options)


def stat_loggers(gpus: int) -> list[type] | None:
    """What puts vLLM's metrics among Ray's, for engines on GPUs; None if it cannot.

    vLLM's module for that imports ray.serve, which Ray's images have and `ray[data,train]` has not.
    """
    if not gpus or not in_actor():
        return None
    from vllm.v1.metrics import ray_wrappers

    return [ray_wrappers.RayPrometheusStatLogger] if ray_wrappers.ray_metrics else None


def server_command(settings: Mapping[str, Any], adapters: Mapping[str, str]) -> list[str]:
    """The command of vLLM's OpenAI server. adapters: directories by the names that requests use."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [part for name, value in settings.items() for part in _option(name, value)]
    command.append("--disable-uvicorn-access-log")
    if adapters:
        modules = (json.dumps({"name": name, "path": path}) for name, path in adapters.items())
        command += ["--lora-modules", *modules]
    return command


def _option(name: str, value: Any) -> list[str]:
    """A setting as the server's command line has it; null and an empty list are left out."""
    flag = name.replace("_", "-")
    if value is None or value == []:
        return []
    if isinstance(value, bool):
        return [f"--{flag}" if value else f"--no-{flag}"]
    parts = value if isinstance(value, list) else [value]
    return [f"--{flag}", *(json.dumps(part) if isinstance(part, dict) else str(part) for part in parts)]


def _engine_rank(adapters: list[str]) -> int:
    """The engine's smallest rank that fits all adapters; smaller ones are padded to it, at its cost."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    ranks = [adapter_files.rank(adapter_files.settings(adapter)) for adapter in adapters]
    return min(rank for rank in get_args(MaxLoRARanks) if rank >= max(ranks, default=1))


def cause(e: Exception, model: Model) -> str:
    """Why an engine did not start; in plain words if a signal ended its process (vLLM tells its number).

    vLLM says "see root cause above": the error of the engine's process, which Ray writes to files of the
    actor's node. Such a text holds no row, because an engine that starts has seen none.
    """
    told = first_line(e)
    found = re.search(r"Failed core proc\(s\): \{[^}]*: -(\d+)", told)
    if found is None:
        return (_REFERS in told and last_words()) or told
    if int(found[1]) == signal.SIGILL:
        remedy = "set its dtype to float32" if model.dtype != "float32" else "use another machine"
        return f"its process used an instruction that this CPU does not have; {remedy}"
    if int(found[1]) == signal.SIGKILL:
        return "its process was killed; if the machine ran out of memory, give it more, or run fewer engines"
    return told


def last_words() -> str | None:
    """The last error that a process of the engine wrote, and the file that holds it; None without one.

    An error that vLLM logged comes before a traceback, which may be of a process that ended afterwards.
    """
    places = [place for output in _OUTPUTS if os.path.isfile(place := os.path.realpath(output))]
    ends = {place: _end(place) for place in places}
    for written in (_LOGGED, _TRACEBACK):
        for place, text in ends.items():
            if errors := [error for error in written.findall(text) if _REFERS not in error]:
                return f"{errors[-1][:_LONGEST_ERROR].rstrip('.')}; see {place} on {os.uname().nodename}"
    return None


def _end(place: str) -> str:
    with open(place, "rb") as file:
        file.seek(max(0, os.path.getsize(place) - _LAST_BYTES))
        return file.read().decode(errors="replace")


def set_environment(
    gpus: int, kv_cache_gib: int, environ: MutableMapping[str, str] | None = None, *, nodes: int = 1
) -> None:
    """Set the variables that vLLM reads when it is imported. environ: None for those of this process."""
    environ = os.environ if environ is None else environ
    environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if (listed := environ.get("VLLM_PLUGINS")) is not None and cpu_lora.PLUGIN not in listed.split(","):
        environ["VLLM_PLUGINS"] = f"{listed},{cpu_lora.PLUGIN}"  # a list of the only ones that vLLM loads
    environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if nodes == 1:
        # By default gloo would listen on the address of the host's name.
        environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if gpus == 0:
        # Run the model in the engine's core process. With a separate worker process, a CPU engine imports
        # vLLM a second time, so its start takes half as long again, and its core spins while it waits for the
        # worker.
        environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        # The thread count that vLLM would give that worker; Ray has set the actor's to its CPUs, 1.
        environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) - 1))
        environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
        environ[cpu_lora.SWITCH] = "1"
    else:
        # Its kernels are compiled when an engine starts, with whatever nvcc is there, and never run: every
        # request has a seed, and vLLM samples those by other kernels.
        environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")


def children() -> list[int]:
    import psutil

    return [p.pid for p in psutil.Process().children(recursive=True)]


# Arguments: `pid:start` of every process to kill. In days the kernel may give a pid to another process, whose
# start is another one. The start is the 20th field after the name, which may hold blanks.
_WATCH = r"""cat >/dev/null
for process; do
  now=$(sed 's/.*) //' "/proc/${process%:*}/stat" 2>/dev/null | cut -d ' ' -f 20)
  if [ "$now" = "${process#*:}" ]; then kill -9 "${process%:*}"; fi
done 2>/dev/null"""


def end_with_this_process(pids: list[int]) -> subprocess.Popen:
    """A shell that waits until this process has ended, however it ends, then kills the engine's processes.

    Without the shell, an actor that dies by SIGKILL leaves its engine running and holding memory.
    """
    living = [f"{pid}:{start}" for pid in pids if (start := started(pid)) is not None]
    return subprocess.Popen(
        ["sh", "-c", _WATCH, "sh", *living], stdin=subprocess.PIPE, start_new_session=True
    )
