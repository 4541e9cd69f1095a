"""Adapters of users: what the engine cannot apply is refused before it starts, and an adapter without an effect
is told."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from pipeline.adapters import _NOT_SERVED, _PLAIN_INITS, check_adapter
from pipeline.data import adapter as adapter_files
from pipeline.errors import UserError
from tests import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def made(base, tmp_path_factory):
    """A function that makes an adapter as PEFT saves it; B matrices are not zero."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("adapters")

    def make(name: str, config=None, zero: bool = False, **settings) -> Path:
        model = AutoModelForCausalLM.from_pretrained(base)
        lora = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 4} | settings
        model = get_peft_model(model, config or LoraConfig(**lora))
        for parameter in model.parameters():
            if parameter.requires_grad and not zero:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(root / name)
        return root / name

    return make


@pytest.fixture(scope="module")
def plain(made) -> Path:
    return made("plain")


def changed(plain: Path, tmp_path: Path, **settings) -> Path:
    """A copy of the plain adapter with other settings."""
    copy = Path(shutil.copytree(plain, tmp_path / "adapter"))
    file = copy / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return copy


def renamed(plain: Path, tmp_path: Path, rename) -> Path:
    """A copy of the plain adapter with other names of matrices; None leaves a matrix out."""
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(plain, tmp_path / "adapter"))
    matrices = load_file(copy / "adapter_model.safetensors")
    save_file(
        {new: matrix for name, matrix in matrices.items() if (new := rename(name))},
        copy / "adapter_model.safetensors",
    )
    return copy


def checked(adapter: Path, base: Path) -> list[str]:
    return check_adapter("adapters.mine", str(adapter), str(base))


def refused(adapter: Path, base: Path) -> str:
    with pytest.raises(UserError) as caught:
        checked(adapter, base)
    message = str(caught.value)
    assert message.startswith("adapters.mine: ") and "\n" not in message and str(adapter) in message
    return message


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 2}},
        {"layers_to_transform": [0], "target_modules": ["q_proj"]},
        {"target_modules": r".*\.0\..*q_proj"},
        {"init_lora_weights": "gaussian"},
    ],
)
def test_plain_lora_in_all_its_shapes_is_served(made, base, settings):
    assert checked(made("served", **settings), base) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"use_dora": True}, "DoRA (use_dora)"),
        ({"modules_to_save": ["lm_head"]}, "whole modules besides the LoRA matrices (modules_to_save)"),
        ({"bias": "all"}, "biases (bias: all)"),
        ({"lora_bias": True}, "biases of the LoRA matrices (lora_bias)"),
        ({"r": 600}, "rank 600 (at most 512)"),
        ({"rank_pattern": {"q_proj": 600}}, "rank 600 (at most 512)"),
        ({"trainable_token_indices": [1]}, "trained token embeddings"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
        ({"init_lora_weights": "olora"}, "init_lora_weights: olora"),
        ({"alora_invocation_tokens": [1, 2]}, "activated LoRA"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"peft_type": "LOHA"}, "the type LOHA"),
        ({"peft_type": "IA3", "r": None}, "the type IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "the type PROMPT_TUNING"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_with_a_remedy(plain, base, tmp_path, settings, told):
    message = refused(changed(plain, tmp_path, **settings), base)
    assert told in message and "merge it into the model" in message


@pytest.mark.parametrize("kind", ["dora", "ia3", "modules_to_save", "tokens"])
def test_adapters_as_peft_saves_them_are_refused(made, base, kind):
    from peft import IA3Config

    adapter = {
        "dora": lambda: made("dora", use_dora=True),
        "ia3": lambda: made(
            "ia3",
            IA3Config(
                task_type="CAUSAL_LM",
                target_modules=["k_proj", "down_proj"],
                feedforward_modules=["down_proj"],
            ),
        ),
        "modules_to_save": lambda: made("modules", modules_to_save=["embed_tokens"]),
        "tokens": lambda: made("tokens", trainable_token_indices=[3]),
    }[kind]()
    assert "vLLM does not serve" in refused(adapter, base)


@pytest.mark.parametrize("rank", [0, -1, None, "8"])
def test_a_rank_that_is_no_number_is_refused(plain, base, tmp_path, rank):
    assert "rank" in refused(changed(plain, tmp_path, r=rank), base)


def test_the_names_of_a_multimodal_wrapper_are_refused_for_a_model_of_text(plain, base, tmp_path):
    adapter = renamed(
        plain, tmp_path, lambda name: name.replace(".model.layers", ".model.language_model.layers")
    )
    assert "is absent in the model" in refused(adapter, base)


def test_matrices_of_dora_are_refused_even_if_the_configuration_is_silent(made, base):
    adapter = made("silent", use_dora=True)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": False}))
    assert "lora_magnitude_vector" in refused(adapter, base)


def test_half_a_pair_of_matrices_is_refused(plain, base, tmp_path):
    adapter = renamed(plain, tmp_path, lambda name: None if "0.self_attn.q_proj.lora_B" in name else name)
    assert "has only one LoRA matrix of model.layers.0.self_attn.q_proj" in refused(adapter, base)


def test_an_adapter_without_matrices_is_refused(plain, base, tmp_path):
    assert "holds no LoRA matrix" in refused(renamed(plain, tmp_path, lambda _name: None), base)


@pytest.mark.parametrize("side", [0, 1])
def test_other_inputs_or_outputs_than_the_models_are_refused(plain, base, tmp_path, side):
    from safetensors.torch import load_file, save_file

    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    matrices = load_file(adapter / "adapter_model.safetensors")
    name = next(n for n in matrices if n.endswith(f"q_proj.lora_{'BA'[side]}.weight"))
    shape = list(matrices[name].shape)
    shape[side] += 1
    matrices[name] = matrices[name].new_ones(shape)
    save_file(matrices, adapter / "adapter_model.safetensors")
    assert "does not fit the model" in refused(adapter, base)


def test_an_adapter_of_zeros_is_told(made, base):
    adapter = made("zeros", zero=True)
    [notice] = checked(adapter, base)
    assert notice == f"adapters.mine: all B matrices of {adapter} are zero, so it changes nothing"


def test_an_adapter_of_another_model_of_the_same_shape_is_told(plain, base, tmp_path):
    adapter = changed(plain, tmp_path, base_model_name_or_path="org/other")
    [notice] = checked(adapter, base)
    assert "was trained on org/other, and is used on" in notice


def test_an_adapter_on_the_embeddings_is_refused_where_vllm_has_none(made, base, tmp_path):
    adapter = made("embeddings", target_modules=["q_proj", "embed_tokens"])
    other = Path(shutil.copytree(base, tmp_path / "other" / "model"))
    config = json.loads((other / "config.json").read_text())
    for architecture, served in (("LlamaForCausalLM", True), ("Qwen2ForCausalLM", False)):
        (other / "config.json").write_text(json.dumps(config | {"architectures": [architecture]}))
        if served:
            assert checked(adapter, other) == []
        else:
            assert "covers model.embed_tokens, which vLLM does not serve" in refused(adapter, other)


def test_all_adapters_ranks_count_for_the_engine(plain, tmp_path):
    adapter = changed(plain, tmp_path, rank_pattern={"q_proj": 40})
    assert adapter_files.rank(adapter_files.settings(str(adapter))) == 40


def test_every_option_of_the_installed_peft_is_known_here():
    """An option that PEFT adds must be looked at: vLLM ignores those that it does not know."""
    from peft import LoraConfig

    harmless = {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
        "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout",
        "fan_in_fan_out", "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern",
        "alpha_pattern", "megatron_config", "megatron_core", "target_parameters", "runtime_config",
        "qalora_group_size", "ensure_weight_tying",
        # how training begins or computes gradients; init_lora_weights says whether base weights change
        "loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config",
    }  # fmt: skip
    known = harmless | _NOT_SERVED.keys() | {"bias", "init_lora_weights"}
    assert {field.name for field in fields(LoraConfig)} <= known


def test_what_is_said_of_vllm_is_in_the_installed_vllm():
    import importlib.util
    import re

    root = Path(importlib.util.find_spec("vllm").submodule_search_locations[0])
    ranks = re.search(r"MaxLoRARanks = Literal\[(.*)\]", (root / "config" / "lora.py").read_text())[1]
    assert max(map(int, ranks.split(","))) == adapter_files.MOST_RANK
    for name in ("llama", "mistral", "mixtral", "qwen3"):
        text = (root / "model_executor" / "models" / f"{name}.py").read_text()
        assert "embedding_modules = {" in text
    assert "embedding_modules" not in (root / "model_executor" / "models" / "qwen2.py").read_text()
    helper = (root / "lora" / "peft_helper.py").read_text()
    assert all(f'"{init}"' in helper for init in _PLAIN_INITS)


def test_a_base_of_the_hub_is_compared_if_it_has_been_downloaded(plain, base, tmp_path, monkeypatch):
    adapter = renamed(plain, tmp_path, lambda name: name.replace("q_proj", "z_proj"))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    assert check_adapter("adapters.mine", str(adapter), "org/model") == []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(base / "config.json"))
    with pytest.raises(UserError, match="is absent in the model"):
        check_adapter("adapters.mine", str(adapter), "org/model")


# -- what users hand in for an adapter


def test_further_files_and_keys_of_trainers_do_not_matter(plain, base, tmp_path):
    pattern = r"(?:.*?(?:language|text).*?(?:self_attn|mlp).*?(?:q_proj|k_proj)).*?"  # as Unsloth writes it
    adapter = changed(plain, tmp_path, target_modules=pattern, a_key_of_tomorrow=3, peft_version="9.9")
    for name in ("tokenizer.json", "trainer_state.json", "config.json", "training_args.bin"):
        (adapter / name).write_text("{}")
    assert checked(adapter, base) == []
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": "all-linear"}))
    assert checked(adapter, base) == []


def test_the_way_to_the_directory_does_not_matter(plain, base, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(plain)
    monkeypatch.chdir(plain.parent)
    for path in (f"{plain}/", "plain", "./plain/../plain", str(tmp_path / "link")):
        assert check_adapter("adapters.mine", path, str(base)) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            "pickled",
            "its matrices are in adapter_model.bin, whose format can run code); save it as adapter_model.safetensors",
        ),
        ("sharded", "its matrices are in several files); load it with PEFT and save it into one"),
        ("without", "it holds no adapter_model.safetensors); copy it again"),
        ("cut off", "the file is cut off); copy it again"),
        ("pointer", "a pointer of Git LFS: `git lfs pull` fetches the file"),
        ("empty", "it holds no adapter_config.json); name the directory that does"),
        ("absent", "no such directory); name the directory of an adapter; download one of the hub first"),
        ("model", "it is a model); give it as model.path"),
        ("parent", "name one of the adapters in it, such as "),
        ("file", "it is a file); name its directory"),
    ],
)
def test_what_is_no_adapter_is_refused_with_a_remedy_of_its_own(plain, base, tmp_path, change, told):
    adapter = Path(shutil.copytree(plain, tmp_path / "adapters" / "adapter"))
    weights = adapter / "adapter_model.safetensors"
    if change == "pickled":
        weights.rename(adapter / "adapter_model.bin")
    elif change == "sharded":
        weights.rename(adapter / "adapter_model-00001-of-00002.safetensors")
    elif change == "without":
        weights.unlink()
    elif change == "cut off":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif change == "pointer":
        weights.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    elif change == "empty":
        (adapter := tmp_path / "empty").mkdir()
    elif change == "absent":
        adapter = tmp_path / "absent"
    elif change == "model":
        adapter = base
    elif change == "parent":
        adapter = tmp_path / "adapters"
    elif change == "file":
        adapter = weights
    assert told in refused(adapter, base)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"r": 8}, "matrices of rank 4 for model.layers.0.mlp.down_proj, and its adapter_config.json says 8"),
        ({"r": 2}, "says 2"),
        ({"r": 2, "rank_pattern": {"q_proj": 3}}, "says 2 or 3"),
        ({"lora_alpha": None}, "lora_alpha in adapter_config.json of"),
    ],
)
def test_a_configuration_of_other_matrices_is_refused(plain, base, tmp_path, settings, told):
    assert told in refused(changed(plain, tmp_path, **settings), base)


def test_a_scaling_of_zero_is_told(plain, base, tmp_path):
    [notice] = checked(changed(plain, tmp_path, lora_alpha=0), base)
    assert "lora_alpha of" in notice and "changes nothing" in notice


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int8"])
@pytest.mark.parametrize("number", [0.5, float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(plain, base, tmp_path, dtype, number):
    import torch
    from safetensors.torch import load_file, save_file

    adapter = Path(shutil.copytree(plain, tmp_path / "adapter"))
    matrices = load_file(adapter / "adapter_model.safetensors")
    name = sorted(matrices)[-1]
    if dtype != "int8":
        matrices[name][-1, -1] = number
    changed = {key: matrix.to(getattr(torch, dtype)) for key, matrix in matrices.items()}
    save_file(changed, adapter / "adapter_model.safetensors")
    if dtype == "int8":
        assert "of type I8" in refused(adapter, base)
    elif number == 0.5:
        assert checked(adapter, base) == []
    else:
        assert f"numbers in {name} that are not finite" in refused(adapter, base)
