"""The Ray this process uses: the cluster it was submitted to, or one of its own for as long as the command lasts; and the stages' log files."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.data import storage
from pipeline.errors import RunFailed, UserError
from pipeline.runtime import attempt, imports

# Ray Data's operators each want a whole logical CPU; where operators outnumber CPUs a resumed run hangs, waiting for one.
LEAST_LOGICAL_CPUS = 8
START_TRIES = 3  # of a local Ray, which gives up after 30 s: on a machine that is only busy, the second or third try comes through
# What Ray reads from the environment. Train's part is set again where a trainer starts on a Ray that others have initialised.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints libraries' chatter twice, and floods the log while data sets are fingerprinted
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # with 2 s a checkpoint reported just before a crash is lost
}
_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # a process per logical CPU, none of which would be used
}
# What Ray's own network binds to: without it, every address of the machine. The variable's name is Ray's, from its beginnings on Windows.
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
NOISY += ("httpx", "httpcore", "urllib3", "huggingface_hub", "fsspec")
LOG_BYTES, LOG_FILES = 10 * 2**20, 3


@contextmanager
def ray_session(run_dir: str) -> Iterator[None]:
    """Connect to `$RAY_ADDRESS` (set by `ray job submit`), else start a local Ray, reachable from this machine only."""
    for variable, value in {**TRAIN_ENVIRONMENT, **_ENVIRONMENT}.items():
        os.environ.setdefault(variable, value)
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault(_LOOPBACK, "0")
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # kept for a dashboard that is not there; memory that grows
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # of training workers
        # Ray starts its workers at nice 15: beside another busy process engines and trainers would get a thirtieth of a core.
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
    attempt.metrics([f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in ray.nodes() if node["Alive"]])
    try:
        yield
    finally:
        ray.shutdown()


def beside_driver(cls: type):
    """A small actor on the driver's own node: no other node's loss takes it along, and where the driver's is lost, the run ends anyway."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Not soft: half of those that ask for no CPU would then be elsewhere, though there is room here (Ray 2.60).
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0)(cls).options(scheduling_strategy=here).remote()


def _start(options: dict) -> None:
    import ray

    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # read from the environment at import, which may have been earlier
    cpus = max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1)
    for left in reversed(range(START_TRIES)):
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
            return
        except Exception as e:  # Ray has no narrower one for a node that is not up after 30 s
            ray.shutdown()
            if left == 0:
                raise RunFailed(
                    f"Ray did not start on this machine: {_first_line(e).rstrip('.')}. If the machine was just busy, rerun the "
                    f"command; details: /tmp/ray/session_latest/logs"
                ) from None


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def _join(address: str, options: dict) -> None:
    import ray

    try:
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as e:
        raise UserError(
            f"RAY_ADDRESS = {address}: no Ray cluster can be joined there ({type(e).__name__}); check that it runs Ray {ray.__version__} and that "
            f"its token is known here (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or ~/.ray/auth_token), or unset RAY_ADDRESS"
        ) from None


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep the handler of SIGTERM that this process has: ray.init would set its own.

    Ray's stops the Ray that is just starting and raises SystemExit, which a callback of Ray's may swallow: the signal was
    lost, or the start failed as if the machine were busy.
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
    """Send library noise to RUN/logs/STAGE.log: warnings, and what C++ code writes to file descriptor 2. Python's own stderr stays as it is.

    Yields `log_to(stage)`, which turns to another stage's file. Log files are local; with a run directory on an object store there are none.
    """
    terminal, python_stderr = os.dup(2), sys.stderr
    handler = _Descriptor(storage.join(run_dir, "logs") if storage.is_local(run_dir) else None)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.log_to(stage)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, closefd=False)
    logging.getLogger("setbacks.noise").handlers = [handler]
    try:
        yield handler.log_to
    finally:
        os.dup2(terminal, 2)
        sys.stderr = python_stderr
        os.close(terminal)


class _Descriptor(logging.Handler):
    """Writes records to file descriptor 2, so that they lie among what C++ code writes there, and turns that to another file."""

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
        with suppress(Exception):  # a full disk: a warning is not worth a run
            if self._directory and os.fstat(2).st_size > LOG_BYTES:
                self._open()
            os.write(2, (self.format(record) + "\n").encode(errors="replace"))

    def _open(self) -> None:
        """Open the file, an overgrown one moved aside. dup2 is atomic: no line of C++ code is lost or torn."""
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
    """Warnings of libraries go to the log file only. After ray.init, which sets up loggers of its own."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.captureWarnings(True)
    handlers = logging.getLogger("setbacks.noise").handlers
    for name in NOISY:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(logging.WARNING)  # so that httpx names no server and no request
    # Raylets push warnings straight onto the driver's terminal, whatever log_to_driver says.
    ray._private.worker.print_to_stdstream = _log_lines


def _log_lines(data: dict, ignore_prefix: bool) -> None:
    for line in data.get("lines", ()):
        logging.getLogger("ray").warning(line)
