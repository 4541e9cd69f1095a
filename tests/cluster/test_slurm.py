"""The batch script for Slurm on real Ray nodes: srun and scontrol are stand-ins that know the machines here."""

import json
import os
import signal
import sys

import pytest

from pipeline.commands import slurm
from pipeline.config import load
from tests.chaos.harness import Job, assert_equals_undisturbed, write_job
from tests.cluster.machines import Machine, Network

pytestmark = pytest.mark.timeout(400)
# Runs the command on each machine that is asked for. What a job's step gets of the environment is all.
SRUN = """#!/usr/bin/env python3
import os, subprocess, sys
machines = os.environ["FAKE_MACHINES"].split()
asked, words = {}, sys.argv[1:]
while words and words[0].startswith("--"):
    name, _, value = words.pop(0)[2:].partition("=")
    asked[name] = value
chosen = [asked["nodelist"]] if "nodelist" in asked else [one for one in machines if one != asked.get("exclude")]
assert len(chosen) == int(asked["nodes"]) == int(asked["ntasks"]), (chosen, asked)
def inside(machine):
    hidden = os.environ["FAKE_HIDDEN"]
    # A driver takes whatever Ray node it finds in the process table.
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"] if machine != machines[0] else []
    mounts = ["sh", "-c", f'mount -t tmpfs tmpfs {hidden} && exec "$@"', "sh"] if machine != machines[0] else []
    # hostname knows nothing of a network namespace
    known = ["sh", "-c", "ip -4 -o address show eth0 | sed 's/.*inet \\\\([0-9.]*\\\\).*/\\\\1/'"]
    return ["ip", "netns", "exec", machine, *mounts, *(known if words[0] == "hostname" else [*alone, *words])]
started = [subprocess.Popen(inside(machine)) for machine in chosen]
import signal
signal.signal(signal.SIGTERM, lambda *_: [one.kill() for one in started])
sys.exit(max(one.wait() for one in started))
"""
SCONTROL = """#!/usr/bin/env python3
import os, sys
with open(os.environ["FAKE_CALLS"], "a") as calls:
    print(*sys.argv[1:], file=calls)
if sys.argv[1:3] == ["show", "hostnames"]:
    print("\\n".join(os.environ["FAKE_MACHINES"].split()))
"""


class Submission:
    """The script of a job, run on the first of some machines as Slurm runs it."""

    def __init__(self, network: Network, machines: list[Machine], job: Job, place):
        (place / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (place / "bin" / name).write_text(text)
            (place / "bin" / name).chmod(0o755)
        (place / "job.sh").write_text(slurm.script(load(str(job.config), [])))
        self.calls, self.said = place / "calls", place / "said.txt"
        names = [machine.name for machine in machines]
        path = f"{place / 'bin'}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        with open(self.said, "w") as output:
            self.process = machines[0].start(
                "bash",
                str(place / "job.sh"),
                output=output,
                PATH=path,
                FAKE_MACHINES=" ".join(names),
                FAKE_HIDDEN=network.temporary,
                FAKE_CALLS=str(self.calls),
                SLURM_JOB_ID="7",
                SLURM_JOB_NODELIST="fake[0-1]",
                SLURM_CPUS_PER_TASK="1",
                RAY_ADDRESS="",
                RAY_AUTH_MODE="",
                RAY_TMPDIR=f"{network.temporary}/slurm",
            )

    @property
    def text(self) -> str:
        return self.said.read_text()

    def wait(self, seconds: float = 240) -> int:
        return self.process.wait(seconds)


@pytest.fixture
def machines(network):
    """Two machines without Ray."""
    found = [network._machine(), network._machine()]
    yield found
    for machine in found:
        network.lose(machine)


def test_a_job_on_two_nodes_that_is_ended_by_its_time_limit_goes_on(
    network, machines, source, tmp_path, undisturbed
):
    """It is run again with the same number, as Slurm does after `scontrol requeue`."""
    settings = {"actors": 2, "rows_per_commit": 16, "max_num_seqs": 16}
    job = write_job(tmp_path, source, latency_s=0.4, engine=settings)
    (tmp_path / "first").mkdir()
    first = Submission(network, machines, job, tmp_path / "first")
    Network.until(lambda: job.committed() >= 6 or first.process.poll() is not None, "blocks", 150)
    assert first.process.poll() is None, first.text
    assert all(machine.has("ray::MapWorker") for machine in machines), "an engine on each node"
    os.kill(first.process.pid, signal.SIGUSR1)
    assert first.wait(90) == 143, first.text
    assert "setbacks: interrupted; rerun the same command to resume" in first.text
    assert first.calls.read_text().splitlines()[-1] == "requeue 7"
    for machine in machines:
        machine.kill()  # as Slurm does with what a job leaves

    (tmp_path / "second").mkdir()
    second = Submission(network, machines, job, tmp_path / "second")
    assert second.wait() == 0, second.text
    assert second.calls.read_text().split() == ["show", "hostnames", "fake[0-1]"]
    assert_equals_undisturbed(job, undisturbed)
    attempts = [json.loads(path.read_text()) for path in sorted((job.run / ".state/attempts").iterdir())]
    assert [attempt["state"] for attempt in attempts] == ["interrupted", "finished"]
