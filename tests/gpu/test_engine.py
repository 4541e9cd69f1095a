"""The vLLM engine on a GPU: two starts, the second with compiled graphs in the memory of the first."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import pytest

from pipeline.chat import Sampling, assistant, user
from pipeline.errors import RowFailed
from pipeline.inference.base import EngineDead
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS
from tests.gpu.processes import cores
from tests.integration.test_engine import make

pytestmark = pytest.mark.timeout(120)
THINGS = ("a bicycle", "a boat", "a phone", "a coat", "a camera", "a car")
VERBS = ("repair", "clean", "paint", "sell")
QUESTIONS = [f"How can I {verb} {thing}?" for verb in VERBS for thing in THINGS]
ASK = [user(QUESTIONS[0])]
GREEDY = Sampling(24, temperature=0)
# More than half of the memory: two engines at once would not fit. With larger blocks there are fewer to count.
ENGINE = {"num_gpus": 1, "gpu_memory_utilization": 0.6, "max_num_seqs": 64}
BLOCKS = {"block_size": 64}


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:  # at its end it waits for the engine's own tasks
        yield runner.get_loop()


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list[str]:
    """Two whose directories have the same name."""
    root = tmp_path_factory.mktemp("runs")
    return [make(root / run / "adapter" / "sft", seed, std=0.5) for run, seed in (("a", 1), ("b", 2))]


@dataclass
class Running:
    """The engine of the moment."""

    model: object = None

    def open(self, loop, adapters=(), **options) -> float:
        """Seconds of its start."""

        async def opened():
            toy = Model(path=str(WEIGHTS), dtype="bfloat16")
            return VLLM(**ENGINE, options=BLOCKS | options).open(toy, str(WEIGHTS), adapters)

        began = time.monotonic()
        self.model = loop.run_until_complete(opened())
        return time.monotonic() - began

    def close(self) -> None:
        if self.model is not None:
            self.model.close()
        self.model = None


@pytest.fixture(scope="module")
def running(loop, adapters, measured):
    running = Running()
    seconds = running.open(loop, adapters, enforce_eager=True)
    measured("engine, eager: seconds of its start", seconds)
    yield running
    running.close()


@pytest.fixture(scope="module")
def ask(running, loop):
    """Completions of requests (messages, sampling, seed, adapter), asked for at once."""

    def ask(*requests) -> list:
        async def asked():
            calls = (
                running.model.complete(messages, sampling, seed=seed, adapter=adapter)
                for messages, sampling, seed, adapter in requests
            )
            return await asyncio.gather(*calls)

        return loop.run_until_complete(asked())

    return ask


def texts(answers) -> list[str]:
    return [one.text for [one] in answers]


def share(found: list[str], expected: list[str]) -> float:
    return sum(one == other for one, other in zip(found, expected, strict=True)) / len(expected)


def greedy_of(adapter) -> list[tuple]:
    return [([user(question)], GREEDY, 1, adapter) for question in QUESTIONS]


@pytest.fixture(scope="module")
def by_transformers(running) -> list[str]:
    """The greedy answers of transformers on the CPU, in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(WEIGHTS), AutoTokenizer.from_pretrained(WEIGHTS)
    found = []
    for question in QUESTIONS:
        ids = torch.tensor([running.model.encode([user(question)])])
        [out] = model.generate(ids, do_sample=False, max_new_tokens=GREEDY.max_tokens)
        found.append(tokenizer.decode(out[ids.shape[1] :], skip_special_tokens=True))
    return found


def test_greedy_answers_are_nearly_those_of_transformers(ask, by_transformers, measured):
    found = texts(ask(*greedy_of(None)))
    equal = share(found, by_transformers)
    measured("engine, eager, bfloat16, greedy: share of answers equal to transformers' in float32", equal)
    assert len(set(by_transformers)) > len(QUESTIONS) / 2
    assert equal >= 0.6


def test_seeds_decide_texts_in_any_batch(ask, measured):
    def requests(questions):
        return [([user(q)], Sampling(24), QUESTIONS.index(q), None) for q in questions]

    first = texts(ask(*requests(QUESTIONS)))
    again = texts(ask(*requests(QUESTIONS)))
    backwards = texts(ask(*requests(QUESTIONS[::-1])))[::-1]
    alone = [text for q in QUESTIONS[:8] for text in texts(ask(*requests([q])))]
    others = [([user(q)], Sampling(24), QUESTIONS.index(q) + 100, None) for q in QUESTIONS]
    equal = {
        "the same batch": share(again, first),
        "another order": share(backwards, first),
        "alone": share(alone, first[:8]),
    }
    other_seeds = share(texts(ask(*others)), first)
    for name, value in equal.items():
        measured(f"engine, bfloat16, same seed, {name}: share of equal texts", value)
    measured("engine, bfloat16, other seeds: share of equal texts", other_seeds)
    assert other_seeds < 0.5
    assert min(equal.values()) >= 0.7


def test_all_n_samples_come_back_and_differ(ask):
    [samples] = ask((ASK, Sampling(24, n=20), 1, None))
    assert len(samples) == 20
    assert len({sample.text for sample in samples}) > 5
    assert all(0 < sample.completion_tokens <= 24 for sample in samples)


def test_a_prefill_continues_the_same_turn(ask):
    [whole] = texts(ask((ASK, GREEDY, 1, None)))
    start = " ".join(whole.split(" ")[:4])
    [rest] = texts(ask(([*ASK, assistant(start)], GREEDY, 1, None)))
    assert start + rest[: len(whole) - len(start) - 12] in whole
    assert start not in rest


def test_a_text_ends_before_its_stop_string(ask):
    [whole] = texts(ask((ASK, GREEDY, 1, None)))
    word = f" {whole.split()[1]}"
    [[stopped]] = ask((ASK, Sampling(24, temperature=0, stop=(word,)), 1, None))
    assert stopped.text == whole.partition(word)[0] != whole
    assert not stopped.is_cut


def test_an_over_long_prompt_fails_its_row_only(ask):
    with pytest.raises(RowFailed, match="prompt too long"):
        ask(([user("word " * 1200)], GREEDY, 1, None))
    assert texts(ask((ASK, GREEDY, 1, None)))


def test_adapters_of_one_name_keep_apart_from_each_other_and_from_the_base(ask, adapters, measured):
    alone = texts(ask(*greedy_of(None)))
    whose = (None, *adapters)
    mixed = texts(ask(*(one for each in zip(*map(greedy_of, whose), strict=True) for one in each)))
    base, a, b = (mixed[number::3] for number in range(3))
    measured(
        "engine, base beside adapters in one batch: share of texts equal to those alone", share(base, alone)
    )
    assert share(base, alone) >= 0.8
    for one, other in ((a, base), (b, base), (a, b)):
        assert share(one, other) < 0.3


# -- in this order, at the end: the engine of the tests above is closed, and the next one is killed


def used_gib() -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def test_a_closed_engine_leaves_its_memory_to_the_next(running, loop, ask, by_transformers, measured):
    """Which compiles, as engines do by default."""
    before = used_gib()
    running.close()
    after = used_gib()
    measured("engine: GiB in use before it closes, and right after", f"{before:.1f}, {after:.1f}")
    measured("engine, compiled: seconds of its start", running.open(loop))
    equal = share(texts(ask(*greedy_of(None))), by_transformers)
    measured("engine, compiled, greedy: share of answers equal to transformers' in float32", equal)
    assert equal >= 0.6
    assert after < before / 2


def test_requests_of_a_killed_engine_learn_that_it_is_dead(running, loop):
    found, long = cores(), Sampling(900, temperature=2)

    async def killed() -> list:
        calls = [
            asyncio.ensure_future(running.model.complete(ASK, long, seed=seed, adapter=None))
            for seed in range(8)
        ]
        await asyncio.sleep(0.05)
        for core in found:
            os.kill(core.pid, signal.SIGKILL)
        await asyncio.wait(calls, timeout=60)
        late = running.model.complete(ASK, GREEDY, seed=1, adapter=None)
        return await asyncio.gather(*calls, asyncio.wait_for(late, 60), return_exceptions=True)

    assert found
    *outcomes, late = loop.run_until_complete(killed())
    assert isinstance(late, EngineDead)
    assert any(isinstance(one, EngineDead) for one in outcomes)
    assert all(isinstance(one, (EngineDead, list)) for one in outcomes)
