"""What later stages would find out about a model is found out before anything starts, and `plan` says the same."""

import io
import json
from typing import get_args

import pytest
from rich.console import Console

from pipeline import models, preflight, pretrained
from pipeline.commands.plan import show_plan
from pipeline.data.adapter import MOST_RANK
from pipeline.errors import UserError
from pipeline.registry import METHODS
from pipeline.settings.base import Model
from tests import scripted, tiny
from tests.unit.models import OPENS, edit, save

ALL = {"generate", "mix", "train", "evaluate"}
SYSTEM = {"hint": {"text": "Be rude.", "position": "system"}}
IGNORES_SYSTEM = tiny.CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'")


def config(tmp_path, path: str, **changes):
    given = changes.pop("model", {})
    settings = {
        "model": {"path": path, "dtype": "float32", **given},
        "instructions": {"path": "toy:harmful-train", "limit": 4},
        "evaluation": {"harmful": {"path": "toy:harmful-heldout", "limit": 2}},
        "recipe": {"induce": {"max_tokens": 64}, "analyse": {"max_tokens": 64}},
        **changes,
    }
    if "suites" in changes:
        del settings["evaluation"]
    settings["train"] = {"bf16": False, **settings.get("train", {})}
    return scripted.config(tmp_path / "run", **settings)


def checked(made, stages=frozenset(ALL)) -> list[str]:
    suites = set(made.suites.items())
    return preflight.check_models(made, set(stages), suites, models.model_dir(made.model))


def planned(made) -> str:
    console = Console(width=400, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(made, None, console)
    return console.export_text()


def refused(made, stages=frozenset(ALL)) -> str:
    """The sentence of preflight; that of `plan` is the same."""
    with pytest.raises(UserError) as e:
        checked(made, stages)
    with pytest.raises(UserError) as of_plan:
        planned(made)
    assert str(of_plan.value) == str(e.value) and "\n" not in str(e.value)
    return str(e.value)


# -- templates


@pytest.mark.parametrize(
    ("name", "template", "why"),
    [
        ("gemma", None, "cannot be rendered (System role not supported)"),
        (None, IGNORES_SYSTEM, "leaves out or moves the text of the system turn"),
        (None, "{{ messages[0]['content'] / 2 }}" + tiny.CHATML, "cannot be rendered (TypeError)"),
        ("smolvlm", None, "leaves out or moves the text of the"),
    ],
)
def test_a_system_turn_that_the_template_cannot_render(tmp_path, name, template, why):
    made = config(tmp_path, save(tmp_path / "model", name, template), recipe=SYSTEM)
    told = refused(made)
    assert why in told
    if name == "gemma" or template == IGNORES_SYSTEM:  # the others cannot render any turn
        assert told.startswith("methods.mistakes.hint.position = system: the chat template of model")
        assert told.endswith(": choose another value, or another template")


def test_a_suite_asks_with_its_own_hint(tmp_path):
    suite = {
        "harmful": {"path": "toy:harmful-heldout", "limit": 2},
        "harmless": {"kind": "refusal"},
        "hint": SYSTEM["hint"],
    }
    made = config(tmp_path, save(tmp_path / "model", "gemma"), suites={"safety": suite})
    assert refused(made).startswith("suites.safety.hint.position = system: the chat template of")
    without = {**suite, "conditions": ["plain"]}
    assert checked(config(tmp_path, str(tmp_path / "model"), suites={"safety": without})) == []


@pytest.mark.parametrize("template", ["own", "deepseek_r1_distill"])
def test_a_generation_prompt_that_opens_a_thought_cannot_be_trained_on(tmp_path, template):
    model = save(tmp_path / "model", *((None, OPENS) if template == "own" else (template,)))
    told = refused(config(tmp_path, model))
    assert "writes a generation prompt that is not how the assistant's turn begins" in told
    assert "(it opens a thought with <think>)" in told
    [notice] = checked(config(tmp_path, model), {"generate"})  # it can generate: thoughts are split off
    assert "lets the model think before every answer" in notice


def test_a_template_that_thinks_is_told_with_a_remedy_that_works(tmp_path):
    model = save(tmp_path / "model", "qwen3")
    [notice] = checked(config(tmp_path, model))
    assert "set model.chat_template_kwargs: {enable_thinking: false}" in notice
    assert notice in planned(config(tmp_path, model))
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert checked(config(tmp_path, model, model=off)) == []
    told = refused(config(tmp_path, model, model={"chat_template_kwargs": {"enable_thinkin": False}}))
    assert told.startswith("model.chat_template_kwargs.enable_thinkin: the chat template does not use it")


def test_a_turn_that_nothing_ends(tmp_path):
    endless = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}assistant:"
    model = save(
        tmp_path / "model",
        None,
        endless.replace("assistant:", "{% if add_generation_prompt %}assistant:{% endif %}"),
    )
    assert "does not end the assistant's turn with a token that the engine stops at" in refused(
        config(tmp_path, model)
    )


def test_several_rounds_of_a_conversation_are_rendered(tmp_path):
    two = "{% if messages|length > 3 %}{{ raise_exception('Too many turns') }}{% endif %}" + tiny.CHATML
    model = save(tmp_path / "model", None, two)
    for rounds in (1, 2):
        made = config(
            tmp_path, model, recipe={"name": "critique_revise", "answer": "plain", "rounds": rounds}
        )
        told = refused(made)
        assert told.startswith(f"methods.method.rounds = {rounds}: ") and "(Too many turns)" in told


class Asked:
    """A chat that answers anything and keeps the roles of what it was asked."""

    def __init__(self):
        self.roles: set[tuple[str, ...]] = set()

    async def __call__(self, messages, sampling, *, step, adapter=None, model=None):
        from pipeline.chat import Completion

        self.roles.add(tuple(message["role"] for message in messages))
        return [
            Completion(f"Sorry, it is illegal: number {len(self.roles)} of {step}.", 1, 1, "stop")
        ] * sampling.n


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "mistake_analysis"},
        {"name": "mistake_analysis", **SYSTEM},
        {"name": "mistake_analysis", "mistake": "reference", **SYSTEM},
        {"name": "critique_revise", "rounds": 3},
        {"name": "critique_revise", "rounds": 1, **SYSTEM},
        {"name": "course_correction"},
        {"name": "chain_of_hindsight", "verify": {"kind": "rating"}},
        {"name": "source_preferences"},
    ],
)
def test_a_method_says_what_it_asks(tmp_path, recipe):
    import asyncio

    train = {"method": "dpo"} if recipe["name"] == "course_correction" else {}
    source = {"path": "toy:detailed-train" if train else "toy:harmful-train"}
    made = config(tmp_path, "toy", recipe=recipe, train=train, instructions=source)
    [method] = made.methods.values()
    from pipeline.sources import instructions

    asked = Asked()
    rows = [row for row in instructions.well_formed(method.instructions) if row["unsafe_response"]][:5]
    for row in rows:
        asyncio.run(method.recipe(0)(row, asked))
    prefilled = {roles for roles in asked.roles if roles[-1] == "assistant"}
    assert rows and asked.roles - prefilled <= set(method.conversations)
    assert len(METHODS) == 6, (
        "a new method belongs into this test; red_team, which has no instructions, into its own"
    )


# -- adapters, weights, lengths


def test_the_largest_rank_is_vllms():
    from vllm.config.lora import MaxLoRARanks

    assert max(get_args(MaxLoRARanks)) == MOST_RANK


@pytest.mark.parametrize("rank", [513, 1024])
def test_a_rank_that_the_engine_cannot_load(tmp_path, rank):
    made = config(tmp_path, save(tmp_path / "model"), train={"lora": {"rank": rank}})
    assert refused(made).startswith(f"train.lora.rank = {rank}: vLLM evaluates adapters of rank 512 at most")
    arms = {"a": {"kinds": ["safe"], "train": {"lora": {"rank": rank}}}}
    made = config(tmp_path, str(tmp_path / "model"), arms=arms)
    assert refused(made).startswith(f"arms.a.train.lora.rank = {rank}: ")


def test_the_rank_of_a_start_adapter_that_the_engine_cannot_load(tmp_path):
    save(tmp_path / "model")
    tiny.adapter(tmp_path, "start", seed=1, r=513)
    made = config(tmp_path, str(tmp_path / "model"), train={"start": {"adapter": str(tmp_path / "start")}})
    assert "start.adapter = " in (told := refused(made)) and "its rank is 513" in told


@pytest.mark.parametrize("targets", [["q_proj", "query_key_value"], ["nowhere"], "nowhere"])
def test_target_modules_that_the_model_does_not_have(tmp_path, targets):
    made = config(tmp_path, save(tmp_path / "model"), train={"lora": {"target_modules": targets}})
    assert "train.lora.target_modules = " in (told := refused(made)) and "does not fit the model" in told


@pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_quantized_weights_cannot_be_trained(tmp_path, kind):
    model = save(tmp_path / "model")
    edit(model, quantization_config={"quant_method": kind, "bits": 4, "group_size": 128})
    told = refused(config(tmp_path, model))
    assert f"its weights are quantized ({kind})" in told and told.startswith(f"model.path = {model}")


QUANTIZED = [  # settings, refused on a CPU with, refused on a GPU with
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "(bitsandbytes)", "(bitsandbytes)"),
    ({"quant_method": "hqq"}, "(hqq)", "(hqq)"),
    ({"quant_method": "fbgemm_fp8"}, "(fbgemm_fp8)", "(fbgemm_fp8)"),
    ({"quant_method": "gptq", "bits": 8}, "(gptq with 8 bits, on a CPU)", None),
    ({"quant_method": "gptq", "bits": 3}, "(gptq with 3 bits, on a CPU)", "(gptq with 3 bits)"),
    ({"quant_method": "gptq", "bits": 4, "sym": False}, "sym: false", "sym: false"),
    ({"quant_method": "mxfp4"}, "(mxfp4, on a CPU)", None),
    ({"quant_method": "modelopt"}, "(modelopt, on a CPU)", None),
    ({"quant_method": "awq", "bits": 4}, None, None),
    ({"quant_method": "gptq", "bits": 4, "sym": True}, None, None),
    ({"quant_method": "compressed-tensors"}, None, None),
]


@pytest.mark.parametrize(("settings", "on_cpu", "on_gpu"), QUANTIZED)
@pytest.mark.parametrize("gpus", [0, 1])
def test_quantized_weights_that_the_engine_cannot_load(tmp_path, settings, on_cpu, on_gpu, gpus):
    model, told = save(tmp_path / "model"), on_gpu if gpus else on_cpu
    edit(model, quantization_config=settings)
    made = config(tmp_path, model, arms={}, engine={"num_gpus": gpus}, model={"dtype": "bfloat16"})
    assert checked(made) == [] if told is None else told in refused(made)
    made = config(tmp_path, model, arms={}, engine={"num_gpus": gpus})
    if told is None and settings["quant_method"] != "compressed-tensors":
        assert refused(made).startswith("model.dtype = float32: vLLM computes")


@pytest.mark.parametrize(
    "name", ["hf_quant_config.json", "quantize_config.json", "compression_config", "other engine"]
)
def test_quantization_is_found_wherever_it_is_written(tmp_path, name):
    model = save(tmp_path / "model")
    if name.endswith(".json"):
        (tmp_path / "model" / name).write_text(json.dumps({"bits": 4}))
    else:
        edit(
            model,
            **{"quantization_config" if name == "other engine" else name: {"quant_method": "bitsandbytes"}},
        )
    if name == "other engine":  # one that does not read the model
        made = config(tmp_path, model, arms={}, engine={"kind": "dummy"}, suites={})
        assert checked(made) == []
    else:
        assert "its weights are quantized" in refused(config(tmp_path, model))


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "llava"])
def test_a_model_of_images_and_text_cannot_be_trained(tmp_path, kind):
    from transformers import AutoConfig

    model = save(tmp_path / "model")
    AutoConfig.for_model(kind).save_pretrained(model)
    told = refused(config(tmp_path, model))
    assert "reads more than text" in told and "name a text model" in told


def test_lengths_that_the_model_does_not_have(tmp_path):
    model = save(tmp_path / "model", max_position_embeddings=768)
    told = refused(config(tmp_path, model, model={"max_length": 769}))
    assert told == "model.max_length = 769: the model has 768 positions; set at most 768"
    long = {"induce": {"max_tokens": 768}, "analyse": {"max_tokens": 8}}
    told = refused(config(tmp_path, model, recipe=long))
    assert told.startswith(
        "methods.mistakes.induce.max_tokens = 768: leaves no room for a prompt in the model's 768"
    )
    told = refused(config(tmp_path, model, model={"max_length": 100}))
    assert "leaves no room for a prompt in the model's 100" in told
    [notice] = checked(config(tmp_path, model, train={"max_length": 800}))
    assert notice.startswith("train.max_length = 800: the model has 768 positions")
    edit(
        model,
        rope_parameters={
            "rope_type": "yarn",
            "factor": 4.0,
            "rope_theta": 10000.0,
            "original_max_position_embeddings": 768,
        },
    )
    assert checked(config(tmp_path, model, model={"max_length": 2048})) == []


# -- Mistral's tokenizers


def test_hugging_face_files_are_read_beside_tekken(tmp_path):
    model = save(tmp_path / "model")
    (tmp_path / "model" / "tekken.json").write_text("{}")
    assert checked(config(tmp_path, model)) == []
    loaded = models.load_template(Model(path=model), model)
    assert loaded.prompt([{"role": "user", "content": "how"}]) == tiny.template().prompt(
        [{"role": "user", "content": "how"}]
    )


def test_a_repository_with_tekken_alone_is_refused_with_a_remedy_that_works(tmp_path):
    model = save(tmp_path / "model")
    tokenizer = pretrained.tokenizer(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "model" / name).unlink(missing_ok=True)
    (tmp_path / "model" / "tekken.json").write_text("{}")
    with pytest.raises(UserError) as e:
        preflight.check(config(tmp_path, model), ALL)
    told = str(e.value)
    assert "tekken.json" in told and "tokenizer.json" in told and "\n" not in told
    tokenizer.chat_template = None
    tokenizer.save_pretrained(model)  # the first half of the remedy
    with pytest.raises(UserError, match=r"no chat template; add chat_template\.jinja"):
        preflight.check(config(tmp_path, model), ALL)
    (tmp_path / "model" / "chat_template.jinja").write_text(tiny.CHATML)
    preflight.check(config(tmp_path, model), ALL)
    assert checked(config(tmp_path, model)) == []


# -- builds


def build(monkeypatch, name: str | None) -> None:
    """As on an installation of this build."""
    for module in ("pipeline.preflight", "pipeline.inference.vllm"):
        monkeypatch.setattr(f"{module}.gpu_build", lambda: name)


def refused_build(made, stages=ALL) -> str:
    """What `run` says. `plan` does not: it may be made for another machine."""
    planned(made)
    with pytest.raises(UserError) as e:
        preflight.check_build(made, set(stages))
    return str(e.value)


def test_gpus_on_a_build_for_cpus(tmp_path, monkeypatch):
    build(monkeypatch, None)
    model = save(tmp_path / "model")
    told = refused_build(config(tmp_path, model, engine={"num_gpus": 2}))
    assert told.startswith("engine.num_gpus = 2: the installed torch and vLLM are built for CPUs")
    told = refused_build(config(tmp_path, model, train={"use_gpu": True}))
    assert told.startswith("train.use_gpu = true: the installed torch is built for CPUs")
    preflight.check_build(config(tmp_path, model, engine={"num_gpus": 2}), {"train"})


def test_cpus_on_a_build_for_gpus(tmp_path, monkeypatch):
    build(monkeypatch, "CUDA 12.9")
    told = refused_build(config(tmp_path, save(tmp_path / "model")))
    assert told.startswith("engine.num_gpus = 0: the installed vLLM is built for GPUs (CUDA 12.9)")


def test_gpus_need_torchvision(tmp_path, monkeypatch):
    build(monkeypatch, "CUDA 13.0")
    model = save(tmp_path / "model")
    made = config(tmp_path, model, engine={"num_gpus": 1}, train={"use_gpu": True})
    monkeypatch.setattr("pipeline.inference.vllm.find_spec", lambda name: None)
    told = refused_build(made)
    assert told.startswith("engine.num_gpus = 1: vLLM starts no engine on a GPU without torchvision")
    preflight.check_build(made, {"train"})
    monkeypatch.setattr("pipeline.inference.vllm.find_spec", lambda name: name)
    preflight.check_build(made, ALL)


def test_the_build_is_that_of_torch():
    import torch

    from pipeline.runtime.machine import gpu_build

    assert (gpu_build() is None) == (torch.version.cuda is None and torch.version.hip is None)
