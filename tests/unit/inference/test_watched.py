"""A request of vLLM is ended in the engine too, however the call that waits for it ends."""

import asyncio
from contextlib import suppress

import pytest

from pipeline.inference.base import EngineDead
from pipeline.inference.stall import Watch


class Watching:
    """Requests of an engine, without the engine."""

    def __init__(self, stall_s: float = 60.0):
        self.watch = Watch(stall_s)
        self.ended: list[str] = []

    async def request(self, name: str, answers: int):
        """As vLLM's generator: it aborts its request if it is cancelled or closed."""
        try:
            for number in range(answers):
                yield number
            await asyncio.sleep(60)
        except (asyncio.CancelledError, GeneratorExit):
            self.ended.append(name)
            raise

    async def use(self, name: str, answers: int, fails: bool = False) -> None:
        async for _ in self.watch.outputs(self.request(name, answers)):
            if fails:
                raise ValueError("a text that cannot be decoded")


def test_a_request_whose_call_is_cancelled_or_fails_is_aborted():
    async def run() -> Watching:
        model = Watching()
        waiting = [asyncio.create_task(model.use(name, n)) for name, n in (("new", 0), ("begun", 2))]
        await asyncio.sleep(0.05)
        assert model.watch.asking == 2
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        with suppress(ValueError):
            await model.use("failed", 1, fails=True)
        await asyncio.sleep(0.05)  # a generator that nobody holds is closed by the loop
        return model

    model = asyncio.run(run())
    assert sorted(model.ended) == ["begun", "failed", "new"] and model.watch.asking == 0


def test_a_request_after_one_that_was_left_early_is_watched(monkeypatch):
    """The generator of a request that is left at its first answer is closed later."""
    monkeypatch.setattr("pipeline.inference.stall.LOOK_EVERY_S", 0.01)

    async def run() -> None:
        model = Watching(stall_s=0.05)

        async def first() -> int:
            async for number in model.watch.outputs(model.request("left", 3)):
                return number
            raise AssertionError

        await first()
        await model.use("stalled", 0)

    with pytest.raises(EngineDead):
        asyncio.run(asyncio.wait_for(run(), 5))


def test_an_engine_that_answers_nothing_is_dead_and_its_request_aborted(monkeypatch):
    monkeypatch.setattr("pipeline.inference.stall.LOOK_EVERY_S", 0.01)

    async def run() -> list[str]:
        model = Watching(stall_s=0.05)
        with pytest.raises(EngineDead):
            await model.use("stalled", 0)
        await asyncio.sleep(0.05)
        return model.ended

    assert asyncio.run(run()) == ["stalled"]
