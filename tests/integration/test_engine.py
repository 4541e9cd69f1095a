"""The real vLLM engine behind `complete`: one start, every promise of `Chat`."""

import asyncio

import pytest

from pipeline.chat import Sampling, assistant, user
from pipeline.errors import RowFailed
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)
ASK = [user("How can I repair a bicycle?")]


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:  # at its end it waits for the engine's own tasks
        yield runner.get_loop()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> str:
    """An adapter of random matrices large enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model(adapter, loop):
    async def start():
        from pipeline.inference.vllm import VllmModel

        toy = Model(path="toy", dtype="float32")
        return VllmModel(toy, str(WEIGHTS), VLLM(max_num_seqs=64), [adapter])

    model = loop.run_until_complete(start())
    yield model
    model.close()


@pytest.fixture(scope="module")
def complete(model, loop):
    def call(messages, sampling, seed=1):
        return loop.run_until_complete(model.complete(messages, sampling, seed=seed, adapter=None))

    return call


def test_base_and_adapter_requests_of_one_batch_keep_apart(model, adapter, loop):
    greedy = Sampling(16, temperature=0)
    questions = [
        f"How can I repair {thing}?"
        for thing in ("a bicycle", "a boat", "a phone", "a coat", "a camera", "a car")
    ]

    async def ask(*adapters):
        calls = [
            model.complete([user(q)], greedy, seed=1, adapter=a)
            for _ in range(4)
            for q in questions
            for a in adapters
        ]
        return [c.text for [c] in await asyncio.gather(*calls)]

    alone = loop.run_until_complete(ask(None))
    mixed = loop.run_until_complete(ask(None, adapter))
    again = loop.run_until_complete(
        ask(None, adapter)
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
