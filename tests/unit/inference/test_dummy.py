"""The model-free engine: everything it does follows from the request's seed."""

import asyncio
import time

import pytest

from pipeline.chat import Sampling, user
from pipeline.config import load
from pipeline.errors import RowFailed, UserError
from pipeline.inference.dummy import Dummy, DummyModel
from tests import scripted


def ask(model: DummyModel, seed: int, n: int = 1, max_tokens: int = 100):
    return asyncio.run(
        model.complete([user("how are you")], Sampling(max_tokens, n=n), seed=seed, adapter=None)
    )


def test_the_same_seed_says_the_same_and_another_another():
    model = DummyModel(Dummy())
    assert ask(model, 1) == ask(model, 1)
    assert len({ask(model, seed)[0].text for seed in range(100)}) == 100


def test_samples_of_one_request_differ():
    first, second = ask(DummyModel(Dummy()), 7, n=2)
    assert first.text != second.text
    assert second == ask(DummyModel(Dummy()), 8)[0]


def test_lengths_fill_the_range_and_are_cut():
    model = DummyModel(Dummy(tokens=(3, 6)))
    answers = [ask(model, seed)[0] for seed in range(200)]
    assert {answer.completion_tokens for answer in answers} == {3, 4, 5, 6}
    assert all(
        answer.completion_tokens == len(answer.text.split()) and answer.finish_reason == "stop"
        for answer in answers
    )
    [cut] = ask(model, 0, max_tokens=2)
    assert (cut.completion_tokens, cut.finish_reason) == (2, "length")


def test_the_share_of_failures_is_what_was_asked_for_and_always_the_same_requests():
    def fails(seed: int) -> bool:
        try:
            ask(model, seed)
        except RowFailed:
            return True
        return False

    model = DummyModel(Dummy(failures=0.2))
    failed = [fails(seed) for seed in range(1000)]
    assert 150 < sum(failed) < 250
    assert failed == [fails(seed) for seed in range(1000)]


def test_latency_is_kept_and_shared_by_the_places_of_the_batch():
    async def many():
        model = DummyModel(Dummy(latency_s=0.02, max_num_seqs=4))
        await asyncio.gather(
            *(model.complete([user("x")], Sampling(1), seed=seed, adapter=None) for seed in range(40))
        )

    started = time.monotonic()
    asyncio.run(many())
    assert (
        time.monotonic() - started > 0.1
    )  # 40 requests in 4 places at 0.02 s each; 0.02 s if the places were not kept


def test_every_text_says_whose_it_is():
    assert ask(DummyModel(Dummy()), 5)[0].text.startswith("dummy-")


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ({"tokens": [5, 2]}, "min <= max"),
        ({"failures": 1.5}, "engine.failures"),
        ({"latency_s": -1}, "engine.latency_s"),
        ({"actors": [3, 1]}, "min <= max"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, engine, told):
    import yaml

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(scripted.tree(tmp_path / "run", engine={"kind": "dummy", **engine})))
    with pytest.raises(UserError, match=told):
        load(file)
