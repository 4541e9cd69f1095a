"""The real vLLM engine begins a completion with the token of a rank."""

import asyncio

import pytest

from pipeline.chat import Sampling, assistant, user
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)
TURN = [user("How can I repair a bicycle?"), assistant("First,")]


def test_a_completion_begins_with_the_token_of_its_rank():
    async def run():
        model = VLLM(max_num_seqs=16).open(Model(path="toy", dtype="float32"), str(WEIGHTS), ())

        async def ask(tokens: int, **settings):
            [found] = await model.complete(
                TURN, Sampling(tokens, temperature=0, **settings), seed=3, adapter=None
            )
            return found

        try:
            greedy = await ask(12)
            return (
                greedy,
                [await ask(12, first_rank=rank) for rank in range(1, 6)],
                [await ask(1, first_rank=rank) for rank in range(1, 6)],
            )
        finally:
            model.close()

    greedy, ranked, alone = asyncio.run(run())
    assert ranked[0].text == greedy.text and ranked[0].completion_tokens == greedy.completion_tokens
    assert len({found.text for found in ranked}) == 5, "five ranks are five beginnings"
    for whole, first in zip(ranked, alone, strict=True):
        assert whole.text.startswith(first.text) and first.completion_tokens == 1
