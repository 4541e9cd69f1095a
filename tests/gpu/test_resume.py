"""A training whose worker is killed on a GPU, against one that nothing has disturbed."""

import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline import preflight
from pipeline.data.dataset import Dataset
from pipeline.training.arm import Places, Training
from tests.gpu import toy
from tests.integration.test_training import worker_pids

pytestmark = pytest.mark.timeout(120)
KILLED_AT = 40  # late enough on a fast GPU for Ray Train to have seen a checkpoint


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("data"))


def train(place: Path, name: str, on_line) -> dict:
    made = toy.config("sft", epochs=10, save_steps=4)
    spec = preflight.arm_specs(made, made.model.path)["sft"]
    places = Places(
        Dataset.at(str(place / "rows")), str(place / "adapter" / name), str(place / "state" / name)
    )
    with Training([(spec, places)], str(place / "checkpoints" / name)) as training:
        return training.result("sft", on_line)


def test_a_killed_worker_costs_nothing_but_rounding(place, cluster, measured):
    killed, steps = [], []

    def kill_once(line: dict) -> None:
        steps.append(line["step"])
        if line["step"] >= KILLED_AT and not killed:
            killed.extend(worker_pids())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    figures = {
        "undisturbed": train(place, "undisturbed", lambda line: None),
        "resumed": train(place, "resumed", kill_once),
    }
    assert killed, "the training was over before"
    undisturbed, resumed = (
        load_file(place / "adapter" / name / "adapter_model.safetensors") for name in figures
    )
    weights = toy.apart(resumed, undisturbed)
    losses = [one["final_loss"] for one in figures.values()]
    measured("resumed against undisturbed: bitwise equal", weights == 0)
    measured("resumed against undisturbed: weights", weights)
    measured("resumed against undisturbed: final loss", abs(losses[1] - losses[0]) / losses[0])
    assert steps.count(1) == 1, "resumed, not begun again"
    assert weights < 0.2
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
