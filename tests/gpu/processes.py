"""Processes of engines."""

import psutil


def cores() -> list[psutil.Process]:
    """vLLM's own processes among the descendants of this one: by the name that they take, or by how they were
    started, since they take it only if setproctitle is installed."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            if child.name().startswith("VLLM::EngineCor") or "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found
