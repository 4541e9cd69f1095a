"""A Ray cluster for the tests of faults that leave the driver alive, and the undisturbed run that every
result is compared with."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pipeline.runtime import session
from tests.chaos.harness import Job, write_job, write_source

ROWS = 600
OBJECT_STORE_BYTES = 80 * 2**20  # nearly the least that Ray takes
LATENCY_S = 0.1  # of a step; a run of ROWS rows takes five seconds, engine start apart


def _start_cluster():
    """Ray gives a node 30 s to come up; on a machine busy with other work that may take another try."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 8, "object_store_memory": OBJECT_STORE_BYTES, "include_dashboard": False}
    for left in reversed(range(session.START_TRIES)):
        try:
            return Cluster(initialize_head=True, head_node_args=head)
        except Exception as e:
            if left == 0 or "timed out during startup" not in str(e):
                raise


@pytest.fixture(scope="package")
def cluster():
    """A cluster of one node with a small object store; what runs below it connects through RAY_ADDRESS."""
    # Ray turns token authentication on in mid-process if it finds a token, which this cluster would not
    # know.
    os.environ["RAY_AUTH_MODE"] = "disabled"
    cluster = _start_cluster()
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.pop("RAY_AUTH_MODE", None)
        cluster.shutdown()


@pytest.fixture
def own_ray(monkeypatch):
    """A driver started in this test starts a Ray of its own."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="package")
def source(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "instructions.jsonl", ROWS)


@pytest.fixture(scope="package")
def undisturbed(cluster, source, tmp_path_factory) -> Job:
    """A run that nothing happens to."""
    job = write_job(tmp_path_factory.mktemp("undisturbed"), source)
    generate(job)
    return job


@pytest.fixture
def job(source, tmp_path) -> Job:
    """The same work, slow enough to be disturbed."""
    return write_job(tmp_path, source, latency_s=LATENCY_S)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 320 MiB: the least that a run starts on is 256."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", place], capture_output=True
        ).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(disk: Path) -> Path:
    """Take all that is free; returns the file to delete."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as f, suppress(OSError):
        while f.write(bytes(2**20)):
            pass
    return ballast


def generate(job: Job, **options) -> list[str]:
    """`setbacks generate` within this process; returns what it tells."""
    from pipeline import experiment
    from pipeline.config import load

    told: list[str] = []
    experiment.run(load(job.config), ["generate"], log=told.append, **options)
    return told


@contextmanager
def meanwhile(job: Job, strike: Callable[[], object], blocks: int = 8) -> Iterator[list]:
    """Strike once, from another thread, when so many blocks of the body's run are committed.

    What `strike` returned is in the list.
    """
    struck, over = [], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if job.committed() >= blocks:
                struck.append(strike())
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield struck
    finally:
        over.set()
        thread.join()


def engine_actors(node) -> list[psutil.Process]:
    """The engine actors on a node of the cluster."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    found = []
    for process in raylet.children():
        try:
            if " ".join(process.cmdline()).startswith("ray::MapWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_engine_actor(node) -> int:
    """Returns the process that was killed, once there is one to kill."""
    while not (found := engine_actors(node)):
        time.sleep(0.02)
    found[0].kill()
    return found[0].pid
