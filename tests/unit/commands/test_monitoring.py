"""The dashboard and the alerts: each metric in them is one that the code exports, and alerts come when they
should."""

import json
import re
import subprocess
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pipeline.inference.metrics import EngineMetrics
from tests.tools import which

MONITORING = Path(__file__).parents[3] / "cluster" / "monitoring"
NAME = re.compile(r"\bray_[a-z_]+")


@pytest.fixture
def exported(monkeypatch) -> set[str]:
    """Names as Prometheus sees them: Ray puts `ray_` before them, and `_total` behind those that only grow."""
    found = set()

    def metric(ending: str):
        class Metric:
            def __init__(self, name, description="", tag_keys=()):
                found.add(f"ray_{name}{ending}")

            def set_default_tags(self, tags):
                return self

        return Metric

    monkeypatch.setattr("ray.util.metrics.Counter", metric("_total"))
    monkeypatch.setattr("ray.util.metrics.Gauge", metric(""))
    EngineMetrics("generate")
    return found


@pytest.fixture(scope="module")
def of_vllm() -> set[str]:
    """Names of the installed vLLM, read from its source: importing it takes seconds."""
    vllm = find_spec("vllm")
    text = Path(vllm.submodule_search_locations[0], "v1/metrics/loggers.py").read_text()
    made = re.findall(r"self\._(counter|gauge)_cls\(\s*name=\"vllm:([a-z_]+)\"", text)
    assert len(made) > 10
    return {f"ray_vllm_{name}{'_total' * (kind == 'counter')}" for kind, name in made}


def expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "rules.yml").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = [variable["query"] for variable in dashboard["templating"]["list"]]
    return [*shown, *asked, *(rule["expr"] for group in rules["groups"] for rule in group["rules"])]


def test_every_metric_is_one_that_is_exported(exported, of_vllm):
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert named - exported - of_vllm == set()
    assert exported - named == set(), "nobody sees these"


def test_every_metric_stands_on_the_page(exported):
    page = (MONITORING.parents[1] / "docs" / "observing.md").read_text()
    assert exported == {
        name for name in NAME.findall(page) if name.startswith("ray_setbacks_") and name != "ray_setbacks_"
    }


def test_the_panels_of_the_dashboard_do_not_overlap():
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


@pytest.fixture(scope="module")
def promtool() -> str:
    if found := which("promtool"):
        return found
    why = "promtool is not installed (make tools): the alert rules are NOT tested"
    warnings.warn(why, stacklevel=1)
    pytest.skip(why)


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", "rules.yml"),
        ("test", "rules", "rules_test.yml"),
        ("check", "config", "prometheus.yml"),
    ],
)
def test_promtool_accepts_the_alerts(promtool, command):
    done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
