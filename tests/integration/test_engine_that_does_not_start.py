"""A real vLLM engine that does not start in a Ray worker: the message has the cause."""

import asyncio
import re
from pathlib import Path

import pytest

from pipeline.errors import RunFailed
from pipeline.inference.vllm import VLLM
from pipeline.inference.vllm_model import VllmModel
from pipeline.runtime import apart
from pipeline.runtime.session import ray_session
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)


async def start() -> None:
    VllmModel(Model(path=str(WEIGHTS)), str(WEIGHTS), VLLM(options={"num_gpu_blocks_override": 1}))


def opens() -> None:
    asyncio.run(start())


def test_the_error_of_the_engines_process_is_told(tmp_path):
    with ray_session(str(tmp_path)), pytest.raises(RunFailed) as failed:
        apart.call(opens)
    told = str(failed.value)
    assert "(ValueError: No available memory for the cache blocks. " in told and "root cause" not in told
    [place] = re.findall(r"; see (/.+/worker-[^/]+\.out) on ", told)
    assert "EngineCore" in Path(place).read_text()
