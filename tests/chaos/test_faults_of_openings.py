"""Engines that do not start at once: memory that is not free yet, a hub that is busy."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.chat import Sampling, user
from pipeline.data.store import Store
from pipeline.errors import RunFailed
from pipeline.inference.beside import Place, standing
from pipeline.inference.dummy import Dummy
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.runtime.session import ray_session
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model
from tests import scripted


@dataclass(frozen=True)
class Reluctant(ModelSpec):
    """Does not open the first times. place: a file with a line for each."""

    place: str = ""
    fails: int = 0

    def open(self):
        tries = Path(self.place)
        with tries.open("a") as file:
            file.write("tried\n")
        if len(tries.read_text().splitlines()) <= self.fails:
            raise RunFailed("no memory on the GPU")
        return super().open()


def reluctant(place: Path, fails: int) -> Reluctant:
    return Reluctant(Model(path="any/model"), "", Dummy(), place=str(place / "tries"), fails=fails)


async def recipe(row, chat):
    [answer] = await chat([user(row["instruction"])], Sampling(8), step="induce")
    return {"response": answer.text, "status": "ok"}


def generate(place: Path, fails: int) -> Store:
    store = Store(str(place), MISTAKES.name, MISTAKES)
    rows = [scripted.instruction(f"ask {number}", id=f"r{number}") for number in range(8)]
    store.write_work(rows, INSTRUCTIONS, block_rows=4)
    with ray_session(str(place)):
        list(run_recipes([Job(recipe, store)], reluctant(place, fails), seed=0, label="generate"))
    return store


def test_an_engine_that_does_not_start_twice_costs_nothing_but_time(cluster, tmp_path, capsys):
    assert generate(tmp_path, fails=2).finish()["status"] == {"ok": 8}
    assert len((tmp_path / "tries").read_text().splitlines()) == 3


@pytest.mark.long
def test_an_engine_that_never_starts_ends_the_run_with_its_reason(cluster, tmp_path):
    with pytest.raises(RunFailed, match="no memory on the GPU; tried 3 times"):
        generate(tmp_path, fails=99)
    assert len((tmp_path / "tries").read_text().splitlines()) == 3


@pytest.mark.parametrize("fails", [2, pytest.param(99, marks=pytest.mark.long)])
def test_an_engine_beside_the_pool_is_started_again_too(cluster, tmp_path, fails):
    spec = reluctant(tmp_path, fails)
    with (
        ray_session(str(tmp_path)),
        standing({spec: [Place(cluster.head_node.node_ip_address, 1, 0)]}) as found,
    ):
        if fails == 99:
            with pytest.raises(RunFailed, match="no memory on the GPU; tried 3 times"):
                found[spec].open()
            return
        model = found[spec].open()
        told = asyncio.run(model.complete([user("Hello")], Sampling(4), seed=1, adapter=None))
        assert told[0].text
