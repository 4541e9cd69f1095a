"""Faults of processes and machines.

After each one, the data set equals that of a run that nothing happened to.
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.errors import RunFailed
from pipeline.methods.mistake_analysis.schema import MISTAKES
from tests.chaos import harness
from tests.chaos.conftest import engine_actors, generate, kill_engine_actor, meanwhile
from tests.chaos.harness import Driver, Job, assert_equals_undisturbed, write_job

pytestmark = pytest.mark.timeout(600)


def test_an_engine_actor_is_killed(cluster, job, undisturbed):
    with meanwhile(job, lambda: kill_engine_actor(cluster.head_node)) as killed:
        generate(job)
    assert killed
    assert_equals_undisturbed(job, undisturbed)


# -- the driver ends in mid-run; the same command goes on


@pytest.fixture(scope="package")
def ended(cluster, undisturbed, source, tmp_path_factory) -> tuple[Job, dict]:
    """One run that gets two signals to stop, is killed, and then left alone.

    By signal: exit code, output, blocks committed before, processes left.
    """
    job, ends = write_job(tmp_path_factory.mktemp("ended"), source, latency_s=0.1), {}
    address = os.environ.pop("RAY_ADDRESS")  # each driver has a Ray of its own, as on a laptop
    try:
        for number, send in (
            (signal.SIGTERM, os.kill),
            (signal.SIGINT, os.killpg),
            (signal.SIGKILL, os.kill),
        ):
            driver, before = Driver(job), job.committed()
            driver.until(lambda before=before: job.committed() >= before + 6)
            send(driver.pid, number)  # Ctrl-C reaches every process of the terminal's group
            code, output = driver.wait(60)
            ends[number] = code, output, before, harness.left_behind(job)
    finally:
        os.environ["RAY_ADDRESS"] = address
        harness.end_processes(job)
    generate(job)
    return job, ends


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_driver_is_told_to_stop(ended, undisturbed, number, code):
    job, ends = ended
    ended_with, output, _, left = ends[number]
    assert ended_with == code
    assert output.splitlines()[-1] == "setbacks: interrupted; rerun the same command to resume"
    assert "Traceback" not in output
    assert not left
    assert_equals_undisturbed(job, undisturbed)


def test_the_driver_is_killed(ended, undisturbed):
    job, ends = ended
    ended_with, _, committed_before, left = ends[signal.SIGKILL]
    assert (ended_with, left) == (-signal.SIGKILL, [])
    assert committed_before >= 12, "what the attempts before it had committed was still there"
    assert_equals_undisturbed(job, undisturbed)


def test_two_runs_on_one_directory(cluster, job, undisturbed):
    """Started at the same moment: one goes on, the other says who holds the directory."""
    drivers = [Driver(job), Driver(job)]
    (code, _), (refused, said) = sorted((driver.wait() for driver in drivers), key=lambda end: end[0])
    assert (code, refused) == (0, 2)
    [sentence] = [line for line in said.splitlines() if line.strip()]
    assert sentence.startswith(f"setbacks: run_dir = {job.run}: attempt 1 is using it")
    assert_equals_undisturbed(job, undisturbed)


# -- nodes, memory, clocks


@pytest.mark.long
def test_the_raylet_of_a_node_is_killed(cluster, source, tmp_path, undisturbed):
    """Engines are spread over two nodes; the one without the driver goes, with all that runs on it."""
    settings = {"actors": 3, "rows_per_commit": 16, "max_num_seqs": 8}
    job = write_job(tmp_path, source, latency_s=0.1, engine=settings)
    node = cluster.add_node(num_cpus=8, object_store_memory=80 * 2**20)

    def kill() -> int:
        while not (actors := engine_actors(node)):
            time.sleep(0.02)
        psutil.Process(node.all_processes["raylet"][0].process.pid).kill()
        return len(actors)

    try:
        with (
            meanwhile(job, kill) as killed,
            suppress(RunFailed),
        ):  # if the counter of rows was on that node too
            generate(job)
    finally:
        cluster.remove_node(node, allow_graceful=False)
    generate(job)
    assert killed
    assert_equals_undisturbed(job, undisturbed)


FILLER = f"""
import numpy, ray
ray.init(logging_level="error", log_to_driver=False)
held = []
while True:
    held = (held + [ray.put(numpy.ones({16 * 2**20}, dtype=numpy.uint8))])[-{4 * 80 // 16}:]  # four times what fits
    if len(held) == {4 * 80 // 16}:
        print("full", flush=True)
"""


def test_the_object_store_is_full_and_spills(cluster, job, undisturbed):
    filler = subprocess.Popen([sys.executable, "-c", FILLER], stdout=subprocess.PIPE, text=True)
    try:
        assert filler.stdout.readline() == "full\n"
        generate(job)
        assert filler.poll() is None, "it went on filling until the run was through"
        spilled = list(Path(cluster.head_node.get_session_dir_path()).glob("**/ray_spilled_objects*/*"))
        assert spilled
    finally:
        filler.kill()
        filler.wait()
    assert_equals_undisturbed(job, undisturbed)


class Deadly:
    """The dummy's work, but one instruction ends the process that runs it; every time, or the first time
    alone."""

    def __init__(self, recipe, how: str, marker: str):
        self.recipe, self.how, self.marker = recipe, how, marker

    async def __call__(self, row: dict, chat) -> dict:
        if row["instruction"].endswith(" item 77.") and not os.path.exists(self.marker):
            if self.how == "exit":
                os._exit(1)
            open(self.marker, "w").close()
            held = []
            while True:  # until Ray's memory monitor ends this process
                held.append(b"x" * (64 * 2**20))
                time.sleep(0.02)
        return await self.recipe(row, chat)


def run_deadly(job: Job, how: str) -> dict:
    """What `complete` says after the job's work was run by a deadly recipe."""
    from pipeline.config import load
    from pipeline.data.store import Store
    from pipeline.inference.pool import Job as Work
    from pipeline.inference.pool import ModelSpec, run_recipes
    from pipeline.runtime.session import ray_session
    from pipeline.schema import INSTRUCTIONS
    from pipeline.sources import instructions

    config = load(job.config)
    store = Store(config.run_dir, MISTAKES.name, MISTAKES)
    [method] = config.methods.values()
    store.write_work(
        instructions.read(method.instructions),
        INSTRUCTIONS,
        block_rows=config.engine.rows_per_commit,
    )
    ungated = method.model_copy(update={"gates": None})  # as the main path does for an engine without a model
    recipe = Deadly(ungated.recipe(config.seed), how, f"{job.run}/marker")
    spec = ModelSpec(config.model, "", config.engine)
    with ray_session(config.run_dir):
        list(run_recipes([Work(recipe, store)], spec, seed=config.seed, label="generate"))
    return store.finish()


def test_a_row_that_always_kills_its_engine(cluster, job, undisturbed):
    done, wanted = run_deadly(job, "exit"), undisturbed.complete()
    assert done["reasons"].pop("the engine died each time it ran this row") == 1
    assert done["reasons"] == wanted["reasons"]
    mine, other = harness.rows_of(job.run).to_pylist(), harness.rows_of(undisturbed.run).to_pylist()
    changed = [(a, b) for a, b in zip(mine, other, strict=True) if a != b]
    assert [(a["status"], b["instruction"]) for a, b in changed] == [("failed", "Tell me about item 77.")]


# What the machine may use beyond what it uses now. Other processes grow meanwhile: a limit that they reach
# first would have Ray end a process that has done nothing.
HEADROOM = 6 * 2**30


@pytest.mark.long
def test_an_engine_actor_runs_out_of_memory(cluster, job, undisturbed, monkeypatch):
    """Ray's memory monitor ends it, in a Ray of its own with a limit a little above what the machine uses
    now."""
    memory = psutil.virtual_memory()
    if memory.available < 2 * HEADROOM:
        pytest.skip("needs twice the headroom in free memory")
    limit = (memory.total - memory.available + HEADROOM) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{limit:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.delenv("RAY_ADDRESS")
    run_deadly(job, "memory")
    assert (job.run / "marker").exists()
    assert_equals_undisturbed(job, undisturbed)


CLOCK = """
import time
_time, _started, YEAR_S = time.time, time.monotonic(), 365 * 86400

def moved():
    age = time.monotonic() - _started
    return _time() + (0 if age < 4 else YEAR_S if age < 6 else -YEAR_S)

time.time = moved
"""


@pytest.mark.long
def test_the_clock_is_moved(job, undisturbed, own_ray, tmp_path):
    """In every Python process of the run: four seconds after its start a year ahead, two seconds later a year
    back."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(CLOCK)
    path = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    code, output = Driver(job, PYTHONPATH=os.pathsep.join(path)).wait()
    assert code == 0, output
    assert_equals_undisturbed(job, undisturbed)
