"""What no GPU of the cluster can hold is refused before a token is generated, and `plan` tells how much is
needed."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import preflight
from pipeline.commands.plan import show_plan
from pipeline.errors import UserError
from pipeline.memory import GIB
from pipeline.runtime.nodes import Node
from tests import scripted, tiny

# The config.json of these models, without what no memory depends on.
SHAPES = {
    "qwen2.5-7b": dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=3584, intermediate_size=18944,
        num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
        max_position_embeddings=32768, tie_word_embeddings=False, dtype="bfloat16",
    ),
    "qwen2.5-32b": dict(
        model_type="qwen2", architectures=["Qwen2ForCausalLM"], hidden_size=5120, intermediate_size=27648,
        num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8, vocab_size=152064,
        max_position_embeddings=32768, tie_word_embeddings=False, dtype="bfloat16",
    ),
    "llama-3-70b": dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=8192, intermediate_size=28672,
        num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8, vocab_size=128256,
        max_position_embeddings=8192, tie_word_embeddings=False, dtype="bfloat16",
    ),
}  # fmt: skip
STAGES = {"generate", "train", "evaluate"}


def save(directory: Path, name: str) -> str:
    """A model of this shape: its configuration, a tokenizer, and files that hold no weights."""
    from safetensors.torch import save_file

    place = directory / name
    place.mkdir()
    (place / "config.json").write_text(json.dumps(SHAPES[name]))
    save_file({}, place / "model.safetensors")
    tiny.tokenizer().save_pretrained(place)
    return str(place)


def config(model: str, **changes):
    settings = {
        "model": {"path": model},
        "instructions": {"path": "toy:harmful-train", "limit": 8},
        "engine": {"num_gpus": 1, "actors": 8},
        "train": {"workers": 8, "use_gpu": True, "max_length": 1024, "batch_size": 16},
        "suites": {
            "safety": {
                "harmful": {"path": "toy:harmful-heldout"},
                "harmless": {"kind": "refusal"},
                "answer": {"max_tokens": 64},
                "help": None,
            }
        },
        "gpu_memory_gib": 80,
    }
    if "-" in Path(model).name:  # one of the large ones
        settings["model"]["max_length"] = settings["train"]["max_length"] = 4096
    for name, change in changes.items():
        settings[name] = {**settings.get(name, {}), **change} if isinstance(change, dict) else change
    return scripted.config(**settings)


def found(made, nodes=()) -> dict[str, preflight.Footprint]:
    return {one.field: one for one in preflight.footprints(made, STAGES, nodes)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("base") / "model")


def test_a_model_of_7b_fits_on_80_gib(tmp_path):
    own = found(config(save(tmp_path, "qwen2.5-7b")))
    assert own["train"].stage == "train sft, mistake_analysis"
    assert own["train"].memory.parts["weights"] == 2 * 7_615_616_512
    assert own["train"].memory.parts["optimizer"] == 8 * 40_370_176
    assert {one.verdict for one in own.values()} == {"fits"}
    assert own["engine"].sequences > 100


def test_32b_needs_checkpointing_on_80_gib(tmp_path):
    model = save(tmp_path, "qwen2.5-32b")
    with pytest.raises(UserError) as e:
        preflight.check_memory(preflight.footprints(config(model), {"train"}))
    assert str(e.value).startswith(
        "train: train sft, mistake_analysis needs about 144 GiB on each GPU, and 128 in any case"
    )
    assert "(weights 61.0, " in str(e.value) and "set gradient_checkpointing: true or " in str(e.value)
    [one] = preflight.footprints(config(model, train={"gradient_checkpointing": True}), {"train"})
    assert one.verdict in ("fits", "close")


def test_70b_is_trained_in_shards_or_in_4_bits(tmp_path):
    model = save(tmp_path, "llama-3-70b")
    with pytest.raises(UserError, match="set fsdp: true or load_in_4bit: true, or use larger GPUs"):
        plain = config(model, train={"gradient_checkpointing": True})
        preflight.check_memory(preflight.footprints(plain, {"train"}))
    for setting, gib in (("fsdp", 37), ("load_in_4bit", 52)):
        [one] = preflight.footprints(
            config(model, train={"gradient_checkpointing": True, setting: True}), {"train"}
        )
        assert one.verdict == "fits" and round(one.memory.total / GIB) == gib


def test_70b_is_refused_on_one_gpu_and_generates_on_four(tmp_path):
    model = save(tmp_path, "llama-3-70b")
    with pytest.raises(UserError, match=r"engine: .* set engine.num_gpus: 4, ") as e:
        preflight.check_memory(preflight.footprints(config(model), {"generate"}))
    assert "(weights 131.4, " in str(e.value) and "may take 90% of 80 GiB" in str(e.value)
    [one] = preflight.footprints(config(model, engine={"num_gpus": 4, "actors": 2}), {"generate"})
    assert one.verdict == "fits" and one.sequences > 20


def test_nothing_is_refused_if_the_gpus_are_unknown(small):
    made = config(small, gpu_memory_gib=None)
    assert {one.verdict for one in found(made).values()} == {"unknown"}
    assert preflight.check_memory(list(found(made).values())) == []
    odd = [Node("a", "10.0.0.1", 8, 8, frozenset({"H100"})), Node("b", "10.0.0.2", 8, 8)]
    assert {one.verdict for one in found(made, odd).values()} == {"unknown"}


def test_a_cluster_names_its_gpus(small):
    made = config(small, gpu_memory_gib=None)
    nodes = [
        Node("a", "10.0.0.1", 8, 8, frozenset({"H100"})),
        Node("b", "10.0.0.2", 8, 8, frozenset({"L4"})),
        Node("c", "10.0.0.3", 8, 0),
    ]
    both = found(made, nodes)["train"].gpus
    assert (both.least_gib, both.most_gib) == (22.5, 93.5)
    asked = config(small, gpu_memory_gib=None, train={"accelerator_type": "L4"})
    assert str(found(asked, nodes)["train"].gpus) == "22.5 GiB"
    unheard = config(small, gpu_memory_gib=None, train={"accelerator_type": "X9"})
    assert found(unheard, nodes)["train"].gpus is None


def test_what_is_close_is_told_and_not_refused(small):
    own = found(config(small))["train"].memory.total / GIB
    notices = preflight.check_memory(list(found(config(small, gpu_memory_gib=own * 1.05)).values())[:1])
    [told] = [one for one in notices if one.startswith("train: ")] or [""]
    close = found(config(small, gpu_memory_gib=own * 1.05))["train"]
    assert close.verdict == "close" and "if it runs out of memory, " in preflight.check_memory([close])[0]
    assert told in ("", preflight.check_memory([close])[0])


def test_pairs_that_may_be_short_are_not_refused(small):
    """DPO's rows are as long as the data; only weights, adapter and optimizer are there in any case."""
    dpo = {"method": "dpo", "max_length": 1024, "pairs_per_device": 15, "batch_size": 120}
    made = config(small, recipe={"name": "course_correction"}, train=dpo)
    one = found(made)["train"]
    fixed = sum(one.memory.parts[name] for name in ("weights", "adapters", "gradients", "optimizer"))
    assert one.memory.least < one.memory.total and one.memory.least < fixed + 2 * GIB
    tight = config(
        small, recipe={"name": "course_correction"}, train=dpo, gpu_memory_gib=one.memory.least / GIB + 0.01
    )
    assert found(tight)["train"].verdict == "close"


def test_evaluation_needs_no_adapter_that_training_began_from(small):
    made = config(small, train={"start": {"adapter": "/gone"}})
    engines = [one for one in preflight.footprints(made, {"evaluate"}) if one.field == "engine"]
    assert engines[0].memory.parts["adapters"] > 0


def test_a_model_whose_shape_is_not_said_is_not_refused(tmp_path):
    place = Path(save(tmp_path, "qwen2.5-7b"))
    mamba = {
        "model_type": "mamba",
        "architectures": ["MambaForCausalLM"],
        "hidden_size": 16,
        "num_hidden_layers": 1,
    }
    (place / "config.json").write_text(json.dumps(mamba))
    assert found(config(str(place), gpu_memory_gib=0.001)) == {}


def test_cpus_need_no_gpu_memory(small):
    made = config(small, engine={"num_gpus": 0, "actors": 1}, train={"use_gpu": False})
    assert not preflight.on_gpus(made, STAGES) and found(made) == {}


def test_a_run_is_refused_when_it_has_joined_its_cluster(tmp_path, monkeypatch):
    made = config(save(tmp_path, "llama-3-70b"), gpu_memory_gib=None, engine={"num_gpus": 8, "actors": 1})
    nodes = [Node("a", "10.0.0.1", 64, 8, frozenset({"H100"}))]
    monkeypatch.setattr("pipeline.placement.nodes", lambda: nodes)
    told: list[str] = []
    with pytest.raises(UserError, match=r"^train: .* a worker may take 93\.5 GiB: "):
        preflight.check_cluster(made, STAGES, "/runs/mine", {}, told.append)
    preflight.check_cluster(made, {"generate"}, "/runs/mine", {}, told.append)


def test_a_quantized_model_is_as_large_as_its_files(tmp_path):
    place = Path(save(tmp_path, "llama-3-70b"))
    settings = SHAPES["llama-3-70b"] | {"quantization_config": {"quant_method": "awq", "bits": 4}}
    (place / "config.json").write_text(json.dumps(settings))
    with (place / "model.safetensors").open("r+b") as file:
        file.truncate(37 * GIB)  # a hole, which takes no space on the disk
    made = config(str(place), arms={})
    assert preflight.footprints(made, {"generate"})[0].memory.parts["weights"] == 37 * GIB


# -- the plan


def planned(made) -> str:
    console = Console(width=300, soft_wrap=True, record=True, file=io.StringIO())
    try:
        show_plan(made, None, console)
    finally:
        told = console.export_text()
    return told


def test_a_plan_prints_the_table(tmp_path, small):
    told = planned(config(small, run_dir=str(tmp_path / "run")))
    assert "Memory of each GPU in GiB, estimated from the model's shape" in told
    [line] = [line for line in told.splitlines() if line.strip().startswith("train: train sft")]
    assert line.endswith("of 80 GiB: fits")
    [line] = [line for line in told.splitlines() if line.strip().startswith("engine: evaluate")]
    assert "of 90% of 80 GiB: fits; cache for " in line


def test_a_plan_refuses_what_the_run_would(tmp_path, small):
    made = config(small, run_dir=str(tmp_path / "run"), gpu_memory_gib=1)
    with pytest.raises(UserError, match=r"^engine: .* may take 90% of 1 GiB: use larger GPUs"):
        planned(made)


def test_a_plan_on_cpus_has_no_table(tmp_path, small):
    made = config(small, run_dir=str(tmp_path / "run"), engine={"num_gpus": 0}, train={"use_gpu": False})
    assert "Memory" not in planned(made)


def test_a_plan_without_the_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = planned(config("org/model-on-the-hub", run_dir=str(tmp_path / "run")))
    assert "unknown, because a model is not on this disk" in told
