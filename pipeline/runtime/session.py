"""The Ray of this process, and the log files of stages.

Ray is the cluster that the process was submitted to, or a local Ray that ends with the command.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data import storage
from pipeline.errors import RunFailed, UserError
from pipeline.runtime import attempt, imports
from pipeline.runtime.console import level
from pipeline.settings.shown import first_line

# Each Ray Data operator needs a whole logical CPU. If operators outnumber CPUs, a resumed run hangs.
LEAST_LOGICAL_CPUS = 8
REACH_S = 20  # wait for a cluster's head to accept a connection
START_TRIES = 3  # of a local Ray, each up to 30 s: on a busy machine, the second or third try succeeds
# Environment variables of Ray. Those of Ray Train are set again when a trainer starts on an initialized Ray.
TRAIN_ENVIRONMENT = {
    # A node that the autoscaler starts after a loss takes minutes: it may pull an image of many gigabytes.
    # Each wait that ends without workers counts as a failure (`train.max_failures`).
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "1800",
    # the patch prints library output twice, and floods the log while data sets are fingerprinted
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # at 2 s, a checkpoint reported just before a crash is lost
}
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # no process per logical CPU: none would be used
}
# Without this variable, Ray binds to every address of the machine. The odd name is Ray's.
_LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
NOISY: tuple[str, ...] = (
    "ray",
    "ray.data",
    "ray.train",
    "ray.tune",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "vllm",
    "py.warnings",
)
CLIENTS = ("httpx", "httpcore", "urllib3", "huggingface_hub", "fsspec")
NOISY += CLIENTS
LOG_BYTES, LOG_FILES = 10 * 2**20, 3


@contextmanager
def ray_session(run_dir: str) -> Iterator[None]:
    """Connect to `$RAY_ADDRESS` (set by `ray job submit`), else start a local Ray, reachable from this
    machine only."""
    for variable, value in {**TRAIN_ENVIRONMENT, **_ENVIRONMENT}.items():
        os.environ.setdefault(variable, value)
    # Ray and accelerate would use an empty value
    for variable in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS", "OMP_NUM_THREADS"):
        if os.environ.get(variable) == "":
            del os.environ[variable]
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault(_LOOPBACK, "0")
        # events are for the dashboard, which is off; they only grow memory
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # of training workers
        # Ray starts its workers at nice 15. Next to another busy process, engines and trainers would get 1/30
        # of a core.
        os.environ.setdefault("RAY_worker_niceness", "0")
    with imports.quick():
        import ray
        import ray.data

    options = {"logging_level": logging.ERROR, "log_to_driver": False}
    with _own_signal_handlers():
        if address:
            _join(address, options)
        else:
            _start(options)
    _quiet_loggers()
    attempt.metrics(
        [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in ray.nodes()
            if node["Alive"]
        ]
    )
    try:
        yield
    finally:
        ray.shutdown()


def actor_on_driver_node(cls: type):
    """Start a small actor pinned to the driver's node, so that losing another node does not kill it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not soft: else Ray 2.60 places half of the zero-CPU actors on other nodes, although this node has room.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(cls).options(scheduling_strategy=here).remote()


def actor_id() -> str | None:
    """The id of the Ray actor that this process is, the same after Ray has restarted it; None if it is
    none."""
    import ray

    return ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None


def in_actor() -> bool:
    """Whether this process is a Ray actor."""
    return actor_id() is not None


def _start(options: dict) -> None:
    import ray

    # Ray reads the environment at import, which may be over by now
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
    cpus = max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1)
    for left in reversed(range(START_TRIES)):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            return
        except Exception as e:  # Ray has no narrower exception for a node that is not up after 30 s
            ray.shutdown()
            if left == 0:
                raise RunFailed(
                    f"Ray did not start on this machine: {first_line(e).rstrip('.')}. If the machine was"
                    " just busy, rerun the command; details: /tmp/ray/session_latest/logs"
                ) from None


def _join(address: str, options: dict) -> None:
    import ray

    try:
        _reach(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        raise UserError(
            f"RAY_ADDRESS = {address}: no Ray cluster can be joined at this address ({type(e).__name__}); "
            f"check that the cluster runs Ray {ray.__version__} and that its token is set on this machine "
            "(RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token), or unset RAY_ADDRESS"
        ) from None


def _reach(address: str) -> None:
    """Raises OSError if nobody listens at `host:port`: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep this process's SIGTERM handler: ray.init would install Ray's own.

    Ray's handler stops a starting Ray and raises SystemExit, which a Ray callback may swallow. The signal was
    then lost, or the start failed as if the machine were busy.
    """
    from ray._private import utils

    theirs, utils.set_sigterm_handler = utils.set_sigterm_handler, lambda _handler: None
    try:
        yield
    finally:
        utils.set_sigterm_handler = theirs


# -- log files


@contextmanager
def stage_logs(run_dir: str, stage: str) -> Iterator[Callable[[str], None]]:
    """Send library noise (warnings, C++ output on file descriptor 2) to RUN/logs/STAGE.log.

    Python's own stderr is unchanged. Yields `log_to(stage)`, which switches to another stage's file. Log
    files are local; a run directory on an object store has none.
    """
    terminal, python_stderr = os.dup(2), sys.stderr
    handler = _Descriptor(storage.join(run_dir, "logs") if storage.is_local(run_dir) else None)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.log_to(stage)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, closefd=False)
    handlers = _Handlers([handler])
    if level.verbose:
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        handlers += [shown]
    logging.getLogger("setbacks.noise").handlers = handlers
    try:
        yield handler.log_to
    finally:
        handlers[:] = [logging.NullHandler()]  # of threads that outlive the stages, as after a signal
        os.dup2(terminal, 2)
        sys.stderr = python_stderr
        os.close(terminal)


class _Handlers(list):
    """Handlers of loggers to which nobody adds any, or takes away.

    When they are imported or configured, libraries give their loggers a handler that writes to the terminal.
    """

    def append(self, _handler: logging.Handler) -> None: ...

    def remove(self, _handler: logging.Handler) -> None: ...

    def clear(self) -> None: ...


class _Descriptor(logging.Handler):
    """Writes records to file descriptor 2, next to C++ output, and redirects that descriptor to a file."""

    def __init__(self, directory: str | None):
        super().__init__()
        self._directory, self._path = directory, Path(os.devnull)

    def log_to(self, stage: str) -> None:
        if self._directory:
            self._path = Path(self._directory, f"{stage}.log")
        self.acquire()
        try:
            self._open()
        finally:
            self.release()

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(Exception):  # such as a full disk: a lost warning must not fail a run
            if self._directory and os.fstat(2).st_size > LOG_BYTES:
                self._open()
            os.write(2, (self.format(record) + "\n").encode(errors="replace"))

    def _open(self) -> None:
        """Open the file; rotate an oversized one. dup2 is atomic: no line of C++ output is lost or torn."""
        if self._directory:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > LOG_BYTES:
                for number in range(LOG_FILES - 1, 0, -1):
                    older = Path(f"{self._path}.{number - 1}") if number > 1 else self._path
                    if older.exists():
                        older.replace(f"{self._path}.{number}")
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 2)
        os.close(file)


def _quiet_loggers() -> None:
    """Send library warnings to the log file only. Call after ray.init, which sets up its own loggers."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.captureWarnings(True)
    handlers = logging.getLogger("setbacks.noise").handlers
    for name in NOISY:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, False
        # WARNING keeps servers and requests of httpx out of the log
        logger.setLevel(logging.INFO if level.verbose and name not in CLIENTS else logging.WARNING)
    # Raylets print warnings on the driver's terminal, regardless of log_to_driver.
    ray._private.worker.print_to_stdstream = _log_lines


def _log_lines(data: dict, ignore_prefix: bool) -> None:
    for line in data.get("lines", ()):
        logging.getLogger("ray").warning(line)
