"""cluster/submit.sh against a real cluster: what it ends with, a job stopped in the middle, and a second
submission that goes on."""

import json

import pytest

from tests.chaos.harness import Job, assert_equals_undisturbed, write_job
from tests.cluster.machines import DASHBOARD, ROOT, Network

pytestmark = pytest.mark.timeout(400)
SUBMIT = str(ROOT / "cluster" / "submit.sh")


@pytest.fixture(scope="module")
def machine(network):
    """One that holds a driver and an engine."""
    machine = network.add(cpus=2)
    yield machine
    network.lose(machine)


class Submission:
    """submit.sh, run on the head in the directory of a job's configuration."""

    def __init__(self, network: Network, job: Job, *values: str):
        self.said = job.config.parent / "said.txt"
        self.environment = {
            "RAY_API_SERVER_ADDRESS": f"http://{network.head.address}:{DASHBOARD}",
            "RAY_ADDRESS": "",
        }
        with open(self.said, "w") as output:
            arguments = [SUBMIT, job.config.name, *values]
            self.process = network.head.start(
                "env", "--chdir", str(job.config.parent), *arguments, output=output, **self.environment
            )

    def wait(self) -> int:
        return self.process.wait(90)

    @property
    def text(self) -> str:
        return self.said.read_text()


LAST = """
import sys
from ray.job_submission import JobSubmissionClient
jobs = JobSubmissionClient(sys.argv[1]).list_jobs()
print(max(jobs, key=lambda job: job.start_time).submission_id)
"""


def last_job(network: Network) -> str:
    """The id of the job that was submitted last."""
    return network.head.run("python", "-c", LAST, f"http://{network.head.address}:{DASHBOARD}")[1].split()[-1]


def test_a_stopped_job_is_no_success_and_goes_on_when_submitted_again(
    network, machine, source, tmp_path, undisturbed
):
    job = write_job(tmp_path, source, latency_s=0.4, engine={"rows_per_commit": 16, "max_num_seqs": 16})
    first = Submission(network, job)
    Network.until(
        lambda: job.committed() >= 6 or first.process.poll() is not None, "blocks were committed", 120
    )
    assert first.process.poll() is None, first.text
    name = last_job(network)
    code, said = network.head.run("ray", "job", "stop", name, **first.environment)
    assert code == 0, said
    assert first.wait() == 1, first.text
    assert "setbacks: interrupted; rerun the same command to resume" in first.text
    before = job.committed()
    assert 6 <= before < job.blocks()

    second = Submission(network, job)
    assert second.wait() == 0, second.text
    assert last_job(network) == name, "the same id"
    assert "generate: 602 rows" in second.text and "Traceback" not in second.text
    assert_equals_undisturbed(job, undisturbed)
    attempts = [json.loads(path.read_text()) for path in sorted((job.run / ".state/attempts").iterdir())]
    assert [attempt["state"] for attempt in attempts] == ["interrupted", "finished"]
    assert attempts[1]["rows"] <= 602 - 16 * before, "what was committed was not run again"


def test_a_wrong_configuration_is_a_failed_job_with_one_sentence(network, machine, source, tmp_path):
    submission = Submission(network, write_job(tmp_path, source), "engine.acters=2")
    assert submission.wait() == 1
    assert "setbacks: config.yaml: engine.acters is not a known key; did you mean actors?" in submission.text
    assert "Traceback" not in submission.text
