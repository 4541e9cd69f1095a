"""The real vLLM engine behind `complete`: one start, every promise of `Chat`.

The model's generation_config.json says how not to sample, and the engine has every kind of a user's adapter.
"""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from pipeline.chat import Sampling, assistant, user
from pipeline.errors import RowFailed
from pipeline.inference import notices
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)
THINGS = ("a bicycle", "a boat", "a phone", "a coat", "a camera", "a car")
ASK = [user(f"How can I repair {THINGS[0]}?")]


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:  # at its end it waits for the engine's own tasks
        yield runner.get_loop()


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> str:
    """The toy's weights. No setting of a request may come from its generation_config.json."""
    directory = shutil.copytree(WEIGHTS, tmp_path_factory.mktemp("toy") / "model")
    file = directory / "generation_config.json"
    own = json.loads(file.read_text()) | {"temperature": 0.01, "top_k": 1, "max_new_tokens": 2}
    file.write_text(json.dumps(own))
    return str(directory)


def make(path: Path, seed: int, std: float = 1.0, **settings) -> str:
    """An adapter of random matrices, large enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    torch.manual_seed(seed)
    model = get_peft_model(base, LoraConfig(**{"r": 8, "target_modules": "all-linear"} | settings))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("runs")
    found = {
        "a": make(root / "a" / "adapter" / "sft", seed=1),
        "b": make(root / "b" / "adapter" / "sft", seed=2),
        # the largest rank stands in the pattern; the engine has to be started for it
        "pattern": make(root / "c" / "sft", 3, rank_pattern={"q_proj": 20}, alpha_pattern={"q_proj": 5}),
        "zeros": make(root / "d" / "sft", seed=4, std=0.0),
    }
    wrapped = Path(shutil.copytree(found["a"], root / "wrapped" / "sft"))
    _rename(wrapped / "adapter_model.safetensors")
    return found | {"wrapped": str(wrapped)}


def _rename(file: Path) -> None:
    """Names of modules as a multimodal wrapper has them."""
    from safetensors.torch import load_file, save_file

    matrices = load_file(file)
    save_file(
        {name.replace("model.layers", "language_model.layers"): m for name, m in matrices.items()}, file
    )


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def model(directory, adapters, loop, told):
    async def start():
        from pipeline.inference.vllm_model import VllmModel

        notices.send_to(told.append)
        toy = Model(path=directory, dtype="float32")
        return VllmModel(toy, directory, VLLM(max_num_seqs=64), list(adapters.values()))

    model = loop.run_until_complete(start())
    yield model
    model.close()


@pytest.fixture(scope="module")
def complete(model, loop):
    def call(messages, sampling, seed=1):
        return loop.run_until_complete(model.complete(messages, sampling, seed=seed, adapter=None))

    return call


def test_base_and_adapter_requests_of_one_batch_keep_apart(model, adapters, loop):
    greedy = Sampling(16, temperature=0)

    async def ask(*adapters):
        calls = [
            model.complete([user(f"How can I repair {thing}?")], greedy, seed=1, adapter=a)
            for _ in range(4)
            for thing in THINGS
            for a in adapters
        ]
        return [c.text for [c] in await asyncio.gather(*calls)]

    alone = loop.run_until_complete(ask(None))
    mixed = loop.run_until_complete(ask(None, adapters["a"]))
    again = loop.run_until_complete(
        ask(None, adapters["a"])
    )  # now the adapter is in its slot from the first token on
    for base, adapted in ((mixed[::2], mixed[1::2]), (again[::2], again[1::2])):
        agree = sum(a == b for a, b in zip(alone, base, strict=True))
        assert agree >= 0.8 * len(alone), "batches differ in their last bits, but hardly ever in what is said"
        assert not set(base) & set(adapted)


def test_all_n_samples_come_back_and_differ(complete):
    samples = complete(ASK, Sampling(24, n=20))
    assert len(samples) == 20
    assert len({s.text for s in samples}) > 5
    assert all(0 < s.completion_tokens <= 24 and s.finish_reason in ("stop", "length") for s in samples)


def test_a_sample_is_a_function_of_its_seed(complete):
    assert complete(ASK, Sampling(24), seed=7) == complete(ASK, Sampling(24), seed=7)
    assert len({complete(ASK, Sampling(24), seed=s)[0].text for s in range(6)}) > 1


@pytest.mark.parametrize("limit", range(1, 12))
def test_texts_are_those_of_the_detokenizer_of_vllm(model, complete, monkeypatch, limit):
    drawn = Sampling(limit, n=8, temperature=2.0)  # hot, so that odd tokens come too
    ours = complete(ASK, drawn, seed=limit)
    monkeypatch.setattr(model, "_can_decode", False)
    assert complete(ASK, drawn, seed=limit) == ours


def test_a_prefill_continues_the_same_turn(complete):
    greedy = Sampling(24, temperature=0)
    [whole] = complete(ASK, greedy)
    words = whole.text.split(" ")
    start = " ".join(words[:4])
    [rest] = complete([*ASK, assistant(start)], greedy)
    assert start + rest.text[: len(whole.text) - len(start) - 12] in whole.text
    assert rest.prompt_tokens > whole.prompt_tokens
    assert start not in rest.text


def test_an_over_long_prompt_fails_its_row_only(complete):
    with pytest.raises(RowFailed, match="prompt too long"):
        complete([user("word " * 1200)], Sampling(24))
    assert complete(ASK, Sampling(4))


# -- sampling


def test_every_setting_of_a_request_is_honored_and_none_comes_from_the_models_file(model, loop):
    def ask(**settings):
        async def asked():
            calls = (
                model.complete(
                    [user(f"How can I repair {thing}?")], Sampling(24, **settings), seed=3, adapter=None
                )
                for thing in THINGS[:4]
            )
            return [completion for [completion] in await asyncio.gather(*calls)]

        return loop.run_until_complete(asked())

    greedy = ask(temperature=0)
    texts = [completion.text for completion in greedy]
    assert max(completion.completion_tokens for completion in greedy) > 2
    for same in ({"top_k": 1}, {"min_p": 1.0}, {"top_p": 1e-6}):
        assert [completion.text for completion in ask(temperature=1, **same)] == texts
    for different in ({"temperature": 2}, {"temperature": None, "repetition_penalty": 2.0}):
        assert [completion.text for completion in ask(**different)] != texts
    first = texts[0].split()[1]
    stopped = ask(temperature=0, stop=(f" {first}",))
    assert stopped[0].text == texts[0].partition(f" {first}")[0] != texts[0]
    assert not stopped[0].is_cut


def test_a_completion_begins_with_the_token_of_its_rank(complete):
    turn = [*ASK, assistant("First,")]

    def ask(tokens: int, **settings):
        [found] = complete(turn, Sampling(tokens, temperature=0, **settings), seed=3)
        return found

    greedy, ranked = ask(12), [ask(12, first_rank=rank) for rank in range(1, 6)]
    alone = [ask(1, first_rank=rank) for rank in range(1, 6)]
    assert ranked[0].text == greedy.text and ranked[0].completion_tokens == greedy.completion_tokens
    assert len({found.text for found in ranked}) == 5, "five ranks are five beginnings"
    for whole, first in zip(ranked, alone, strict=True):
        assert whole.text.startswith(first.text) and first.completion_tokens == 1


# -- adapters


@pytest.fixture(scope="module")
def answers(model, adapters, loop) -> dict[str | None, str]:
    """The greedy answers of base and adapters, asked for in one batch."""

    async def asked():
        greedy = Sampling(12, temperature=0)
        return await asyncio.gather(
            *(model.complete(ASK, greedy, seed=1, adapter=one) for one in (None, *adapters.values()))
        )

    found = loop.run_until_complete(asked())
    return {name: one.text for name, [one] in zip((None, *adapters), found, strict=True)}


def test_two_adapters_in_directories_of_the_same_name_work_side_by_side(answers):
    assert len({answers[None], answers["a"], answers["b"]}) == 3


def test_ranks_of_single_modules_count_for_the_engine(answers):
    assert answers["pattern"] not in (answers[None], answers["a"], answers["b"])


def test_adapters_that_change_nothing_are_told_once_each(answers, adapters, told):
    assert answers["zeros"] == answers["wrapped"] == answers[None]
    without_effect = [notice for notice in told if "changes nothing in the engine" in notice]
    assert len(without_effect) == 2
    assert adapters["zeros"] in without_effect[0] and adapters["wrapped"] in without_effect[1]


# -- quantized weights


def test_what_is_said_of_quantized_weights_is_in_the_installed_vllm():
    from vllm.model_executor.layers import quantization

    from pipeline.inference import vllm as engine

    known = {*quantization.QUANTIZATION_METHODS, "auto-round"}
    online = {name for name in known if name.startswith(("fp8_per", "int8_per", "nvfp4_per"))}
    same = {
        "auto_awq",
        "awq_marlin",
        "auto_gptq",
        "gptq_marlin",
        "gpt_oss_mxfp4",
        "moe_wna16",
        "online",
        "experts_int8",
    }
    left = known - online - same - set(quantization.DEPRECATED_QUANTIZATION_METHODS)
    assert left == set(engine._QUANTIZED)
    for name in left - {"auto-round"}:
        import torch

        dtypes = quantization.get_quantization_config(name).get_supported_act_dtypes
        try:
            found = dtypes()
        except TypeError:  # not a class method everywhere
            found = dtypes(None)
        assert (torch.float32 in found) == (name in engine._QUANTIZED_IN_FLOAT32), name
