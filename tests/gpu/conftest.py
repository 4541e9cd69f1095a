"""What only a GPU can show: `make test-gpu`, on a machine with one.

Differences of rounding are measured, bounded and listed at the end of the output.
"""

import os

import pytest

from pipeline.runtime.session import ray_session

# A forked engine cannot use CUDA once this process has; nor does vLLM see every use.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
os.environ.setdefault("RAY_metrics_report_interval_ms", "500")  # else each 10 s

_measured: list[str] = []


@pytest.fixture(scope="session", autouse=True)
def _a_gpu():
    import torch

    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU on this machine")


@pytest.fixture(scope="session")
def measured():
    """Takes the name of what was measured, and its value."""

    def note(name: str, value: object) -> None:
        _measured.append(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
        print(_measured[-1])

    return note


def pytest_terminal_summary(terminalreporter):
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A local Ray, as a run starts it: it finds the GPU by itself."""
    import ray

    with ray_session(str(tmp_path_factory.mktemp("ray"))):
        assert ray.cluster_resources().get("GPU", 0) >= 1
        yield
