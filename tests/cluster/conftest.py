"""A Ray cluster of several machines with an S3 server, shared by the tests; work for it; and the undisturbed
run that results are compared with."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import s3
from tests.chaos.harness import Job, write_job, write_source
from tests.cluster.machines import S3, Machine, Network, can_have_machines, setbacks

ROWS = 600
BUCKET = "bucket"
MAKE_BUCKET = """
import sys, time
from pyarrow.fs import S3FileSystem
for _ in range(100):
    try:
        files = S3FileSystem(endpoint_override=sys.argv[1], scheme="http", allow_bucket_creation=True, connect_timeout=1)
        files.create_dir(sys.argv[2])
        with files.open_output_stream(f"{sys.argv[2]}/ready") as file:  # it answers before it can store
            file.write(b"yes")
        break
    except OSError:
        time.sleep(0.3)
else:
    sys.exit("the S3 server does not store")
"""
DOWNLOAD = "import sys; from pipeline.data import storage; storage.copy(*sys.argv[1:])"


@pytest.fixture(scope="package")
def network(tmp_path_factory) -> Iterator[Network]:
    """The head of a cluster and an S3 server; machines that work are added by tests."""
    if not can_have_machines():
        pytest.skip("needs root and iproute2, for network namespaces")
    network = Network()
    try:
        address = network.head.address
        network.head.start(*s3.command(tmp_path_factory.mktemp("s3"), address, S3))
        network.start_head(**s3.environment(address, S3))
        code, output = network.head.run(sys.executable, "-c", MAKE_BUCKET, f"{address}:{S3}", BUCKET)
        assert code == 0, output
        yield network
    finally:
        network.close()


@pytest.fixture
def workers(network) -> Iterator[Callable[..., list[Machine]]]:
    """`workers(n)`: so many machines that work, of one CPU each, and no others.

    Those that live are used again by the next test.
    """

    before = len(network.head.started)

    def workers(count: int) -> list[Machine]:
        living = [machine for machine in network.machines[1:] if machine.pids()]
        for machine in living[count:]:
            network.lose(machine)
        network.noticed()
        return living[:count] + [network.add() for _ in range(count - len(living))]

    yield workers
    for driver in network.head.started[before:]:
        driver.kill()  # where the test has failed before its end
    for machine in network.machines[1:]:
        if machine.hidden != (network.temporary,) and machine.pids():
            network.lose(machine)  # a test's own


@pytest.fixture(scope="package")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("cluster") / "instructions.jsonl", ROWS)


@pytest.fixture(scope="package")
def undisturbed(network, source, tmp_path_factory) -> Job:
    """A run of the dummy model on one machine that nothing happens to: `generate` and `mix`."""
    job = write_job(tmp_path_factory.mktemp("undisturbed"), source)
    for stage in ("generate", "mix"):
        code, output = network.head.run(*setbacks(stage, str(job.config)), RAY_ADDRESS="")
        assert code == 0, output
    return job


def download(network: Network, url: str, place: Path) -> Path:
    code, output = network.head.run(sys.executable, "-c", DOWNLOAD, url, str(place))
    assert code == 0, output
    return place
