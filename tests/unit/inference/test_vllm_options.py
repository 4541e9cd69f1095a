"""Options of vLLM reach its engine, and what it reads and measures is what setbacks needs."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.inference import vllm_start
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model

OPTIONS = {
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 4},
    "pipeline_parallel_size": 2,
}


def test_options_that_large_models_need_reach_vllms_arguments():
    engine = VLLM(num_gpus=8, options=OPTIONS)
    engine.check("engine")
    found = vllm_start.arguments(Model(path="m"), "m", [], gpus=8, options=engine.given())
    assert {name: getattr(found, name) for name in OPTIONS} == OPTIONS
    assert found.tensor_parallel_size == 4  # 4 × 2 GPUs, which is what Ray gives to the actor
    assert engine.gpus == 8


def test_without_parts_all_gpus_compute_each_layer():
    assert vllm_start.settings(Model(path="m"), "m", [], gpus=8, options={})["tensor_parallel_size"] == 8
    assert vllm_start.settings(Model(path="m"), "m", [], gpus=0, options={})["tensor_parallel_size"] == 1


def test_the_gpus_are_divided_among_the_parts():
    with pytest.raises(UserError) as refused:
        VLLM(num_gpus=6, options={"pipeline_parallel_size": 4}).check("engine")
    assert "set engine.num_gpus, now 6, to a multiple of 4" in str(refused.value)


def test_a_server_of_the_options_has_the_same():
    command = vllm_start.server_command(
        vllm_start.settings(Model(path="m"), "m", [], gpus=8, options=OPTIONS), {}
    )
    assert command[command.index("--tensor-parallel-size") + 1] == "4"
    assert json.loads(command[command.index("--speculative-config") + 1]) == OPTIONS["speculative_config"]


def test_of_a_repository_in_two_formats_the_usual_one_is_read(tmp_path):
    from vllm.transformers_utils.config import get_config

    (tmp_path / "config.json").write_text('{"model_type": "mistral", "hidden_size": 64}')
    (tmp_path / "params.json").write_text('{"dim": 32, "n_layers": 1}')
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    wanted = vllm_start.settings(Model(path="m"), str(tmp_path), [], gpus=1, options={})["config_format"]
    assert get_config(str(tmp_path), False, config_format=wanted).hidden_size == 64


def test_vllms_metrics_are_rays_on_gpus_only(monkeypatch):
    from vllm.v1.metrics import ray_wrappers

    monkeypatch.setattr(vllm_start, "in_actor", lambda: True)
    monkeypatch.setattr(ray_wrappers, "ray_metrics", object())
    assert vllm_start.stat_loggers(1) == [ray_wrappers.RayPrometheusStatLogger]
    assert vllm_start.stat_loggers(0) is None
    monkeypatch.setattr(ray_wrappers, "ray_metrics", None)  # Ray without Serve
    assert vllm_start.stat_loggers(1) is None
