"""vLLM's metrics in Ray do not need Ray Serve, whose own dependencies a run does not install."""

import sys
from types import ModuleType

import pytest
from ray.util import metrics

from pipeline.inference import vllm_start


@pytest.fixture
def wrappers(monkeypatch):
    """vLLM's module, as it is if Ray Serve cannot be imported."""
    module = ModuleType("vllm.v1.metrics.ray_wrappers")
    module.ray_metrics, module.RayPrometheusStatLogger = None, type("Logger", (), {})
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["vllm.v1.metrics"].ray_wrappers = module
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_without_ray_serve_vllm_is_given_rays_metrics(wrappers):
    assert vllm_start.metrics_in_ray() == [wrappers.RayPrometheusStatLogger]
    assert wrappers.ray_metrics is metrics


def test_with_ray_serve_vllm_keeps_its_own(wrappers):
    wrappers.ray_metrics = own = object()
    vllm_start.metrics_in_ray()
    assert wrappers.ray_metrics is own
