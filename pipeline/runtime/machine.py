"""Facts about this machine, found without heavy imports."""

from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (emulation is many times slower). True if unknown."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
