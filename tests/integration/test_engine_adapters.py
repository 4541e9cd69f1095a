"""Adapters of users in the real vLLM engine: names, ranks, and adapters without an effect."""

import asyncio
import shutil
from pathlib import Path

import pytest

from pipeline.chat import Sampling, user
from pipeline.inference import notices
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)
ASK = [user("How can I repair a bicycle?")]
GREEDY = Sampling(12, temperature=0)


@pytest.fixture(scope="module")
def loop():
    with asyncio.Runner() as runner:  # at its end it waits for the engine's own tasks
        yield runner.get_loop()


def make(path: Path, seed: int, std: float = 0.3, **settings) -> str:
    """An adapter of random matrices large enough to change every answer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(WEIGHTS)
    model = get_peft_model(base, LoraConfig(**{"r": 8, "target_modules": "all-linear"} | settings))
    torch.manual_seed(seed)
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
def answers(adapters, loop, told) -> dict[str | None, str]:
    """The greedy answers of base and adapters, asked for in one batch."""

    async def run():
        from pipeline.inference.vllm import VLLM, VllmModel

        notices.send_to(told.append)
        toy = Model(path="toy", dtype="float32")
        model = VllmModel(toy, str(WEIGHTS), VLLM(max_num_seqs=16), list(adapters.values()))
        try:
            asked = {None: None, **adapters}
            found = await asyncio.gather(
                *(model.complete(ASK, GREEDY, seed=1, adapter=adapter) for adapter in asked.values())
            )
            return {name: completion.text for name, [completion] in zip(asked, found, strict=True)}
        finally:
            model.close()

    return loop.run_until_complete(run())


def test_two_adapters_in_directories_of_the_same_name_work_side_by_side(answers):
    assert len({answers[None], answers["a"], answers["b"]}) == 3


def test_ranks_of_single_modules_count_for_the_engine(answers):
    assert answers["pattern"] not in (answers[None], answers["a"], answers["b"])


def test_adapters_that_change_nothing_are_told_once_each(answers, adapters, told):
    assert answers["zeros"] == answers["wrapped"] == answers[None]
    assert len(told) == 2 and all("changes nothing in the engine" in notice for notice in told)
    assert adapters["zeros"] in told[0] and adapters["wrapped"] in told[1]
