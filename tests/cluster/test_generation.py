"""Generation over several machines: what is added is used, what is lost costs nothing, and what is not the
same everywhere is told."""

import sys

import pytest

from tests import tiny
from tests.chaos.harness import assert_equals_undisturbed, write_job
from tests.cluster.machines import Network, setbacks

pytestmark = pytest.mark.timeout(400)
ACTOR = "ray::MapWorker"


def test_a_machine_that_is_added_is_used_and_one_that_is_lost_costs_nothing(
    network, workers, source, tmp_path, undisturbed
):
    """Two engines where one was, when there is room for a second; then the machine with the first one is
    gone."""
    [first] = workers(1)
    settings = {"actors": [1, 2], "rows_per_commit": 16, "max_num_seqs": 12}
    job = write_job(tmp_path, source, latency_s=0.7, engine=settings)
    with open(tmp_path / "output.txt", "w") as output:
        driver = network.head.start(*setbacks("generate", str(job.config)), output=output)

    def until(condition, what: str) -> None:
        Network.until(lambda: condition() or driver.poll() is not None, what, 120)
        assert driver.poll() is None, f"ended before {what}: {(tmp_path / 'output.txt').read_text()}"

    until(lambda: job.committed() >= 3, "blocks were committed")
    assert first.has(ACTOR)
    assert network.head.has("ray::Counter"), (
        "what all engines report to is beside the driver, where no other machine's loss ends it"
    )
    second = network.add()
    until(lambda: second.has(ACTOR), "the added machine was used")
    before = job.committed()
    until(lambda: job.committed() >= before + 4, "both were at work")
    network.lose(first)
    assert driver.wait(240) == 0, (tmp_path / "output.txt").read_text()
    assert_equals_undisturbed(job, undisturbed)


def refused(network, job) -> str:
    code, said = network.head.run(*setbacks("generate", str(job.config)))
    assert code == 2 and "Traceback" not in said, said
    return said.splitlines()[-1]


def test_what_only_one_machine_has_is_told_by_name(network, workers, source, tmp_path):
    workers(1)
    only_here = tmp_path / "here"
    model = tiny.save(only_here / "model")
    elsewhere = network.add(hidden=[str(only_here)])
    real = {"model": {"path": model, "dtype": "float32"}, "engine": {"kind": "vllm"}}
    job = write_job(tmp_path / "model", source, **real)
    assert (
        f"model.path = {model}: does not exist on node {elsewhere.address}; use a path that every node sees"
        in refused(network, job)
    )
    job = write_job(tmp_path / "run", source, run=only_here / "run")
    assert (
        f"run_dir = {only_here}/run: is another directory, or does not exist, on node {elsewhere.address}"
        in refused(network, job)
    )


def test_what_the_cluster_has_not_is_told_at_once(network, workers, source, tmp_path):
    [only] = workers(1)
    job = write_job(tmp_path, source, engine={"actors": 3})
    wanted = (
        f"engine.actors: generate takes 3 engines with 1 CPU each, and the Ray cluster ({only.address} (1"
        " CPU)) has room for 1"
    )
    assert wanted in refused(network, job)
    code, said = network.head.run(*setbacks("plan", str(job.config)))
    assert code == 2 and wanted in said and f"1 nodes take work: {only.address} (1 CPU)" in said


# A stand-in for an engine with a GPU: Ray gives out what a node says it has, and knows nothing of CUDA.
GPUS = """
import sys, time, ray
from pipeline.inference.dummy import Dummy
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.schema import INSTRUCTIONS
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.data.store import Store
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from tests import scripted

class Spec(ModelSpec):
    def open(self):
        return Dummy().open(self.model, "", ())

async def recipe(row, chat):
    return {"status": "ok"}

ray.init(logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
store = Store(sys.argv[1], "mistakes", MISTAKES)
store.open({})
store.write_work([scripted.instruction(f"ask {i}", id=f"r{i}") for i in range(64)], INSTRUCTIONS, block_rows=8)
spec = Spec(Model(path="toy"), "", VLLM(num_gpus=1))
list(run_recipes([Job(recipe, store)], spec, seed=0, label="generate"))
started = time.monotonic()
group = ray.util.placement_group([{"GPU": 1}])
assert group.wait(60)
print(f"trainers got the GPU after {time.monotonic() - started:.1f} s")
"""


def test_the_pool_gives_its_gpus_back(network, tmp_path):
    """To a placement group of trainers on a machine where there is no other GPU."""
    machine = network.add(cpus=2, gpus=1)
    try:
        code, said = network.head.run(sys.executable, "-c", GPUS, str(tmp_path / "run"))
        assert code == 0, said
        assert float(said.split("after ")[1].split()[0]) < 30, said
    finally:
        network.lose(machine)
