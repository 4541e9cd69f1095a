"""Trackers that a run reports to: Weights & Biases, MLflow, TensorBoard.

Nothing is sent unless `track` names the tracker, whatever keys the environment holds. The driver alone
reports: training workers need no key and no package, and a line of the log gets its number in the whole
training, which a worker of one stage does not know. Only numbers, settings and the finished report leave the
machine, never a row.

A training is one run of each tracker. Its ids are kept beside the training's own state, so an attempt that
resumes it goes on in the same run, and steps that are there already are not sent again.
"""

import importlib
import importlib.util
import netrc
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import methodcaller
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pipeline.data import records, storage
from pipeline.errors import OutOfReach, UserError

Kind = Literal["wandb", "mlflow", "tensorboard"]
PROJECT = "setbacks"
NOTHING_SENT_YET = -1
_NOT_METRICS = {"step", "steps", "time", "iteration"}  # of a log line
# Statistics of use and reports of crashes, which the libraries would send to their makers, and their prints.
_SILENT = {
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# A server that does not answer must not hold up a training for hours.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class Tracker:
    """One open run of one tracker. Every method may raise whatever the library raises.

    last: the last step that the run holds, NOTHING_SENT_YET if it is new.
    """

    package: ClassVar[str]
    extra: ClassVar[str] = ""  # of this package; empty if the package is always there
    last = NOTHING_SENT_YET

    @classmethod
    def check(cls, run_dir: str) -> None:
        """Raises UserError if the tracker cannot be used, such as without a login. Asks no server."""

    @classmethod
    def check_reach(cls) -> None:
        """Raises OutOfReach if the tracker's server does not answer."""

    def __init__(self, run_dir: str, name: str, id: str | None, settings: dict):
        """id: of the run to go on with; None = a new one."""
        raise NotImplementedError

    id: str

    def log(self, numbers: Mapping[str, float], step: int, at: float) -> None:
        """at: time of the step, seconds since the epoch."""
        raise NotImplementedError

    def conclude(self, numbers: Mapping[str, float]) -> None:
        """Numbers of the whole run, without a step."""
        raise NotImplementedError

    def attach(self, path: str) -> None:
        """Keep a file with the run, if the tracker can."""

    def close(self, failed: bool) -> None:
        """End the run for now; it may be opened again by its id."""


class WandB(Tracker):
    package = extra = "wandb"

    @classmethod
    def check(cls, run_dir: str) -> None:
        if os.environ.get("WANDB_MODE", "online") != "online" or os.environ.get("WANDB_API_KEY"):
            return
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
                return
        raise UserError(
            "track: wandb has no login; run `wandb login`, set WANDB_API_KEY, or set WANDB_MODE to offline"
        )

    def __init__(self, run_dir: str, name: str, id: str | None, settings: dict):
        wandb = importlib.import_module("wandb")
        self.id = id or secrets.token_hex(8)
        self._wandb = wandb
        quiet = {"console": "off", "silent": True, "save_code": False, "disable_git": True}
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            group=storage.name(run_dir),
            name=name,
            id=self.id,
            resume="allow",
            config=settings,
            dir=os.environ.get("WANDB_DIR")
            or (run_dir if storage.is_local(run_dir) else tempfile.gettempdir()),
            settings=wandb.Settings(**quiet),
        )
        self.last = self._run.starting_step - 1

    def log(self, numbers: Mapping[str, float], step: int, at: float) -> None:
        self._run.log(dict(numbers), step=step)

    def conclude(self, numbers: Mapping[str, float]) -> None:
        self._run.summary.update(dict(numbers))

    def attach(self, path: str) -> None:
        artifact = self._wandb.Artifact(f"{storage.name(path)}-{self.id}".replace(".", "-"), type="report")
        artifact.add_file(path)
        self._run.log_artifact(artifact)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)


class MLflow(Tracker):
    package = extra = "mlflow"

    @classmethod
    def check(cls, run_dir: str) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise UserError(
                "track: mlflow has no place to report to; set MLFLOW_TRACKING_URI to the address of its"
                " server, or to a file such as sqlite:///mlflow.db"
            )

    @classmethod
    def check_reach(cls) -> None:
        uri = os.environ["MLFLOW_TRACKING_URI"]
        try:
            cls._client().search_experiments(max_results=1)
        except Exception as e:
            raise OutOfReach(
                f"track: mlflow does not answer at MLFLOW_TRACKING_URI = {_without_password(uri)}"
                f" ({type(e).__name__}); start its server, or correct address and login"
            ) from None

    @staticmethod
    def _client() -> Any:
        return importlib.import_module("mlflow").MlflowClient()

    def __init__(self, run_dir: str, name: str, id: str | None, settings: dict):
        client = self._client()
        self._entities = importlib.import_module("mlflow.entities")
        self._mlflow = client
        if id is None:
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            known = client.get_experiment_by_name(title)
            experiment = known.experiment_id if known else client.create_experiment(title)
            run = client.create_run(experiment, run_name=f"{storage.name(run_dir)}/{name}")
            id = run.info.run_id
            parameters = [self._entities.Param(key, str(value)[:500]) for key, value in _flat(settings)]
            client.log_batch(id, params=parameters, tags=[self._entities.RunTag("run_dir", run_dir)])
        else:
            client.update_run(id, status="RUNNING")
            self.last = max(
                (metric.step for metric in client.get_metric_history(id, "loss")), default=NOTHING_SENT_YET
            )
        self.id = id

    def log(self, numbers: Mapping[str, float], step: int, at: float) -> None:
        metric = self._entities.Metric
        found = [metric(key, value, int(at * 1000), step) for key, value in numbers.items()]
        self._mlflow.log_batch(self.id, metrics=found)

    def conclude(self, numbers: Mapping[str, float]) -> None:
        import time

        items = list(numbers.items())
        for begin in range(0, len(items), 500):  # a request takes 1000 at most
            self.log(dict(items[begin : begin + 500]), 0, time.time())

    def attach(self, path: str) -> None:
        self._mlflow.log_artifact(self.id, path)

    def close(self, failed: bool) -> None:
        self._mlflow.set_terminated(self.id, "FAILED" if failed else "FINISHED")


class TensorBoard(Tracker):
    package = "tensorboard"

    @classmethod
    def check(cls, run_dir: str) -> None:
        if not storage.is_local(run_dir):
            raise UserError(
                f"track: tensorboard writes its files while training runs, and run_dir = {run_dir} is an"
                " object store; use another tracker, or a directory"
            )

    def __init__(self, run_dir: str, name: str, id: str | None, settings: dict):
        self.id = id or storage.join(run_dir, "tensorboard", name)
        self._writer: Any = None

    def _open(self, step: int) -> Any:
        """The writer. Of a file of an earlier attempt, TensorBoard shows what was before the first step."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.id, purge_step=step, flush_secs=5)
        return self._writer

    def log(self, numbers: Mapping[str, float], step: int, at: float) -> None:
        writer = self._open(step)
        for name, value in numbers.items():
            writer.add_scalar(name, value, step, walltime=at)
        writer.flush()

    def conclude(self, numbers: Mapping[str, float]) -> None:
        writer = self._open(0)
        for name, value in numbers.items():
            writer.add_scalar(name, value, 0)

    def close(self, failed: bool) -> None:
        if self._writer is not None:
            self._writer.close()


TRACKERS: dict[str, type[Tracker]] = {"wandb": WandB, "mlflow": MLflow, "tensorboard": TensorBoard}


def check(track: Sequence[Kind], run_dir: str) -> None:
    """Raises UserError if a tracker's package or login is missing. Asks no server."""
    for kind in track:
        tracker = TRACKERS[kind]
        if importlib.util.find_spec(tracker.package) is None:
            raise UserError(
                f"track: the package {tracker.package} is not installed; run `pip install"
                f" 'setbacks[{tracker.extra}]'`, or take {kind} out of track"
            )
        tracker.check(run_dir)


def check_reach(track: Sequence[Kind]) -> None:
    """Raises OutOfReach if a tracker's server does not answer."""
    with _environment():
        for kind in track:
            TRACKERS[kind].check_reach()


def unused(track: Sequence[Kind]) -> list[str]:
    """A notice if a key is set for a tracker that `track` does not name."""
    if not os.environ.get("WANDB_API_KEY") or "wandb" in track:
        return []
    return ["WANDB_API_KEY: not used, because track does not name wandb"]


class Tracked:
    """The runs that several trackers have open for one training, or for one report.

    A tracker that fails is told and left out from then on: a run does not end for it.
    """

    def __init__(self, trackers: dict[str, Tracker], notice: Callable[[str], Any]):
        self._trackers, self._notice = trackers, notice

    def line(self, line: Mapping[str, Any]) -> None:
        """A line of the training log; one that was sent before is not sent again."""
        step, at = line["step"], line["time"]
        numbers = {
            name: value
            for name, value in line.items()
            if name not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
        }

        def log(tracker: Tracker) -> None:
            if step > tracker.last:
                tracker.log(numbers, step, at)
                tracker.last = step

        self._each(log)

    def conclude(self, numbers: Mapping[str, Any], files: Iterable[str] = (), *, under: str = "") -> None:
        """Numbers of the whole, and files that trackers keep with it.

        under: what the names begin with. A number of the whole must not have the name of one that lines have:
        it would be a step of its curve.
        """
        found = {
            f"{under}{name}": value
            for name, value in numbers.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        self._each(lambda tracker: tracker.conclude(found))
        for path in files:
            self._each(methodcaller("attach", path))

    def close(self, failed: bool) -> None:
        self._each(lambda tracker: tracker.close(failed))

    def _each(self, call: Callable[[Tracker], Any]) -> None:
        for kind, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as e:  # of a library, a server, a network; the text may hold a key
                self._notice(_broken(kind, e))
                del self._trackers[kind]


@contextmanager
def opened(
    track: Sequence[Kind],
    run_dir: str,
    name: str,
    state: str,
    settings: dict,
    notice: Callable[[str], Any],
) -> Iterator[Tracked]:
    """The trackers' runs of one training or report, of this name. Raises nothing of the trackers' own.

    state: the file that keeps their ids. settings: what the runs are told to be about.
    """
    ids = (records.read(state) or {}) if track else {}
    trackers: dict[str, Tracker] = {}
    with _environment():
        for kind in track:
            try:
                trackers[kind] = TRACKERS[kind](run_dir, name, ids.get(kind), settings)
            except Exception as e:
                notice(_broken(kind, e))
        if track:
            records.write(state, ids | {kind: tracker.id for kind, tracker in trackers.items()})
        found = Tracked(trackers, notice)
        try:
            yield found
        except BaseException:
            found.close(failed=True)
            raise
        found.close(failed=False)


def _broken(kind: str, error: Exception) -> str:
    return f"track: {kind} does not work ({type(error).__name__}), so what follows is not reported there"


@contextmanager
def _environment() -> Iterator[None]:
    """What the libraries read while they are used, unless the user has set it."""
    added = {name: value for name, value in {**_SILENT, **_PATIENCE}.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(f"{parts.username}:{parts.password}@", "") if parts.password else uri


def _flat(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested settings, with their paths."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree
