"""What strangers give us executes nothing: models, their code, weights and templates, adapters, prompts.

An exploit here makes a file, `pwned`. Each is first shown to work where nobody guards against it, so that a
test cannot pass by its failing.
"""

import ast
import builtins
import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from pipeline import models, preflight, pretrained, prompts
from pipeline.adapters import check_adapter
from pipeline.errors import UserError
from pipeline.inference.vllm import VLLM
from pipeline.inference.vllm_model import VllmModel
from pipeline.settings.base import Model
from pipeline.templates import ChatTemplate
from pipeline.training import arm, examples, start
from tests import tiny
from tests.exploits import AUTO_MAP, PACKAGE, Exploit, add_code, edit


@pytest.fixture
def model(clean_model, tmp_path) -> Path:
    return Path(shutil.copytree(clean_model, tmp_path / "model"))


# -- the source code


def calls(tree: ast.AST):
    """(name of what is called, the call): `from_pretrained` of `AutoTokenizer.from_pretrained(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield (
                node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""),
                node,
            )


def test_one_module_opens_models_and_none_unpickles():
    found = {
        (path.relative_to(PACKAGE).as_posix(), name)
        for path in PACKAGE.rglob("*.py")
        for name, _ in calls(ast.parse(path.read_text()))
    }
    opening = {module for module, name in found if name in ("from_pretrained", "from_config")}
    # PEFT's own: start.py opens an adapter's configuration, adapter.py the adapter it has just written.
    assert opening == {"pretrained.py", "training/start.py", "training/adapter.py"}
    assert {module for module, name in found if name in ("AsyncEngineArgs", "EngineArgs", "LLM")} == {
        "inference/vllm_start.py"
    }
    assert {module for module, name in found if name == "load_dataset"} == {"sources/hub.py"}
    for text in (path.read_text() for path in PACKAGE.rglob("*.py")):
        for name in (
            "torch.load(",
            "pickle.load",
            "yaml.Loader",
            "FullLoader",
            "UnsafeLoader",
            "unsafe_load",
            "full_load",
            "marshal",
            "joblib",
        ):
            assert name not in text
    assert {module for module, name in found if name in ("eval", "exec")} == {
        "training/dpo.py",  # `model.eval()`
        "training/loop.py",
    }


def test_models_are_opened_with_remote_code_off_and_safetensors_only():
    for name, call in calls(ast.parse((PACKAGE / "pretrained.py").read_text())):
        if name in ("from_pretrained", "from_config"):
            spread = [keyword.value.id for keyword in call.keywords if keyword.arg is None]
            assert spread in (["SAFE"], ["SAFE_WEIGHTS"])
    assert pretrained.SAFE == {"trust_remote_code": False}
    assert pretrained.SAFE_WEIGHTS == {"trust_remote_code": False, "use_safetensors": True}


# -- code that comes with a model


@pytest.fixture
def coded_model(model, marker, monkeypatch):
    """A model with Python code of its own, and a user who answers yes to every question."""
    add_code(model, marker)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(model.parent / "modules"))
    return model


TOKENIZER_MAP = {"AutoTokenizer": ["modeling_evil.EvilTokenizer", "modeling_evil.EvilTokenizer"]}
NEEDS_CODE = "model.path = .*it needs its own Python code"


@pytest.fixture(params=["model", "tokenizer"])
def needs_code(coded_model, request) -> Path:
    """Neither class is one that transformers knows."""
    if request.param == "model":
        edit(coded_model / "config.json", auto_map=AUTO_MAP, model_type="evil", architectures=["EvilModel"])
    else:
        edit(coded_model / "tokenizer_config.json", auto_map=TOKENIZER_MAP, tokenizer_class="EvilTokenizer")
    return coded_model


def test_the_code_would_run_if_the_user_were_asked(needs_code, marker):
    from transformers import AutoConfig, AutoTokenizer

    with suppress(Exception):
        AutoConfig.from_pretrained(needs_code)
        AutoTokenizer.from_pretrained(needs_code)
    assert marker.exists(), "transformers' default is to ask, and to run it on a yes"


@pytest.mark.parametrize("stage", ["generate", "train", "evaluate"])
def test_a_model_that_needs_its_code_is_refused_before_anything_starts(needs_code, marker, stage):
    with pytest.raises(UserError, match=NEEDS_CODE) as e:
        preflight.check_models(tiny.config(str(needs_code)), {stage}, {"safety"}, str(needs_code))
    assert "\n" not in str(e.value)
    assert not marker.exists()


def test_neither_tokenizer_nor_trainer_nor_engine_runs_it(needs_code, marker):
    config = tiny.config(str(needs_code))
    for load in (
        lambda: models.load_tokenizer(config.model, str(needs_code)),
        lambda: arm.check(tiny.spec(config, "sft")),
        lambda: pretrained.model(str(needs_code), dtype="float32"),
        lambda: VllmModel(config.model, str(needs_code), VLLM()),
    ):
        with suppress(
            UserError
        ):  # a model whose tokenizer alone needs code has a loadable configuration, and the other way round
            load()
        assert not marker.exists()


def test_a_known_model_is_loaded_without_its_code(coded_model, marker):
    edit(coded_model / "config.json", auto_map=AUTO_MAP)
    edit(coded_model / "tokenizer_config.json", auto_map=TOKENIZER_MAP)
    preflight.check_models(tiny.config(str(coded_model)), {"generate", "train"}, set(), str(coded_model))
    assert pretrained.model(str(coded_model), dtype="float32").config.model_type == "llama"
    assert not marker.exists()


def test_a_model_does_not_choose_its_attention(model):
    edit(
        model / "config.json", _attn_implementation="evil/kernel", attn_implementation="evil/kernel"
    )  # would be fetched from the hub
    assert pretrained.empty(pretrained.architecture(str(model))).config._attn_implementation == "eager"
    assert pretrained.model(str(model), dtype="float32").config._attn_implementation == "eager"


# -- pickled weights


@pytest.fixture
def pickled_model(model, marker) -> Path:
    (model / "model.safetensors").unlink()
    torch.save({"x": Exploit(marker)}, model / "pytorch_model.bin")
    with suppress(Exception):
        torch.load(model / "pytorch_model.bin", weights_only=False)
    assert marker.exists(), "the exploit works"
    marker.rmdir()
    return model


@pytest.mark.parametrize("stage", ["generate", "train", "evaluate"])
def test_pickled_weights_are_refused_before_anything_starts(pickled_model, marker, stage):
    with pytest.raises(
        UserError,
        match=(
            r"its weights are in pytorch_model\.bin, whose format can run code; save the model as safetensors"
        ),
    ):
        preflight.check_models(tiny.config(str(pickled_model)), {stage}, {"safety"}, str(pickled_model))
    assert not marker.exists()


def test_engine_and_trainer_refuse_them_too(pickled_model, marker):
    for load in (
        lambda: VllmModel(Model(path=str(pickled_model)), str(pickled_model), VLLM()),
        lambda: pretrained.model(str(pickled_model), dtype="float32"),
    ):
        with pytest.raises(UserError, match="its weights are in"):
            load()
    (pickled_model / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"x": "pytorch_model.bin"}})
    )
    (pickled_model / "decoy.safetensors").write_bytes(b"")
    with pytest.raises(Exception):  # noqa: B017  whatever it is, it is no execution
        pretrained.model(str(pickled_model), dtype="float32")
    assert not marker.exists()


def test_a_model_without_weights_is_refused(model):
    (model / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"holds no \*\.safetensors"):
        pretrained.check(str(model))


def test_pickled_adapters_are_refused(tmp_path, marker):
    (tmp_path / "adapter").mkdir()
    torch.save({"x": Exploit(marker)}, tmp_path / "adapter" / "adapter_model.bin")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"adapter_model\.bin, whose format can run code"):
        check_adapter("adapters.a", str(tmp_path / "adapter"), str(tmp_path))
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; name"):
        start.load_config(str(tmp_path / "adapter"), "train.start.adapter")
    assert not marker.exists()


# -- templates

ATTACKS = {
    "attribute": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "global function": "{{ lipsum.__globals__['os'].mkdir(marker) }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format('') }}",
    "file": "{% include '/etc/passwd' %}",
    "long loop": "{% for i in range(10**9) %}{{ i }}{% endfor %}",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_chat_template_is_sandboxed(model, attack):
    (model / "chat_template.jinja").write_text(tiny.CHATML + ATTACKS[attack])
    conversation = tiny.rows(1)[0]["messages"]
    with pytest.raises(
        UserError, match=r"chat template of model .* cannot be rendered \(\w+\): fix its chat_template\.jinja"
    ):
        examples.encode(ChatTemplate(pretrained.tokenizer(str(model))), [conversation])


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_prompt_is_sandboxed(tmp_path, attack):
    file = tmp_path / "prompts.yaml"
    name = next(iter(prompts.load("judges/rating.yaml").texts))
    file.write_text(json.dumps({name: ATTACKS[attack]}))
    with pytest.raises(UserError, match=f"prompt {name} cannot be rendered"):
        prompts.load("judges/rating.yaml", str(file))
