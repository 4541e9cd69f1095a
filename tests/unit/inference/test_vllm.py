"""The vLLM engine's settings, what it says of its end, and its texts, without an engine."""

import asyncio
import os

import pytest

from pipeline.errors import UserError
from pipeline.inference import stall, vllm_start
from pipeline.inference.base import EngineDead, Served
from pipeline.inference.decoding import decode
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model


@pytest.mark.parametrize(
    "options, told",
    [
        ({"trust_remote_code": True}, "engine.options.trust_remote_code is fixed: code from model files"),
        ({"load_format": "pt"}, "engine.options.load_format is fixed: pickled weights"),
        ({"max_model_len": 9}, "engine.options.max_model_len: set model.max_length instead"),
        ({"tensor_parallel_size": 2}, "engine.options.tensor_parallel_size: set engine.num_gpus instead"),
        ({"config_format": "mistral"}, "engine.options.config_format is fixed: the model is read as"),
        ({"distributed_executor_backend": "ray"}, "fixed: engine.num_nodes decides it"),
        ({"pipeline_parallel_size": "2"}, "pipeline_parallel_size = '2': set a number of parts"),
        ({"pipeline_parallel_size": 2}, "an engine on CPUs has one part; remove it"),
        ({"quantisation": "fp8"}, "no such argument; write quantization"),
        ({"zzz": 1}, "no such argument; see vLLM's engine arguments"),
    ],
)
def test_an_option_that_is_not_one_is_refused(options, told):
    with pytest.raises(UserError) as refused:
        VLLM(options=options).check("engine")
    assert told in str(refused.value)


@pytest.mark.parametrize(
    "fields, told",
    [
        ({"num_nodes": 2}, "engine.num_nodes = 2: each node has equally many of the engine's GPUs; set"),
        ({"num_gpus": 9, "num_nodes": 2}, "engine.num_gpus, now 9, to a multiple of 2"),
        (
            {"num_gpus": 8, "num_nodes": 2, "options": {"pipeline_parallel_size": 3}},
            "pipeline_parallel_size = 3: each part takes equally many",
        ),
    ],
)
def test_nodes_that_cannot_share_an_engine_are_refused(fields, told):
    with pytest.raises(UserError) as refused:
        VLLM(**fields).check("engine")
    assert told in str(refused.value)


def test_an_engine_on_several_nodes_is_of_vllms_executor_for_ray():
    def parallel(**fields) -> tuple:
        engine = VLLM(num_gpus=8, **fields)
        engine.check("engine")
        given = vllm_start.arguments(
            Model(path="toy"), "toy", [], gpus=8, options=engine.given(), nodes=engine.num_nodes
        )
        return (
            given.tensor_parallel_size,
            given.pipeline_parallel_size,
            given.distributed_executor_backend,
        )

    assert parallel() == (8, 1, None)
    assert parallel(num_nodes=2) == (4, 2, "ray"), "layers are divided between nodes, a layer within one"
    assert parallel(num_nodes=2, options={"pipeline_parallel_size": 1}) == (8, 1, "ray")
    with pytest.raises(UserError, match="num_nodes = 2: this command serves from one machine"):
        VLLM(num_gpus=8, num_nodes=2).server(Model(path="toy"), "toy", {}, Served("m", "host", 1))


def test_gloo_finds_the_other_nodes(monkeypatch):
    for nodes, interface in ((1, "lo"), (2, None)):
        monkeypatch.setattr(os, "environ", {"PATH": ""})
        vllm_start.set_environment(8, 1, nodes=nodes)
        assert os.environ.get("GLOO_SOCKET_IFNAME") == interface


def test_options_reach_vllm_and_the_fingerprint():
    options = {"quantization": "fp8", "max_num_batched_tokens": 4096}
    engine = VLLM(options=options, max_num_seqs=8)
    engine.check("engine")
    assert engine.given() == {"gpu_memory_utilization": 0.9, "max_num_seqs": 8, **options}
    assert engine.determines() == {"options": options} and VLLM().determines() == {}


def test_a_gpu_engine_batches_as_vllm_finds_right_for_it():
    assert VLLM(num_gpus=1).given()["max_num_seqs"] is None
    assert (VLLM().given()["max_num_seqs"], VLLM().requests, VLLM(num_gpus=1).requests) == (256, 256, 1024)


@pytest.mark.parametrize("gpus, sampler", [(1, "0"), (0, None)])
def test_kernels_that_no_request_uses_are_not_compiled(monkeypatch, gpus, sampler):
    monkeypatch.setattr(os, "environ", {"PATH": ""})
    vllm_start.set_environment(gpus, 1)
    assert os.environ.get("VLLM_USE_FLASHINFER_SAMPLER") == sampler


LOGGED = "(EngineCore pid=7) ERROR 11-26 10:00:00 [core.py:12] "
REFERS = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
TRACEBACK = (
    "Process EngineCore:\n"
    "Traceback (most recent call last):\n"
    '  File "/usr/lib/python3.12/multiprocessing/process.py", line 314, in _bootstrap\n'
    "    self.run()\n"
    "    ^^^^^^^^^^\n"
    "ModuleNotFoundError: No module named 'torchvision'\n"
    "[rank0]:[W1126 10:00:00 ProcessGroupNCCL.cpp:1624] Warning: destroy_process_group() was not called\n"
)
MISSING = "ModuleNotFoundError: No module named 'torchvision'"


@pytest.mark.parametrize(
    "out, err, told",
    [
        ("", "", None),
        ("INFO 11-26 10:00:00 [core.py:1] ValueError: no\n", REFERS, None),
        (
            f"{LOGGED}Traceback (most recent call last):\n{LOGGED}ValueError: Free memory on device\n",
            TRACEBACK + REFERS,
            ("ValueError: Free memory on device", "out"),
        ),
        ("", f"{LOGGED}ValueError: Free memory\n{TRACEBACK}", ("ValueError: Free memory", "err")),
        (
            f"{LOGGED}torch.OutOfMemoryError: CUDA out of memory. Tried\n{LOGGED}{REFERS}",
            "",
            ("torch.OutOfMemoryError: CUDA out of memory. Tried", "out"),
        ),
        (f"{LOGGED}AssertionError\n", "", ("AssertionError", "out")),
        ("loading\n", TRACEBACK, (MISSING, "err")),
        ("", TRACEBACK + "Traceback (most recent call last):\n  raise error\n" + REFERS, (MISSING, "err")),
    ],
)
def test_the_cause_is_what_the_engines_process_wrote(tmp_path, monkeypatch, out, err, told):
    files = {"out": out, "err": err}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(vllm_start, "_OUTPUTS", [str(tmp_path / name) for name in files])
    found = told and f"{told[0]}; see {tmp_path / told[1]} on {os.uname().nodename}"
    assert vllm_start.last_words() == found
    refers, plain = RuntimeError(REFERS.strip()), ValueError("no such model")
    assert vllm_start.cause(refers, Model(path="toy")) == (found or str(refers))
    assert vllm_start.cause(plain, Model(path="toy")) == "no such model", "it refers to no other error"


def test_what_is_no_file_has_no_last_words(monkeypatch):
    monkeypatch.setattr(vllm_start, "_OUTPUTS", ["/dev/null", "/proc/self/fd/999999"])
    assert vllm_start.last_words() is None


def test_texts_are_decoded_in_one_call_as_token_by_token():
    from tokenizers.decoders import DecodeStream

    tokenizer, prompt = bytes_tokenizer(), "So: "
    asked = tokenizer(prompt)["input_ids"]
    for text in ("é 😀 naïve 日本語", "plain words", "¿señor? \ufffd", "  two  spaces", "😀", ""):
        tokens = tokenizer(text)["input_ids"] if text else []
        for end in range(len(tokens) + 1):
            stream = DecodeStream(ids=asked, skip_special_tokens=True)
            one_by_one = [stream.step(tokenizer.backend_tokenizer, token) for token in tokens[:end]]
            found = decode(tokenizer, asked, tokens[:end], skip_special=True)
            assert found == "".join(part or "" for part in one_by_one)


def bytes_tokenizer():
    """A token per byte of UTF-8."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


class Stalls:
    """An engine that answers every second request, and the others never."""

    def __init__(self):
        self.asked = 0

    async def generate(self, prompt, params, request, lora_request):
        self.asked += 1
        await asyncio.sleep(0.01 if self.asked % 2 else 3600)
        yield SimpleOutput()


class SimpleOutput:
    outputs = ()


def test_an_engine_that_answers_nothing_any_more_is_dead(monkeypatch):
    monkeypatch.setattr(stall, "LOOK_EVERY_S", 0.05)
    engine, watch = Stalls(), stall.Watch(0.3)

    async def ask():
        found = watch.outputs(engine.generate(None, None, "", lora_request=None))
        return [output async for output in found]

    async def both():
        return await asyncio.gather(ask(), ask(), return_exceptions=True)

    answered, dead = asyncio.run(both())
    assert len(answered) == 1 and isinstance(dead, EngineDead) and "no request" in str(dead.__cause__)


def test_an_engine_that_answers_others_is_not_dead(monkeypatch):
    monkeypatch.setattr(stall, "LOOK_EVERY_S", 0.05)
    watch = stall.Watch(1.0)

    async def answers(seconds):
        await asyncio.sleep(seconds)
        yield SimpleOutput()

    async def ask(seconds):
        return [output async for output in watch.outputs(answers(seconds))]

    async def all_of_them():
        return await asyncio.gather(*(ask(0.25 * number) for number in range(1, 6)))

    assert [len(outputs) for outputs in asyncio.run(all_of_them())] == [1] * 5
    assert watch.asking == 0
