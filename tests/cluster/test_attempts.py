"""Two attempts at once, as when a RayJob is retried on a new cluster while the old one is still there: the
newer one fences the older."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from tests.chaos.harness import Job, assert_equals_undisturbed, write_job
from tests.cluster.conftest import BUCKET, download
from tests.cluster.machines import Network, setbacks

pytestmark = pytest.mark.timeout(400)
OWN_RAY = {"RAY_ADDRESS": ""}  # each attempt has a cluster of its own
OTHERS = {"engine": {"rows_per_commit": 16, "max_num_seqs": 16}}


class Status:
    """What `setbacks status` says of a run, on any storage."""

    def __init__(self, network: Network, run: str):
        code, said = network.head.run(*setbacks("status", run, "--json"))
        self.facts = json.loads(said[said.index("{") :]) if code == 0 else {"outputs": [], "attempts": []}

    @property
    def done(self) -> int:
        return (self.facts["outputs"] or [{"done": 0}])[0]["done"] or 0

    @property
    def attempts(self) -> list[str]:
        return [attempt["state"] for attempt in self.facts["attempts"]]


class Suspended:
    """An attempt in a process namespace of its own, whose driver stands still while its engines go on."""

    def __init__(self, network: Network, stage: str, job: Job, said: Path):
        self.said = said
        with open(said, "w") as output:
            self.process = network.head.start(
                *setbacks(stage, str(job.config)), output=output, alone=True, **OWN_RAY
            )

    @property
    def driver(self) -> psutil.Process:
        return psutil.Process(self.process.pid).children()[0]

    def stop(self) -> None:
        assert self.process.poll() is None, self.said.read_text()
        os.kill(self.driver.pid, signal.SIGSTOP)
        assert any("ray::" in " ".join(child.cmdline()) for child in self.driver.children(recursive=True)), (
            "its Ray goes on"
        )

    def wake(self) -> tuple[int, str]:
        os.kill(self.driver.pid, signal.SIGCONT)
        return self.process.wait(60), self.said.read_text()


@pytest.mark.parametrize("storage", ["path", "s3"])
def test_the_newer_attempt_fences_the_older(network, source, tmp_path, undisturbed, storage):
    run = f"s3://{BUCKET}/{tmp_path.name}" if storage == "s3" else str(tmp_path / "run")
    job = write_job(tmp_path, source, latency_s=1.0, run=run, **OTHERS)
    old = Suspended(network, "generate", job, tmp_path / "old.txt")
    Network.until(
        lambda: old.process.poll() is not None or Status(network, run).done >= 64, "rows were done", 120
    )
    code, said = network.head.run(*setbacks("generate", str(job.config)), **OWN_RAY)
    assert code == 2 and "attempt 1 is using it (host " in said, (
        said
    )  # it beats, and is seen by its beat alone
    old.stop()
    code, said = network.head.run(*setbacks("generate", str(job.config), "engine.latency_s=0"), **OWN_RAY)
    assert code == 0, said
    result = finished(network, job, run, tmp_path / "result")
    assert_equals_undisturbed(result, undisturbed)

    code, said = old.wake()
    assert code == 1 and "attempt 2 on " in said and "has taken over" in said and "Traceback" not in said, (
        said
    )
    assert Status(network, run).attempts == ["killed", "finished"]
    assert_equals_undisturbed(finished(network, job, run, tmp_path / "later"), undisturbed)


def finished(network: Network, job: Job, run: str, place: Path) -> Job:
    """The run, here: a copy where it lies on an object store."""
    return Job(job.config, download(network, run, place) if run.startswith("s3://") else Path(run))


def test_of_attempts_that_begin_together_on_s3_one_goes_on(network, tmp_path):
    """Five at once, in process namespaces of their own; there is no exclusive creation on S3 that they could
    use."""
    run = f"s3://{BUCKET}/{tmp_path.name}"
    hold = """
import sys, time
from pipeline.runtime import attempt
from pipeline.errors import UserError
try:
    with attempt.Attempt(sys.argv[1], ["generate"]):
        print("holds", flush=True)
        time.sleep(20)
        attempt.check()
except UserError as e:
    print(e, flush=True)
"""
    said = [tmp_path / f"{number}.txt" for number in range(5)]
    started = []
    for path in said:
        with open(path, "w") as output:
            started.append(network.head.start(sys.executable, "-c", hold, run, output=output, alone=True))
    for process in started:
        process.wait(60)
    texts = [path.read_text() for path in said]
    assert sum(text == "holds\n" for text in texts) == 1, texts
    assert sum("attempt 1 is using it" in text for text in texts) == 4, texts
