"""The real vLLM engine samples as it is asked, whatever generation_config.json says."""

import asyncio
import json
import shutil

import pytest

from pipeline.chat import Sampling, user
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

pytestmark = pytest.mark.timeout(300)
QUESTIONS = [f"How can I repair {thing}?" for thing in ("a bicycle", "a boat", "a phone", "a coat")]


def test_every_setting_of_a_request_is_honored_and_none_comes_from_the_models_file(tmp_path):
    directory = shutil.copytree(WEIGHTS, tmp_path / "model")
    file = directory / "generation_config.json"
    own = json.loads(file.read_text()) | {"temperature": 0.01, "top_k": 1, "max_new_tokens": 2}
    file.write_text(json.dumps(own))

    async def run():
        model = VLLM(max_num_seqs=16).open(Model(path=str(directory), dtype="float32"), str(directory), ())

        async def ask(**settings):
            calls = (
                model.complete([user(question)], Sampling(24, **settings), seed=3, adapter=None)
                for question in QUESTIONS
            )
            return [completion for [completion] in await asyncio.gather(*calls)]

        try:
            greedy = await ask(temperature=0)
            first = greedy[0].text.split()[1]
            return (
                greedy,
                [
                    await ask(temperature=1, top_k=1),
                    await ask(temperature=1, min_p=1.0),
                    await ask(temperature=1, top_p=1e-6),
                ],
                [
                    await ask(temperature=2),
                    await ask(temperature=None, repetition_penalty=2.0),
                ],
                (first, await ask(temperature=0, stop=(f" {first}",))),
            )
        finally:
            model.close()

    greedy, same, different, (first, stopped) = asyncio.run(run())
    texts = [completion.text for completion in greedy]
    assert max(completion.completion_tokens for completion in greedy) > 2
    for found in same:
        assert [completion.text for completion in found] == texts
    for found in different:
        assert [completion.text for completion in found] != texts
    assert stopped[0].text == greedy[0].text.partition(f" {first}")[0] != greedy[0].text
    assert not stopped[0].is_cut
