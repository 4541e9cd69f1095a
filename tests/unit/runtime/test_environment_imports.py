"""Variables that end torch or Ray when they are imported, and engines whose process a signal ends."""

import os
import subprocess

import pytest

from pipeline import preflight
from pipeline.errors import UserError
from pipeline.inference.vllm_start import cause
from pipeline.runtime import environment
from pipeline.settings.base import Model
from tests.scripted import config


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    environment._can_import.cache_clear()
    for name in [name for name in os.environ if name == "TORCH_LOGS" or name.startswith("RAY_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def children(monkeypatch) -> list[str]:
    """The imports that were tried; a variable whose value holds `bad` ends one."""
    tried: list[str] = []

    def run(command, *, env, **_more):
        tried.append(command[-1])
        bad = any("bad" in value for name, value in env.items() if name.startswith(("TORCH_LOGS", "RAY_")))
        return subprocess.CompletedProcess(command, -11 if bad else 0)

    monkeypatch.setattr(environment.subprocess, "run", run)
    return tried


def told() -> str:
    with pytest.raises(UserError) as caught:
        environment.check_imports()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_log_settings_of_torch_are_refused_by_preflight(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "zzz")
    with pytest.raises(UserError, match=r"^TORCH_LOGS = zzz: torch cannot be imported"):
        preflight.check(config(tmp_path / "run"), {"generate"})


def test_a_setting_of_ray_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("RAY_memory_usage_threshold", "abc")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    assert told().startswith("RAY_memory_usage_threshold = abc: ray cannot be imported")


def test_all_wrong_settings_are_named_and_no_right_one(children, monkeypatch):
    for name, value in (("a", "bad"), ("b", "0.5"), ("c", "bad, too"), ("d", "7")):
        monkeypatch.setenv(f"RAY_{name}", value)
    assert told().startswith("RAY_a = bad, RAY_c = bad, too: ray cannot")
    assert children == ["import ray"] * 4, "all at once, then each that is no whole number"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAY_worker_niceness", "0"),
        ("RAY_TMPDIR", "bad"),
        ("RAY_ADDRESS", "bad"),
        ("TORCH_LOGS_OUT", "bad"),
    ],
)
def test_variables_that_end_no_import_cost_no_process(children, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    environment.check_imports()
    assert children == []


def test_an_import_is_tried_once_for_the_same_values(children, monkeypatch):
    monkeypatch.setenv("TORCH_LOGS", "+dynamo")
    environment.check_imports()
    environment.check_imports()
    assert children == ["import torch"]


@pytest.mark.parametrize("stages", [{"mix"}, {"report"}])
def test_stages_without_engines_try_no_import(children, monkeypatch, tmp_path, stages):
    monkeypatch.setenv("TORCH_LOGS", "bad")
    preflight.check(config(tmp_path / "run"), stages)
    assert children == []


FAILED = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': %d}"


@pytest.mark.parametrize(
    ("code", "dtype", "told"),
    [
        (-4, "bfloat16", "an instruction that this CPU does not have; set its dtype to float32"),
        (-4, "float32", "an instruction that this CPU does not have; use another machine"),
        (-9, "bfloat16", "its process was killed; if the machine ran out of memory"),
        (1, "bfloat16", "Failed core proc(s): {'EngineCore': 1}"),
        (-11, "bfloat16", "Failed core proc(s): {'EngineCore': -11}"),
    ],
)
def test_the_signal_that_ended_an_engine_is_told_in_words(code, dtype, told):
    assert told in cause(RuntimeError(FAILED % code), Model(path="toy", dtype=dtype))
