"""What can be known of this machine without importing anything."""

from pathlib import Path


def cpu_has_bf16() -> bool:
    """Whether this machine's processor computes in bfloat16; elsewhere it is emulated, many times slower. True where that cannot be known."""
    try:
        return "bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
