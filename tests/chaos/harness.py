"""What faults are tried on: a job of the model-free engine, its driver as a process, the processes below it,
and the comparison afterwards."""

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests import scripted

# In the environment of a job's processes: a child whose parent was killed is still known as the job's
MARK = "SETBACKS_CHAOS"


@dataclass(frozen=True)
class Job:
    """A configuration file and the run directory it names."""

    config: Path
    run: Path
    mark: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def state(self) -> Path:
        return self.run / ".state/mistakes"

    def committed(self) -> int:
        """Blocks that are committed; all of them if the data set is complete."""
        if (self.state / "complete.json").exists():
            return self.blocks()
        return len(list(self.state.glob("parts-*/*.parquet")))

    def blocks(self) -> int:
        """Blocks of the work list; 0 before it is written."""
        try:
            work = json.loads((self.state / "work.json").read_text())
        except FileNotFoundError:
            return 0
        return -(-work["rows"] // work["block_rows"])

    def complete(self) -> dict:
        return json.loads((self.state / "complete.json").read_text())


def write_source(path: Path, rows: int) -> Path:
    """Mild instructions, the first of them twice, and two that are malformed: every kind of row that is
    accounted for."""
    asked = [
        {"instruction": f"Tell me about item {number}.", "category": f"c{number % 7}", "safe_response": "No."}
        for number in range(rows)
    ]
    path.write_text(
        "".join(
            json.dumps(row) + "\n" for row in (*asked, asked[0], {"instruction": None}, {"instruction": "  "})
        )
    )
    return path


def write_job(
    directory: Path, source: Path | str, *, latency_s: float = 0.0, run: Path | None = None, **sections
) -> Job:
    """A job on the dummy engine, two steps a row and one request in fifty failing; or whatever `sections` say
    instead. An engine without a kind is the dummy with other settings. YAML reads JSON."""
    directory.mkdir(parents=True, exist_ok=True)
    job = Job(directory / "config.yaml", run or directory / "run")
    tree = {
        "run_dir": str(job.run),
        "model": {"path": "toy"},
        "instructions": {"path": str(source)},
        "evaluation": {"harmful": {"path": str(source)}},
    }
    if "kind" not in (given := sections.pop("engine", {})):
        dummy = {"kind": "dummy", "latency_s": latency_s, "failures": 0.02}
        given = {**dummy, "rows_per_commit": 16, "max_num_seqs": 32, **given}
    tree["engine"] = given
    job.config.write_text(json.dumps(scripted.composed(tree | sections)))
    return job


# -- processes


class Driver:
    """`setbacks generate` as a process and a process group of its own, as a terminal would have it.

    code: Python that is run instead, with the configuration's path as its argument.
    """

    def __init__(self, job: Job, *options: str, code: str | None = None, **environment: str):
        self.job, self.output = job, job.config.parent / f"output-{secrets.token_hex(4)}.txt"
        run = ["-c", code] if code else ["-m", "pipeline.cli", "generate"]
        command = [sys.executable, *run, str(job.config), *options]
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, MARK: job.mark, **environment},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, seconds: float = 240) -> tuple[int, str]:
        """Its exit code and what it wrote on the terminal."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            end_processes(self.job)
            raise AssertionError(f"no end after {seconds:g} s:\n{self.output.read_text()}") from None
        return code, self.output.read_text()

    def until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Wait for something that comes while the driver lives."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                end_processes(self.job)
                raise AssertionError(
                    f"ended or took too long before it came to that:\n{self.output.read_text()}"
                )
            time.sleep(0.05)


_NO_WORKERS = ("ray::MapWorker", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
VICTIMS = {
    "driver": lambda name, title: "pipeline.cli" in title,
    "gcs": lambda name, title: name == "gcs_server",
    "raylet": lambda name, title: name == "raylet",
    "engine actor": lambda name, title: title.startswith("ray::MapWorker"),
    "ray worker": lambda name, title: (
        "default_worker.py" in title or (title.startswith("ray::") and not title.startswith(_NO_WORKERS))
    ),
    "vllm child": lambda name, title: name.startswith("VLLM::"),
}


def processes(job: Job, kind: str | None = None) -> list[psutil.Process]:
    """The living processes of a job's drivers, past and present, all of them or those of a kind of `VICTIMS`,
    oldest first."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != job.mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if kind is None or VICTIMS[kind](process.name(), " ".join(process.cmdline())):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


# An agent of Ray whose raylet was killed tells the GCS, and waits for up to a minute if that has gone too.
ALL_GONE_S = 150


def left_behind(job: Job, seconds: float = ALL_GONE_S) -> list[str]:
    """Names of the job's processes that still live after so many seconds at most."""
    end = time.monotonic() + seconds
    while (left := processes(job)) and time.monotonic() < end:
        time.sleep(0.2)
    return [process.name() for process in left if process.is_running()]


def end_processes(job: Job) -> None:
    for process in processes(job):
        try:
            process.kill()
        except psutil.Error:
            continue


# -- what is left of a run


def rows_of(run: Path, name: str = "mistakes") -> pa.Table:
    """A data set of a run, in its order."""
    files = sorted((run / name).glob("*.parquet"))
    return pa.concat_tables(pq.read_table(file) for file in files).combine_chunks()


def differences(job: Job, reference: Job, *, sampled: bool = False) -> list[str]:
    """What a run that is through has otherwise than the undisturbed one: ids, rows and their order, digest;
    what is left over.

    sampled: by a real engine, whose texts may differ with what is in the batch beside them; then ids and
             their order alone are compared.
    """
    mine, other = rows_of(job.run), rows_of(reference.run)
    ids, wanted = mine["id"].to_pylist(), other["id"].to_pylist()
    found = []
    if ids != wanted:
        found.append(
            f"{len(set(wanted) - set(ids))} ids are missing, {len(set(ids) - set(wanted))} are strange, or"
            " their order is another"
        )
    if repeated := len(ids) - len(set(ids)):
        found.append(f"{repeated} ids are there twice")
    if not sampled and not mine.equals(other):
        same = sum(a == b for a, b in zip(mine.to_pylist(), other.to_pylist(), strict=False))
        found.append(f"only {same} of {len(wanted)} rows are equal")
    if not sampled and job.complete()["digest"] != reference.complete()["digest"]:
        found.append("the digest is another")
    if job.complete()["rows"] != len(ids) or sum(job.complete()["status"].values()) != len(ids):
        found.append("the counts do not account for every row")
    return found + _leftovers(job)


def _leftovers(job: Job) -> list[str]:
    """Files that a whole data set has no use for: half-written ones and parts; and rows that failed or were
    dropped without a reason, or have a reason and did not."""
    patterns = ("**/*.tmp", ".state/mistakes/parts-*", ".state/mistakes/kept-*", ".state/mistakes/shards*")
    found = [f"{path.relative_to(job.run)} is left" for pattern in patterns for path in job.run.glob(pattern)]
    rows = rows_of(job.run).select(["id", "status", "error"]).to_pylist()
    return found + [
        f"{row['id']} is {row['status']}, error {row['error']}"
        for row in rows
        if (row["status"] in ("failed", "dropped")) != bool(row["error"])
    ]


def assert_equals_undisturbed(job: Job, reference: Job) -> None:
    assert not (found := differences(job, reference)), found
