"""`setbacks env`: the versions and devices that a bug report needs. Starts nothing."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from types import MappingProxyType
from typing import Any

import psutil

import pipeline
from pipeline.inference import ENGINES
from pipeline.runtime import machine

LIBRARIES = (
    "ray",
    *(library for engine in ENGINES.values() for library in engine.libraries),
    *("torch", "transformers", "trl", "peft", "datasets", "pyarrow"),
)
_GPUS = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")


@cache
def versions() -> Mapping[str, str]:
    """Python, and the libraries that are installed, with their versions."""
    found = {"Python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return MappingProxyType(found)


def environment() -> dict[str, Any]:
    """Versions, and this machine's processors, memory and GPUs. Names no user and no path.

    cluster: where a run would connect; without RAY_ADDRESS it starts a Ray of its own. offline: the hub is
    not asked.
    """
    memory = psutil.virtual_memory()
    return {
        "setbacks": pipeline.__version__,
        "versions": dict(versions()),
        "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
        "bfloat16": machine.cpu_has_bf16(),
        "memory_gib": round(memory.total / 2**30, 1),
        "memory_free_gib": round(memory.available / 2**30, 1),
        "torch_build": machine.gpu_build() or "CPU",
        "gpus": gpus(),
        "cluster": "the one at RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "a Ray that the run starts",
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
    }


def show_environment(as_json: bool) -> None:
    """Print it."""
    found = environment()
    if as_json:
        print(json.dumps(found, indent=1))
        return
    known = {**found["versions"], **found}
    del known["versions"]
    for name, value in known.items():
        told = {True: "yes", False: "no"}.get(value, value) if isinstance(value, bool) else value
        print(f"{name.replace('_', ' '):<16}{'; '.join(told) or 'none' if isinstance(told, list) else told}")


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU, by its driver's own tool; none if it is not installed."""
    try:
        done = subprocess.run(_GPUS, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
