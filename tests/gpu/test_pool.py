"""The pool of actors on one GPU: an engine is killed amid the rows, and vLLM's metrics are among Ray's."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

import pytest

from pipeline.chat import Sampling, user
from pipeline.data.store import Store
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from pipeline.inference.vllm import VLLM
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS
from tests import scripted
from tests.gpu.processes import cores

pytestmark = pytest.mark.timeout(180)  # two starts of an engine, and of Ray
ROWS, BLOCK_ROWS, CALLS = 160, 8, 8
ENGINE = VLLM(
    num_gpus=1, gpu_memory_utilization=0.2, max_num_seqs=8, options={"enforce_eager": True, "block_size": 64}
)


async def recipe(row, chat):
    """Several calls, one after the other, so that rows are in flight when the first ones are committed."""
    answers = [
        await chat([user(row["instruction"])], Sampling(32), step=f"induce-{number}")
        for number in range(CALLS)
    ]
    return {"response": answers[0][0].text, "status": "ok"}


class Watcher(threading.Thread):
    """Kills the engine when some rows are committed; reads Ray's metrics all along."""

    def __init__(self, store: Store, place: Path):
        super().__init__(daemon=True)
        self.store, self.place = store, place
        self.committed_when_killed, self.killed, self.metrics = 0, [], set()
        self.over = threading.Event()

    def run(self) -> None:
        import ray

        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        read = 0.0
        while not self.over.wait(0.02):
            committed = len(list(self.place.rglob("parts-*/*.parquet")))
            if committed and not self.killed:
                self.committed_when_killed = committed
                for core in cores():
                    os.kill(core.pid, signal.SIGKILL)
                    self.killed.append(core.pid)
            if time.monotonic() - read > 1:
                read = time.monotonic()
                with suppress(OSError), urlopen(address, timeout=5) as answer:
                    lines = answer.read().decode().splitlines()
                    self.metrics |= {line.split("{")[0] for line in lines if line.startswith("ray_")}


@pytest.fixture(scope="module")
def watched(cluster, tmp_path_factory, measured):
    """A run whose engine was killed, and what was seen meanwhile."""
    place = tmp_path_factory.mktemp("pool")
    store = Store(str(place), MISTAKES.name, MISTAKES)
    rows = [
        scripted.instruction(f"How can I repair {number} boats?", id=f"r{number}") for number in range(ROWS)
    ]
    store.write_work(rows, INSTRUCTIONS, block_rows=BLOCK_ROWS)
    spec = ModelSpec(Model(path=str(WEIGHTS), dtype="bfloat16"), str(WEIGHTS), ENGINE)
    watcher = Watcher(store, place)
    watcher.start()
    began = time.monotonic()
    try:
        list(run_recipes([Job(recipe, store)], spec, seed=0, label="generate"))
    finally:
        watcher.over.set()
        watcher.join()
    measured("pool: seconds, with two starts of the engine", time.monotonic() - began)
    measured("pool: blocks committed when the engine was killed", watcher.committed_when_killed)
    of_vllm = [name for name in watcher.metrics if name.startswith("ray_vllm_")]
    measured("pool: metrics of vLLM among Ray's", len(of_vllm))
    return store, watcher


def test_an_engine_killed_amid_the_rows_costs_no_row(watched):
    store, watcher = watched
    assert watcher.killed
    assert 0 < watcher.committed_when_killed < ROWS / BLOCK_ROWS
    assert store.finish()["status"] == {"ok": ROWS}


def test_the_metrics_of_vllm_are_among_those_of_ray(watched):
    _, watcher = watched
    assert "ray_setbacks_rows_total" in watcher.metrics, "Ray's metrics were read"
    assert {"ray_vllm_num_requests_running", "ray_vllm_generation_tokens_total"} <= watcher.metrics
