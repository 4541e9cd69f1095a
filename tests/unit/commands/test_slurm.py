"""The batch script for Slurm: its sizes, its configuration, and that a shell can read it."""

import subprocess
import sys
import warnings

import pytest
import yaml

from pipeline import cli
from pipeline.commands import slurm
from pipeline.errors import UserError
from tests import scripted
from tests.tools import which


def config(**changes):
    return scripted.config(**{"run_dir": "/scratch/runs/mine", **changes})


def directives(**changes) -> dict[str, str]:
    lines = slurm.script(config(**changes)).splitlines()
    return dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in lines
        if "=" in line and line.startswith("#SBATCH")
    )


TRAIN = {"workers": 8, "use_gpu": True}


@pytest.mark.parametrize(
    ("changes", "nodes", "gpus"),
    [
        ({"engine": {"num_gpus": 1, "actors": 8}, "train": TRAIN}, "1", "8"),
        ({"engine": {"num_gpus": 1, "actors": [2, 12]}, "train": TRAIN}, "2", "8"),
        ({"engine": {"num_gpus": 4, "actors": 3}, "train": TRAIN}, "2", "8"),
        ({"engine": {"num_gpus": 2, "actors": 1}}, "1", "2"),
        ({"train": {"workers": 16, "use_gpu": True, "batch_size": 48}}, "2", "8"),
    ],
)
def test_nodes_hold_the_most_of_every_stage(changes, nodes, gpus):
    found = directives(**changes)
    assert (found["nodes"], found["gpus-per-node"]) == (nodes, gpus)
    gib = int(found["mem"].removesuffix("G"))  # Ray, the driver, and a process for each GPU
    assert int(found["cpus-per-task"]) > int(gpus) and gib >= 16 + 8 + 3 * int(gpus)


def test_a_run_without_gpus_is_on_one_node():
    found = directives(engine={"actors": 5})
    assert found["nodes"] == "1" and "gpus-per-node" not in found and int(found["cpus-per-task"]) > 5


def test_an_engine_that_no_node_holds_is_refused():
    with pytest.raises(UserError, match=r"^engine\.actors: an engine takes 16 GPUs of a node, which has 8; "):
        slurm.script(config(engine={"num_gpus": 16}))
    assert "--gpus-per-node=8" in (two := slurm.script(config(engine={"num_gpus": 16, "num_nodes": 2})))
    assert "#SBATCH --nodes=2" in two


def test_the_script_holds_the_whole_configuration(tmp_path):
    script = slurm.script(config(engine={"num_gpus": 2}))
    printed = subprocess.run(
        ["bash", "-c", script.partition("# What follows")[0] + "configuration"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = config(engine={"num_gpus": 2})
    assert type(made).model_validate(yaml.safe_load(printed)) == made


def test_bash_reads_it():
    subprocess.run(["bash", "-n"], input=slurm.script(config()), text=True, check=True)


def test_shellcheck_finds_nothing():
    if (shellcheck := which("shellcheck")) is None:
        why = "shellcheck is not installed (make tools): the batch script is NOT checked by it"
        warnings.warn(why, stacklevel=1)
        pytest.skip(why)
    command = [shellcheck, "--severity=warning", "-"]
    done = subprocess.run(command, input=slurm.script(config()), text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_command_prints_it_and_takes_nothing_of_kubernetes(tmp_path, monkeypatch, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(slurm.as_yaml(config().model_dump(mode="json", exclude_unset=True)))
    monkeypatch.setattr(sys, "argv", ["setbacks", "manifest", str(path), "--slurm"])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out.startswith("#!/usr/bin/env bash\n#SBATCH --job-name=setbacks-")
    monkeypatch.setattr(sys, "argv", ["setbacks", "manifest", str(path), "--slurm", "--cluster"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "--slurm: goes with none of --image, --cluster and --gpus-per-node" in capsys.readouterr().err
