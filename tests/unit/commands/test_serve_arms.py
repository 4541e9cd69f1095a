"""`setbacks serve` of arms with several seeds, or with a text of their own; options of vLLM as it reads them."""

from pathlib import Path

import pytest

from pipeline.commands import serve as module
from pipeline.commands.serve import serve
from pipeline.data import records
from pipeline.data.output import Output
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference import vllm_start
from pipeline.inference.base import Served
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from tests import scripted

ASK = "{{ instruction }} A good answer:"


@pytest.fixture
def served(monkeypatch, tmp_path):
    """Serves an arm of a run whose adapters are finished; returns the command and the lines told."""
    started = []
    monkeypatch.setattr(module, "_run", lambda *arguments: started.append(arguments[0]))
    monkeypatch.setattr(module, "_checked", lambda *_arguments: ("/models/toy", []))
    monkeypatch.setattr(module, "_check_port", lambda *_arguments: None)
    monkeypatch.setattr(module.sampling, "resolved", lambda config, *_arguments: (config, []))
    monkeypatch.setattr(vllm_start, "_engine_rank", lambda adapters: 16)

    def serves(arm, **section):
        config = scripted.config(tmp_path / "run", arms={"sft": {"kinds": ["safe"], **section}})
        for name in config.replicas:
            output = Output(config.run_dir, f"adapter/{name}")
            Path(output.path).mkdir(parents=True, exist_ok=True)
            records.write(
                output.state("fingerprint.json"), fingerprints(config)[output.name] | {"made_from": {}}
            )
            output.mark_complete({"steps": 1})
        told: list[str] = []
        serve(config, arm, "127.0.0.1", 1, None, told.append)
        return started.pop(), told

    return serves


def test_an_adapter_of_one_seed_is_served_by_its_name(served, tmp_path):
    command, _ = served("sft_seed1", seeds=[0, 1])
    [module_] = command[command.index("--lora-modules") + 1 :]
    assert f'"path": "{tmp_path}/run/adapter/sft_seed1"' in module_ and '"name": "sft_seed1"' in module_


def test_an_arm_of_several_seeds_is_no_adapter_and_its_seeds_are_named(served):
    with pytest.raises(UserError, match=r"^sft is no arm of this run; it has vanilla, sft_seed0, sft_seed1$"):
        served("sft", seeds=[0, 1])


def test_the_text_with_which_suites_ask_the_arm_is_told(served):
    for arm, section in (("sft", {}), ("sft_seed1", {"seeds": [0, 1]})):
        assert served(arm, ask=ASK, **section)[1] == [
            f"arms.sft.ask is not what the server adds: suites ask the arm with {ASK!r}; send it so"
        ]
    assert served("vanilla", ask=ASK)[1] == []


def test_options_that_are_lists_and_mappings_are_read_by_vllm_as_they_were_given():
    options = {"cudagraph_capture_sizes": [1, 2], "speculative_config": {"method": "ngram"}, "device_ids": []}
    engine = VLLM(num_gpus=1, options=options)
    command, _ = engine.server(Model(path="m"), "/m", {}, Served("vanilla", "127.0.0.1", 8000))
    place = command.index("--cudagraph-capture-sizes")
    assert command[place + 1 : place + 3] == ["1", "2"]
    assert command[command.index("--speculative-config") + 1] == '{"method": "ngram"}'
    assert "--max-num-seqs" not in command and "--device-ids" not in command
