"""Facts about this machine, found without heavy imports."""

import runpy
from importlib.util import find_spec
from pathlib import Path


def gpu_build() -> str | None:
    """The GPU platform that torch is built for, `CUDA 12.9` or `ROCm 7.0`; None for a CPU build.

    vLLM is built for the same. Reads torch's file of facts, because importing torch is slow.
    """
    found = find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    facts = runpy.run_path(str(Path(found.submodule_search_locations[0], "version.py")))
    for name, told in (("cuda", "CUDA"), ("hip", "ROCm")):
        if facts.get(name):
            return f"{told} {facts[name]}"
    return None


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (emulation is many times slower). True if unknown."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
