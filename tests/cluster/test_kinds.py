"""Engines and trainers that ask for a kind of GPU run where Ray has it, on nodes that say what they have."""

import sys

import pytest

from tests.chaos.harness import write_job
from tests.cluster.machines import setbacks

pytestmark = pytest.mark.timeout(300)

# Stand-ins for an engine and a trainer: each records its node. Ray schedules by what the nodes claim to have.
PLACED = """
import sys, ray
from pathlib import Path
from ray.train import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from pipeline.data.store import Store
from pipeline.inference.beside import Place, standing
from pipeline.inference.dummy import Dummy
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from pipeline.inference.vllm import VLLM
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.runtime.nodes import nodes
from pipeline.schema import INSTRUCTIONS
from pipeline.settings.base import Model
from pipeline.training.config import SFT
from pipeline.training.workers import _scaling
from tests import scripted

place = Path(sys.argv[1])

def was_here(name):
    with open(place / name, "a") as file:
        print(ray.util.get_node_ip_address(), file=file)

def training(name):
    def train():
        was_here(name)
    return train

class Spec(ModelSpec):
    def open(self):
        was_here(self.model_dir)
        return Dummy().open(self.model, "", ())

async def recipe(row, chat):
    return {"status": "ok"}

ray.init(logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
print(*nodes(), sep="; ")
for kind in ("H100", "L40S"):
    store = Store(str(place / kind), "mistakes", MISTAKES)
    store.open({})
    store.write_work([scripted.instruction(f"ask {i}", id=f"r{i}") for i in range(16)], INSTRUCTIONS, block_rows=8)
    spec = Spec(Model(path="toy"), f"engine-{kind}", VLLM(num_gpus=1, accelerator_type=kind))
    list(run_recipes([Job(recipe, store)], spec, seed=0, label="generate"))
    beside = Spec(Model(path="toy"), f"beside-{kind}", VLLM(num_gpus=1, accelerator_type=kind))
    [node] = [node for node in nodes() if kind in node.kinds]
    with standing({beside: [Place(node.address, 1, 1, kind)]}) as engines:
        engines[beside].open()
    train = SFT(use_gpu=True, accelerator_type=kind)
    config = RunConfig(name=kind, storage_path=str(place / "train"))
    DataParallelTrainer(training(f"trainer-{kind}"), scaling_config=_scaling(train), run_config=config).fit()
"""


@pytest.fixture
def machines(network):
    """Two machines with a GPU each, of different kinds."""
    found = {kind: network.add(cpus=2, gpus=1, kind=kind) for kind in ("H100", "L40S")}
    yield found
    for machine in found.values():
        network.lose(machine)


def test_each_runs_on_the_kind_that_it_asks_for(network, machines, tmp_path):
    code, said = network.head.run(sys.executable, "-c", PLACED, str(tmp_path))
    assert code == 0, said
    for kind, machine in machines.items():
        assert f"{machine.address} (2 CPU, 1 {kind} GPU)" in said
        for what in ("engine", "beside", "trainer"):
            places = (tmp_path / f"{what}-{kind}").read_text().split()
            assert set(places) == {machine.address}, f"{what} for {kind}"


def test_a_kind_that_the_cluster_has_not_is_refused(network, machines, source, tmp_path):
    job = write_job(
        tmp_path,
        source,
        engine={"kind": "vllm", "num_gpus": 1, "accelerator_type": "A100"},
        model={"path": "toy"},
    )
    code, said = network.head.run(*setbacks("plan", str(job.config)))
    assert code == 2 and "generate takes 1 engines with 1 CPU and 1 GPU (A100) each" in said, said
