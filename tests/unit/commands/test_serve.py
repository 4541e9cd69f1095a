"""`setbacks serve` before a process starts: what is refused, and the command that would run."""

import json
import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.commands import serve as module
from pipeline.commands.serve import serve
from pipeline.config import Config
from pipeline.data import records
from pipeline.data.output import Output
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.base import Served
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from tests import scripted

SUITE = {
    "safety": {"harmful": {"path": "toy:harmful-heldout"}, "answer": {"temperature": 0.7, "max_tokens": 9}}
}


@pytest.fixture
def started(monkeypatch):
    """The commands and environments of servers, none of which is started."""
    found = []
    monkeypatch.setattr(module, "_run", lambda *arguments: found.append(arguments[:2]))
    monkeypatch.setattr(module, "_checked", lambda *_arguments: ("/models/toy", []))
    monkeypatch.setattr(module.sampling, "resolved", lambda config, *_arguments: (config, []))
    return found


@pytest.fixture
def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def configured(tmp_path, **changes) -> Config:
    tree = {"run_dir": str(tmp_path / "run"), "model": {"path": "toy"}, "suites": SUITE, **changes}
    return Config.model_validate(tree)


def trained(tmp_path, **changes) -> Config:
    """A configuration whose arm `sft` is finished."""
    config = scripted.config(tmp_path / "run", **changes)
    output = Output(config.run_dir, "adapter/sft")
    Path(output.path).mkdir(parents=True)
    records.write(output.state("fingerprint.json"), fingerprints(config)[output.name] | {"made_from": {}})
    output.mark_complete({"steps": 1})
    return config


def run(config, arm="vanilla", host="127.0.0.1", port=1, key=None) -> list[str]:
    told: list[str] = []
    serve(config, arm, host, port, key, told.append)
    return told


# -- what is refused


def test_an_arm_that_the_run_does_not_have_is_refused_with_those_that_it_has(tmp_path, started):
    config = configured(tmp_path, adapters={"other": "/adapters/other"})
    with pytest.raises(UserError, match=r"^stf is no arm of this run; it has vanilla, other$"):
        run(config, "stf")
    assert started == []


def test_an_arm_that_is_not_trained_names_the_stage_to_run(tmp_path, started):
    with pytest.raises(UserError, match="adapter/sft is not complete: run `setbacks train` first"):
        run(scripted.config(tmp_path / "run"), "sft")


def test_one_seed_of_an_arm_is_served_and_the_arm_itself_is_not(tmp_path, started):
    config = scripted.config(tmp_path / "run", train={"seeds": [0, 1]})
    with pytest.raises(UserError, match="adapter/sft_seed1 is not complete: run `setbacks train` first"):
        run(config, "sft_seed1")
    with pytest.raises(UserError, match=r"^sft is no arm of this run; it has vanilla, sft_seed0, sft_seed1"):
        run(config, "sft")


def test_an_arm_that_was_trained_otherwise_is_refused(tmp_path, started):
    trained(tmp_path)
    changed = scripted.config(tmp_path / "run", train={"epochs": 1})
    with pytest.raises(UserError, match=r"train.epochs: 3.0 in the run directory, 1.0 in this config"):
        run(changed, "sft")
    assert started == []


def test_an_adapter_that_is_not_there_is_refused(tmp_path):
    config = configured(
        tmp_path, model={"path": "toy", "dtype": "float32"}, adapters={"other": str(tmp_path)}
    )
    with pytest.raises(UserError, match=r"adapters.other: .* is not a readable PEFT adapter"):
        run(config, "other")


def test_a_port_that_is_taken_is_refused(tmp_path, started):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(
            UserError, match=f"^--port {port}: is taken by another process on 127.0.0.1; give"
        ):
            run(configured(tmp_path), port=port)
    assert started == []
    run(configured(tmp_path), port=port)
    assert len(started) == 1


def test_an_address_of_another_machine_is_refused(tmp_path, started, free_port):
    with pytest.raises(UserError, match=r"cannot be used .*on 192.0.2.1"):
        run(configured(tmp_path), host="192.0.2.1", port=free_port)
    with pytest.raises(UserError, match="--host no such name: no such address"):
        run(configured(tmp_path), host="no such name", port=free_port)


@pytest.mark.parametrize("value", [None, "", " "])
def test_a_key_that_is_not_set_is_refused(tmp_path, started, monkeypatch, value):
    monkeypatch.delenv("SERVE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SERVE_KEY", value)
    with pytest.raises(UserError, match=r"^--api-key-env SERVE_KEY: the variable is not set"):
        run(configured(tmp_path), key="SERVE_KEY")


@pytest.mark.parametrize("engine", [
    {"kind": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}, {"kind": "dummy"}
])  # fmt: skip
def test_an_engine_without_a_server_is_refused(tmp_path, engine):
    config = configured(tmp_path, engine=engine)
    with pytest.raises(UserError, match=f"^engine.kind = {engine['kind']}: has no server of its own"):
        run(config)


# -- what is started


def test_the_key_is_in_the_environment_and_on_no_command_line(tmp_path, started, monkeypatch, free_port):
    monkeypatch.setenv("SERVE_KEY", "Zanzibar-secret")
    monkeypatch.setenv("VLLM_API_KEY", "of another server")
    run(configured(tmp_path), port=free_port, key="SERVE_KEY")
    run(configured(tmp_path), port=free_port)
    (command, variables), (_, without) = started
    assert variables["VLLM_API_KEY"] == "Zanzibar-secret" and "Zanzibar" not in " ".join(command)
    assert "VLLM_API_KEY" not in without


def test_an_open_address_without_a_key_is_told(tmp_path, started, monkeypatch, free_port):
    assert not run(configured(tmp_path), port=free_port)
    [told] = run(configured(tmp_path), host="0.0.0.0", port=free_port)
    assert "whoever reaches this machine can ask the model" in told
    monkeypatch.setenv("SERVE_KEY", "k")
    assert not run(configured(tmp_path), host="0.0.0.0", port=free_port, key="SERVE_KEY")


def test_an_arm_is_a_lora_module_of_its_name_beside_the_base(tmp_path, started, monkeypatch, free_port):
    monkeypatch.setattr("pipeline.inference.vllm_start._engine_rank", lambda adapters: 16)
    run(trained(tmp_path), "sft", port=free_port)
    [(command, _)] = started
    module = json.loads(command[command.index("--lora-modules") + 1])
    assert module == {"name": "sft", "path": str(tmp_path / "run" / "adapter" / "sft")}
    assert command[command.index("--served-model-name") + 1] == "vanilla"
    assert "--enable-lora" in command and "--no-trust-remote-code" in command


def test_requests_that_do_not_say_otherwise_are_sampled_as_the_suite_samples(tmp_path, started, free_port):
    run(configured(tmp_path), port=free_port)
    [(command, _)] = started
    assert json.loads(command[command.index("--override-generation-config") + 1])["temperature"] == 0.7
    assert command[command.index("--generation-config") + 1] == "vllm"


def test_a_system_prompt_of_the_suite_is_told_to_be_left_to_the_client(tmp_path, started, free_port):
    suites = {"safety": SUITE["safety"] | {"answer": {"system": "Be brief.", "stop": ["x"]}}}
    [told] = run(configured(tmp_path, suites=suites), port=free_port)
    assert told == "suites.safety.answer.stop and system is not what the server adds: send it yourself"


def test_without_a_suite_the_models_own_settings_are_used():
    command, _ = VLLM().server(Model(path="m"), "/m", {}, Served("vanilla", "127.0.0.1", 8000))
    assert command[command.index("--generation-config") + 1] == "auto"
    assert "--override-generation-config" not in command and "--lora-modules" not in command


def test_the_server_has_the_settings_of_the_runs_engine(monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    before = dict(os.environ)
    model = Model(path="m", max_length=512, dtype="float32", chat_template_kwargs={"enable_thinking": False})
    command, variables = VLLM(max_num_seqs=7, kv_cache_gib=3).server(
        model, "/m", {}, Served("vanilla", "127.0.0.1", 8123)
    )
    values = dict(pairwise(command))
    assert values["-m"] == "vllm.entrypoints.openai.api_server"
    assert (values["--model"], values["--dtype"], values["--max-model-len"]) == ("/m", "float32", "512")
    assert (values["--max-num-seqs"], values["--port"], values["--block-size"]) == ("7", "8123", "32")
    assert json.loads(values["--default-chat-template-kwargs"]) == {"enable_thinking": False}
    assert "--no-enable-chunked-prefill" in command and "--enforce-eager" in command
    assert variables["VLLM_CPU_KVCACHE_SPACE"] == "3" and variables["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert dict(os.environ) == before, "this process is left as it is"
