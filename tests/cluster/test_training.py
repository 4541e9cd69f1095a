"""Training over two machines with gloo: a machine that is lost on the way costs nothing, one that is added is
used."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.chaos.harness import Job, write_job
from tests.cluster.machines import Network

pytestmark = pytest.mark.timeout(600)
ARM = "sft"
WORKER = "RayTrainWorker"
TRAIN = {
    "epochs": 0.6,
    "batch_size": 16,
    "max_length": 512,
    "save_steps": 2,
    "log_steps": 1,
    "learning_rate": 1e-3,
    "bf16": False,
    "lora": {"rank": 4},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def job(undisturbed, source, model, tmp_path):
    """A run directory with a training set, and the configuration to train on it."""

    def job(name: str, **train) -> Job:
        made = write_job(
            tmp_path / name,
            source,
            model={"path": model, "dtype": "float32"},
            engine={"kind": "vllm"},
            train={**TRAIN, **train},
            arms={ARM: {"kinds": ["safe", "helpful", "analysis"]}},
        )
        shutil.copytree(undisturbed.run / "sft", made.run / "sft")
        shutil.copytree(undisturbed.run / ".state/sft", made.run / ".state/sft")
        return made

    return job


# `setbacks train`, which looks for room more often than once a minute.
RESIZES_SOON = (
    "import sys; from pipeline import cli; from pipeline.training import workers; workers.RESIZE_S = 3.0;"
    " cli.main()"
)


class Training:
    """`setbacks train` on the head."""

    def __init__(self, network: Network, job: Job):
        self.job, self.said = job, job.config.parent / "output.txt"
        with open(self.said, "w") as output:
            self.driver = network.head.start(
                sys.executable, "-c", RESIZES_SOON, "train", str(job.config), output=output
            )

    def wait(self, seconds: float = 280) -> None:
        assert self.driver.wait(seconds) == 0, self.said.read_text()

    def until_step(self, step: int) -> None:
        self.until(lambda: self.checkpoint() >= step, f"step {step}")

    def until(self, condition, what: str, seconds: float = 200) -> None:
        Network.until(lambda: condition() or self.driver.poll() is not None, what, seconds)
        assert self.driver.poll() is None, f"ended before {what}: {self.said.read_text()}"

    def checkpoint(self) -> int:
        """The newest checkpoint's step."""
        steps = [int(path.name[-8:]) for path in (self.job.run / ".state").glob(f"train/*/{ARM}-*-step-*")]
        return max(steps, default=0)


def adapter(job: Job) -> Path:
    return job.run / "adapter" / ARM


def weights(job: Job) -> bytes:
    return (adapter(job) / "adapter_model.safetensors").read_bytes()


def losses(job: Job) -> list[float]:
    return [json.loads(line)["loss"] for line in (adapter(job) / "metrics.jsonl").read_text().splitlines()]


def test_a_lost_machine_costs_two_workers_nothing(network, workers, job):
    """The same training twice; in the second a machine is gone in the middle, and another one comes in its
    place."""
    first, second = workers(2)
    alone = job("alone", workers=2)
    quiet = Training(network, alone)
    quiet.until(lambda: first.has(WORKER) and second.has(WORKER), "a worker on each machine")
    quiet.wait()

    disturbed = job("disturbed", workers=2)
    training = Training(network, disturbed)
    training.until_step(4)
    assert network.head.has("ray::_Board"), "beside the driver"
    network.lose(second)
    third = network.add()
    training.until(lambda: third.has(WORKER), "the new machine was used")
    training.wait()
    assert losses(disturbed) == losses(alone) and len(losses(alone)) > 8
    assert weights(disturbed) == weights(alone)


def test_elastic_training_takes_a_machine_that_is_added(network, workers, job):
    """One worker, then two: the batches are the same, so the losses are those of the fixed size but for sums
    in another order."""
    workers(1)
    grown = job("grown", workers=[1, 2], epochs=4, save_steps=6)
    training = Training(network, grown)
    training.until_step(4)
    second = network.add()
    training.until(lambda: second.has(WORKER), "the new machine was used")
    training.wait()
    steps = [json.loads(line)["step"] for line in (adapter(grown) / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
