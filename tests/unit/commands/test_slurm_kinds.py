"""The batch script for Slurm asks for the kind of GPU that the configuration names."""

import pytest

from pipeline.commands import slurm
from pipeline.errors import UserError
from tests import scripted


def config(engine: str | None, train: str | None):
    return scripted.config(
        "/scratch/runs/mine",
        engine={"num_gpus": 1, "actors": 8, "accelerator_type": engine},
        train={"use_gpu": True, "workers": 8, "accelerator_type": train},
    )


@pytest.mark.parametrize(("engine", "train"), [("H100", "H100"), ("H100", None), (None, "H100")])
def test_nodes_of_the_kind_are_asked_for_and_its_name_is_said_to_be_a_guess(engine, train):
    lines = slurm.script(config(engine, train)).splitlines()
    assert "#SBATCH --gpus-per-node=h100:8" in lines
    assert "# Slurm's name of H100 is taken for h100: compare it with `sinfo -o %G`." in lines


def test_any_kind_is_taken_if_none_is_named():
    script = slurm.script(config(None, None))
    assert "#SBATCH --gpus-per-node=8\n" in script and "sinfo" not in script


def test_two_kinds_are_refused_since_a_job_s_nodes_are_alike():
    told = r"^accelerator_type = L40S \(evaluate\), accelerator_type = H100 \(train sft.*\): the nodes of a Slurm"
    with pytest.raises(UserError, match=told):
        slurm.script(config("L40S", "H100"))


def test_the_kind_of_an_engine_on_cpus_counts_for_nothing():
    given = scripted.config("/scratch/runs/mine", engine={"accelerator_type": "L40S"})
    assert "gpus-per-node" not in slurm.script(given).partition("# What follows")[0]
