"""A worker group, the driver's side: trains the runs of several arms. The workers' side is `loop.py`.

The group is started once. The driver copies each finished run to the directory that it publishes from, while
the workers train the next run. `job.py` describes the directories.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.errors import RunFailed
from pipeline.runtime import attempt, environment, imports
from pipeline.runtime.session import TRAIN_ENVIRONMENT, actor_on_driver_node
from pipeline.training.config import Train
from pipeline.training.job import HISTORY, Job

Progress = Callable[[dict], None]
RESIZE_S = 60.0  # interval at which elastic training checks whether the number of workers can change
POLL_S = 0.3  # interval at which the driver reads the workers' log lines
END_S = 60.0  # wait for Ray Train's controller to end after its last run
SEEN_S = 60.0  # wait for a worker's file to become visible to the driver: NFS caches missing files
_TRIES = 3  # attempts to read a checkpoint
WORKER_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # How long an OpenMP thread on a CPU spins while waiting for the others before it sleeps. The default
    # spins for milliseconds, in vain if another process has taken a core: two threads on two cores took 60
    # times as long beside one busy process. With this value they take 4 times as long, and 1.1 times without
    # a busy process.
    "GOMP_SPINCOUNT": "3000",
}
_ALLOCATOR = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # of torch; the second is the newer name


def worker_environment(use_gpu: bool) -> dict[str, str]:
    """The environment variables of a training worker, beside those of its node."""
    if not use_gpu:
        return WORKER_ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""}
    if any(name in os.environ for name in _ALLOCATOR):
        return WORKER_ENVIRONMENT
    # Rows differ in length from step to step, so blocks of fixed sizes leave memory that nothing fits into.
    return WORKER_ENVIRONMENT | {_ALLOCATOR[0]: "expandable_segments:True"}


def _keep(job: Job, found: str) -> None:
    """Copy the workers' result at `found` to `job.done`."""
    attempt.check()
    storage.write_text(storage.join(job.done, HISTORY), storage.read_text(storage.join(found, HISTORY)))
    adapter_files.copy(found, job.done)


class WorkerGroup:
    """The workers that train the runs of some arms; started when the first result is requested.

    `fit` runs in a thread, so that the main thread can report progress and keep Python's handling of Ctrl-C
    (Ray Train would take over SIGINT).
    """

    def __init__(self, directory: str):
        self.directory = directory
        self.jobs: list[Job] = []
        self._lines: dict[str, list[dict]] = {}  # by run: log lines not yet reported
        self._finished: set[str] = set()  # runs that the workers have reported as finished
        self._notices: dict[str, None] = {}  # of the workers, in the order in which they came
        self._board: Any = None  # Ray's handle of a `_Board`
        self._running: Future[None] | None = None
        self._executor = ThreadPoolExecutor(1)

    def finish(self, job: Job, on_line: Progress | None) -> None:
        """Wait until a run's adapter and history are in `job.done`. Raises RunFailed if training gave up."""
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

        max_failures = job.train.max_failures
        try:
            running = self._running
            if running is None:
                running = self._running = self._start()
            while not adapter_files.is_whole(job.done):
                over = not wait([running], timeout=POLL_S).not_done
                self._read()
                for line in self._lines.pop(job.name, ()):
                    if on_line is not None:
                        on_line(line)
                if over:
                    running.result()
                if over or job.name in self._finished:
                    self._adopt(job)
        except TrainingFailedError as e:
            raise RunFailed(f"training gave up after {max_failures} restarts: {_cause(e)}") from e
        except RayError as e:
            raise RunFailed(
                f"Ray shut down during training ({type(e).__name__}); rerun the same command to resume"
            ) from e

    def take_notices(self) -> list[str]:
        """The workers' notices since the last call."""
        notices, self._notices = list(self._notices), {}
        return notices

    def release(self, *, trained: bool) -> None:
        """Let go of the workers.

        trained: all runs are finished. Then this waits until Ray Train has ended. Its controller would still
                 write beside the checkpoints while they are removed. Its thread would call Ray
                 after the shutdown, which starts another Ray or ends the process with exit status 1.
        """
        if trained and self._running is not None:
            wait([self._running], timeout=END_S)
        self._executor.shutdown(wait=False)

    def _start(self) -> Future[None]:
        """Keep the runs that earlier attempts have finished, and start the workers on the rest."""
        others = [place for place in self._attempts() if place != self.directory]
        for job in self.jobs:
            left = (storage.join(place, storage.name(job.finished)) for place in (*others, self.directory))
            if not adapter_files.is_whole(job.done) and (
                found := next(filter(adapter_files.is_whole, left), None)
            ):
                _keep(job, found)
        todo = [job for job in self.jobs if not adapter_files.is_whole(job.done)]
        if not todo:
            over: Future[None] = Future()
            over.set_result(None)
            return over
        self._board = actor_on_driver_node(_Board)
        todo[0] = replace(todo[0], resume=self._newest(todo[0], others))
        return self._executor.submit(
            _fit, self.directory, [replace(job, progress=self._board) for job in todo]
        )

    def _attempts(self) -> list[str]:
        """Directories of the groups of this attempt and of earlier attempts."""
        checkpoints = self.directory.rpartition("/")[0]
        return [storage.join(checkpoints, name) for name in storage.directories(checkpoints)]

    def _newest(self, job: Job, others: list[str]) -> str | None:
        """A copy of a run's newest complete checkpoint of other attempts.

        A copy, because an attempt that still writes deletes old checkpoints.
        """
        from ray.train import Result

        for _ in range(_TRIES):
            found = {}
            for place in others:
                with suppress(RuntimeError):  # it has no checkpoint yet
                    checkpoint = Result.from_path(place).checkpoint
                    if checkpoint is not None and job.owns(checkpoint.path):
                        step = storage.name(checkpoint.path)
                        found[step] = storage.join(place, step)
            if not found:
                return None
            with suppress(OSError):  # deleted meanwhile: a newer checkpoint exists
                storage.remove(kept := storage.join(self.directory, "resumed"))
                return storage.copy(found[max(found)], kept)
        raise RunFailed(
            f"{self.directory}: other attempts' checkpoints change while being read; "
            "see with `setbacks status` which attempt is still training"
        )

    def _read(self) -> None:
        """Sort the workers' lines by run."""
        import ray

        if self._board is None:
            return
        for line in ray.get(self._board.take.remote()):
            if notice := line.get("notice"):
                self._notices[notice] = None
            elif run := line.get("finished"):
                self._finished.add(run)
            else:
                self._lines.setdefault(line["run"], []).append(
                    {key: value for key, value in line.items() if key != "run"}
                )

    def _adopt(self, job: Job) -> None:
        end = time.monotonic() + SEEN_S
        while not adapter_files.is_whole(job.finished):
            if time.monotonic() > end:
                raise RunFailed(
                    f"{job.finished}: missing after a worker finished it; every node must see the run"
                    " directory"
                )
            time.sleep(POLL_S)
        _keep(job, job.finished)


def _fit(directory: str, jobs: list[Job]) -> None:
    """Run a worker group to the end of its jobs; Ray Train resumes it after a loss."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig
    from ray.train.torch import TorchTrainer

    for variable, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    t = jobs[0].train
    storage_path, name = directory.rsplit("/", 1)
    TorchTrainer(
        _train,
        train_loop_config={"jobs": jobs},
        scaling_config=_scaling(t),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(
                max_failures=t.max_failures, controller_failure_limit=t.max_failures
            ),
            worker_runtime_env={"env_vars": worker_environment(t.use_gpu)},
            logging_config=LoggingConfig("CRITICAL"),
        ),
    ).fit()


def _scaling(train: Train) -> Any:
    """How many workers, and where Ray Train may place them."""
    from ray.train import ScalingConfig

    return ScalingConfig(
        num_workers=train.workers,
        use_gpu=train.use_gpu,
        accelerator_type=train.gpu_kind,
        elastic_resize_monitor_interval_s=RESIZE_S,
    )


def _train(arguments: dict) -> None:
    """The workers' function; imports torch in the worker, not in the driver."""
    environment.forget_accelerate()
    with imports.quick():
        from pipeline.training import loop

    loop.train(arguments["jobs"])


def _cause(error: Exception) -> str:
    """The first sentence of the first worker's exception (Ray's text is a traceback, with the exception in
    the last line)."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    return str(cause).strip().splitlines()[-1].split(". ")[0]


class _Board:
    """Actor that passes the workers' log lines to the driver."""

    def __init__(self):
        self.lines: list[dict] = []

    def post(self, line: dict) -> None:
        self.lines.append(line)

    def take(self) -> list[dict]:
        lines, self.lines = self.lines, []
        return lines
