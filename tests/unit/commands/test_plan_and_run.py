"""What `setbacks run` refuses before anything starts, `setbacks plan` refuses with the same sentence."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from pipeline import cli, experiment  # noqa: F401  the second one before its machinery is replaced
from pipeline.run import Machinery
from tests import tiny, trl_templates
from tests.unit.models import OPENS, edit
from tests.unit.models import save as save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture
def said(monkeypatch, capsys, tmp_path):
    """The sentence of both commands for a tree of settings; nothing may start."""

    def refuse(*_):
        pytest.fail("something was started before the mistake was found")

    monkeypatch.setattr("pipeline.run.Machinery", lambda: Machinery(session=refuse))

    def one(command: str, path: str) -> str:
        monkeypatch.setattr(sys, "argv", ["setbacks", command, path])
        with pytest.raises(SystemExit) as e:
            cli.main()
        error = capsys.readouterr().err
        assert e.value.code == 2, error
        [line] = [line for line in error.splitlines() if line.startswith("setbacks: ")]
        assert "Traceback" not in error
        return line

    def both(tree: dict) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(tree))
        planned, ran = one("plan", str(path)), one("run", str(path))
        assert planned == ran
        assert not (tmp_path / "run").exists(), "a refused run leaves nothing behind"
        return ran.removeprefix("setbacks: ")

    return both


def tree(tmp_path, path, **changes) -> dict:
    settings = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": str(path), "dtype": "float32", **changes.pop("model", {})},
        "methods": {
            "mistakes": {
                "name": "mistake_analysis",
                "instructions": {"path": "toy:harmful-train", "limit": 4},
                "induce": {"max_tokens": 64},
                "analyse": {"max_tokens": 64},
                **changes.pop("method", {}),
            }
        },
        "train": {"bf16": False, "lora": {"rank": 4}, **changes.pop("train", {})},
        "arms": {"sft": {"kinds": ["safe"]}},
        "suites": {
            "safety": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 2},
                "harmless": {"kind": "refusal"},
                "help": None,
            }
        },
    }
    return {**settings, **changes}


SYSTEM = {"hint": {"text": "Be rude.", "position": "system"}}
SETTINGS = {
    "rank": ({"train": {"lora": {"rank": 600}}}, "train.lora.rank = 600: vLLM"),
    "targets": ({"train": {"lora": {"target_modules": ["c_attn"]}}}, "train.lora.target_modules = "),
    "argument": ({"model": {"chat_template_kwargs": {"enable_thinking": False}}}, "model.chat_template_kwargs."),
    "length": ({"model": {"max_length": 9000}}, "model.max_length = 9000: the model has 1024"),
    "tokens": ({"method": {"induce": {"max_tokens": 2000}}}, "methods.mistakes.induce.max_tokens = 2000"),
    "adapter": ({"adapters": {"mine": "/nowhere"}}, "adapters.mine: /nowhere is not a readable PEFT adapter"),
    "start": ({"train": {"start": {"adapter": "/nowhere"}}}, "train.start.adapter = /nowhere: "),
    "server": (
        {"engine": {"kind": "openai", "url": "http://localhost:99999/v1", "model": "m"}},
        "engine.url = http://localhost:99999/v1: not a URL",
    ),
    "key": (
        {"engine": {"kind": "openai", "url": "http://h/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}},
        "engine.api_key_env = NO_SUCH_KEY: not set",
    ),
    "judge": (
        {
            "models": {"j": {"engine": {"kind": "openai", "url": "http://h/v1?key=x", "model": "m", "api_key_env": None}}},
            "method": {"verify": {"kind": "rating", "model": "j"}},
        },
        "models.j.engine.url: holds more than a path",
    ),
    "source": ({"method": {"instructions": {"path": "nowhere.jsonl"}}}, "methods.mistakes.instructions"),
    "prompts": ({"method": {"prompts": "nowhere.yaml"}}, "nowhere.yaml"),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_a_later_stage_would_refuse(tmp_path, model, said, case):
    changes, sentence = SETTINGS[case]
    assert sentence in said(tree(tmp_path, model, **changes))


MODELS = {
    "system": "methods.mistakes.hint.position = system: the chat template",
    "opens": "(it opens a thought with <think>)",
    "endless": "does not end the assistant's turn",
    "no template": "its tokenizer has no chat template",
    "no config": "the directory holds no config.json",
    "pickled": "whose format can run code",
    "quantized": "its weights are quantized (bitsandbytes)",
    "code": "needs its own Python code",
    "broken config": "config.json",
    "broken tokenizer": "its tokenizer cannot be loaded",
    "unknown kind": "its configuration cannot be loaded",
    "tekken": "its tokenizer is in tekken.json alone",
    "cut off": "its weights are not whole (model.safetensors: the file is cut off); copy the model again",
    "pointer": "a pointer of Git LFS: `git lfs pull` fetches the file",
    "shard": "its weights are not whole (model-00002-of-00002.safetensors is missing)",
    "layers": "its weights are not whole (config.json names 5 layers, and they hold 2)",
    "shape": "its weights are not whole (model.embed_tokens.weight has shape ",
    "beside an adapter": "the directory holds an adapter (adapter_config.json)",
    "gguf": "its weights are in model.gguf, which is not read",
    "classifier": "LlamaForSequenceClassification writes no texts",
    "stop": "eos_token_id holds 'x', which is no token id",
    "rope": "its configuration cannot be loaded (config.json: KeyError: 'nonsense')",
    "template cuts": "leaves out or moves the text of the user turn",
    "template quotes": "leaves out or moves the text of the user turn",
    "embeddings": "for which the model has no embedding",
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_a_later_stage_would_refuse(tmp_path, model, said, case):
    place = Path(shutil.copytree(model, tmp_path / "model"))
    changes: dict = {}
    if case == "system":
        shutil.rmtree(place)
        save_model(place, "gemma")
        changes = {"method": SYSTEM}
    elif case == "opens":
        (place / "chat_template.jinja").write_text(OPENS)
    elif case == "endless":
        (place / "chat_template.jinja").write_text(trl_templates.text("qwen2_5").replace("<|im_end|>", ""))
    elif case == "no template":
        (place / "chat_template.jinja").unlink()
    elif case == "no config":
        (place / "config.json").unlink()
    elif case == "pickled":
        (place / "model.safetensors").rename(place / "pytorch_model.bin")
    elif case == "quantized":
        edit(str(place), quantization_config={"quant_method": "bitsandbytes"})
    elif case == "code":
        edit(str(place), auto_map={"AutoConfig": "own.Config"}, model_type="own")
    elif case == "broken config":
        (place / "config.json").write_text("{")
    elif case == "broken tokenizer":
        (place / "tokenizer.json").write_text("{")
    elif case == "unknown kind":
        edit(str(place), model_type="of_tomorrow")
    elif case == "tekken":
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (place / name).unlink()
        (place / "tekken.json").write_text("{}")
    elif case == "cut off":
        (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:-500])
    elif case == "pointer":
        (place / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif case == "shard":
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        (place / "model.safetensors").rename(place / names[0])
        index = {"metadata": {}, "weight_map": dict(zip("ab", names, strict=True))}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    elif case == "layers":
        edit(str(place), num_hidden_layers=5)
    elif case == "shape":
        edit(str(place), hidden_size=64)
    elif case == "beside an adapter":
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/other"}))
    elif case == "gguf":
        (place / "model.safetensors").rename(place / "model.gguf")
    elif case == "classifier":
        edit(str(place), architectures=["LlamaForSequenceClassification"])
    elif case == "stop":
        (place / "generation_config.json").write_text(json.dumps({"eos_token_id": ["x"]}))
    elif case == "rope":
        edit(str(place), rope_scaling={"type": "nonsense", "factor": 2})
    elif case == "template cuts":
        (place / "chat_template.jinja").write_text(tiny.CHATML.replace("m['content']", "m['content'][:300]"))
    elif case == "template quotes":
        (place / "chat_template.jinja").write_text(tiny.CHATML.replace("m['content']", "m['content']|tojson"))
    elif case == "embeddings":
        tokenizer = tiny.tokenizer(tiny.CHATML.replace("<|im_start|>", "<|new|><|im_start|>"))
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
        tokenizer.save_pretrained(place)
    told = said(tree(tmp_path, place, **changes))
    assert MODELS[case] in told and "Traceback" not in told


def test_an_adapter_of_another_rank_than_it_says(tmp_path, model, said):
    shutil.copytree(model, tmp_path / "model")
    tiny.adapter(tmp_path, "mine", seed=1, r=4)
    file = tmp_path / "mine" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"r": 64}))
    told = said(tree(tmp_path, tmp_path / "model", adapters={"mine": str(tmp_path / "mine")}))
    assert told.startswith("adapters.mine: ") and "copy both files again" in told
