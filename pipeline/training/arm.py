"""Train the LoRA adapters of several arms: the driver's side. The workers' side is `loop.py`, the methods `sft.py`, `dpo.py`.

    prepare the training sets → name everything by its fingerprint → one worker group for all runs → publish (see `adapter.py`)

Starting a worker group costs more than training a small adapter: processes, imports, the base model. Arms that ask for the same workers
therefore share one, and each adapter is published as soon as it is finished, while the workers go on with the next.
What lies in the state directories meanwhile: see `job.py`.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pipeline import attempt, imports, pretrained
from pipeline.config import DPO, SFT, Config
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.errors import RunFailed, UserError
from pipeline.session import TRAIN_ENVIRONMENT, beside_driver
from pipeline.toy.model import shipped_recipe
from pipeline.training import adapter, examples, methods, start
from pipeline.training.job import HISTORY, Job, Run, write_table

Progress = Callable[[dict], None]
RESIZE_S = 60.0  # between two looks of an elastic training at whether there is room for another number of workers
POLL_S = 0.3  # between two looks at what the workers have logged
SEEN_S = 60.0  # for a file that a worker has written to be seen by the driver: NFS caches that it was not there
_TRIES = 3  # to read a checkpoint
WORKER_ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # How long an OpenMP thread on a CPU spins for the others before it sleeps. By default that is milliseconds, in vain if
    # another process has taken their core: two threads on two cores, beside one busy process, took 60 times as long as
    # alone. With this number 4 times, and alone 1.1 times.
    "GOMP_SPINCOUNT": "3000",
}


@dataclass(frozen=True)
class Arm:
    """One arm to train: its name, and its directories.

    examples: Parquet of `schema.SFT` for sft, of `schema.PREFERENCES` for dpo
    out:      where the adapter is published
    state:    its training set and its finished runs; storage that every node sees
    """

    name: str
    examples: str
    out: str
    state: str


class Training:
    """Trains arms one after the other. Used as a context manager: leaving it lets go of the workers.

    config, model_dir: as of a run; model_dir is a local model directory or a hub id (at `config.model.revision`)
    checkpoints:       where the workers of all arms keep checkpoints; storage that every node sees. Training again after a crash, with the
                       same directories, continues from the latest one and ends with the weights of an undisturbed training.

    The caller has called `ray.init`, and takes the results in the order of `arms`.
    Raises UserError if configuration, model or data do not fit together.
    """

    def __init__(self, config: Config, arms: list[Arm], model_dir: str, checkpoints: str):
        model_dir = os.path.abspath(model_dir) if os.path.isdir(model_dir) else model_dir
        self._checkpoints = storage.absolute(checkpoints)
        self._arms = {arm.name: _prepare(config, arm, model_dir) for arm in arms}
        shared = groupby(self._arms.values(), lambda prepared: _workers(prepared.jobs[0].train))
        for number, (_, members) in enumerate(shared, 1):
            group = WorkerGroup(storage.join(self._checkpoints, f"{attempt.number():04d}-{number}"))
            for prepared in members:
                prepared.join(group)

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for prepared in self._arms.values():
            prepared.group.release()
        if error is None:
            attempt.check()  # before the checkpoints of other attempts are removed
            storage.remove(self._checkpoints)

    def result(self, arm: str, on_progress: Progress | None = None) -> dict:
        """Wait until an arm is trained, and publish its adapter. Starts the workers if it is the first arm of its group.

        on_progress: called in this process with each log line: step, steps, loss, learning_rate, grad_norm, tokens, tokens_per_s, epoch;
                     for dpo also pairs_per_s, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies.

        Returns figures: examples, dropped, kinds (examples of each), drop_reasons, sequences, tokens, steps, seconds (of training, starts not
        counted), tokens_per_s, final_loss (mean of the last logged steps), trainable_parameters; for dpo also final_margin and
        final_accuracy (of the last logged steps); a `notice` if something set has no effect.
        Raises RunFailed if training gave up.
        """
        prepared = self._arms[arm]
        lines: list[dict] = []
        for job in prepared.jobs:
            number = _numbering(prepared.jobs, job, lines)
            prepared.group.finish(job, on_progress and (lambda line, number=number: on_progress(number(line))))
            lines += map(number, _history(job))
        return prepared.publish(lines)


@dataclass
class Prepared:
    """An arm whose training set is written and named."""

    arm: Arm
    tokenizer: Any
    counts: examples.Counts
    jobs: list[Job]
    parameters: int
    group: "WorkerGroup | None" = None

    def join(self, group: "WorkerGroup") -> None:
        """Have the arm's runs done by this group, after those that it has already."""
        self.group = group
        self.jobs = _chained([replace(job, group=group.directory) for job in self.jobs])
        group.jobs += self.jobs

    def publish(self, lines: list[dict]) -> dict:
        """Make the adapter directory; `lines` is the history of all runs. Returns the figures of `Training.result`."""
        first, last, seconds = self.jobs[0], lines[-1], sum(line["seconds"] for line in lines)
        figures = {
            "examples": self.counts.kinds.total(),
            "dropped": self.counts.dropped.total(),
            "kinds": dict(self.counts.kinds),
            "drop_reasons": dict(self.counts.dropped),
            "sequences": sum(job.run.items for job in self.jobs),
            "tokens": last["tokens"],
            "steps": last["step"],
            "seconds": seconds,
            "tokens_per_s": last["tokens"] / seconds,
            "final_loss": last["loss"],
            "trainable_parameters": self.parameters,
            **methods.of(first.train).figures(last),
            **_notice(first.train, self.parameters),
        }
        adapter.publish(
            first.config,
            self.arm.name,
            first.model_dir,
            self.tokenizer,
            lambda directory: _assemble(self.jobs[-1], directory),
            lines,
            self.arm.out,
            figures,
        )
        return figures


def _prepare(config: Config, arm: Arm, model_dir: str) -> Prepared:
    parameters = _check(config, arm.name, model_dir)
    tokenizer = pretrained.tokenizer(model_dir, config.model.revision)
    tables, counts, runs = methods.of(config.arms[arm.name].train).prepare(tokenizer, arm.examples, config, arm.name)
    name = fingerprint(config, arm.name, model_dir, tables)
    state_dir = storage.absolute(arm.state)
    _keep_only(state_dir, name)
    state = storage.join(state_dir, name)
    for table, content in tables.items():
        write_table(content, storage.join(state, f"{table}.parquet"))
    return Prepared(arm, tokenizer, counts, _jobs(config, arm.name, model_dir, state, runs), parameters)


def _workers(train: SFT | DPO) -> tuple:
    """Arms with the same answer can share a worker group."""
    return train.workers, train.use_gpu, train.max_failures


# -- what is checked before anything starts


def check_lora(config: Config, model_dir: str) -> None:
    """Every arm's adapter, and the one it begins from, must fit the model. Raises UserError."""
    checked = []
    for arm, settings in config.arms.items():
        kind = (settings.train.method, settings.train.lora, settings.train.start)
        if kind not in checked:
            _check(config, arm, model_dir)
            checked.append(kind)


def _check(config: Config, arm: str, model_dir: str) -> int:
    """How many parameters an arm trains, found on a model without weights. Raises UserError where its adapter does not fit the model."""
    from peft import get_peft_model, get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    t = config.arms[arm].train
    pretrained.check_weights(model_dir)
    architecture = pretrained.architecture(model_dir, config.model.revision)
    methods.of(t).check(architecture, f"{_field(config, arm, 'method')} = {t.method}")
    begin = start.directory(t.start) if t.start else None
    where = _field(config, arm, "start") + ".adapter"
    if begin is not None:
        start.load_config(begin, where)
    continues = t.start is not None and t.start.how == "continue"
    lora = adapter.lora_config(config, t, begin if continues else None)
    model = pretrained.empty(architecture)
    field = f"{_field(config, arm, 'lora')}.target_modules = {t.lora.target_modules}"
    try:
        model = get_peft_model(model, lora)
    except ValueError as e:
        reason = str(e).splitlines()[0]
        if continues:
            raise UserError(f"{where} = {begin}: it does not fit the model ({reason}); name an adapter of this model") from None
        raise UserError(f"{field} does not fit the model ({reason}): try all-linear") from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):  # TRL multiplies by its weights directly, and refuses
        raise UserError(f"{where if continues else field}: the adapter is on lm_head too, which cannot be trained: leave lm_head out")
    if t.start is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        start.check_fits(t.start, shapes, where)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _field(config: Config, arm: str, name: str) -> str:
    """Where the user most likely wrote a setting of an arm's training: under `train`, unless the arm's own differs."""
    same = getattr(config.train, name, None) == getattr(config.arms[arm].train, name)
    return f"train.{name}" if same else f"arms.{arm}.train.{name}"


def _notice(train: SFT | DPO, parameters: int) -> dict:
    if train.start is None or train.start.how != "continue":
        return {}
    return {"notice": f"lora is not used: start.how = continue trains the adapter's own {parameters:,} parameters on"}


# -- what names a training, and what is kept of it


def fingerprint(config: Config, arm: str, model_dir: str, tables: dict[str, Any]) -> str:
    """A name for everything that determines the weights: hyper-parameters, model, seed, start adapter, and the training set to the token."""
    t = config.arms[arm].train
    facts = {
        "train": t.model_dump(mode="json", exclude=t.OPERATIONAL),
        "start": start.content(t.start),
        "model": config.model.model_dump(mode="json"),
        "weights": _weights(config, model_dir),
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for table in tables.values():
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _weights(config: Config, model_dir: str) -> Any:
    """What the weights are known by. The toy's are the same wherever the package is installed and whenever that was."""
    if config.model.path == "toy":
        return shipped_recipe()["hash"]
    if not os.path.isdir(model_dir):
        return model_dir
    return [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in storage.files(model_dir)]


def _keep_only(state_dir: str, name: str) -> None:
    for other in storage.directories(state_dir):
        if other != name:
            storage.remove(storage.join(state_dir, other))


# -- runs


def _jobs(config: Config, arm: str, model_dir: str, state: str, runs: list[Run]) -> list[Job]:
    """A job per run. The first begins from the start adapter if there is one."""
    name = f"{arm}-{storage.name(state)}"
    jobs = [
        Job(config, arm, model_dir, state, number, run, name if number == 1 else f"{name}-{number}") for number, run in enumerate(runs, 1)
    ]
    begin = jobs[0].train.start
    if begin is None:
        return jobs
    role = "start" if begin.how == "continue" else "frozen"
    kept = storage.join(state, role)  # every node sees it there
    adapter_files.copy(start.directory(begin), kept)
    # A frozen adapter lies under every run. The start adapter is the first run's alone: each later one continues the run before.
    return [replace(job, **{role: kept}) if role == "frozen" or job is jobs[0] else job for job in jobs]


def _chained(jobs: list[Job]) -> list[Job]:
    """Let each run but the first begin from what the one before has made: kept by the driver already, or left by the workers."""
    chained = jobs[:1]
    for job in jobs[1:]:
        before = chained[-1]
        chained.append(replace(job, start=before.done if adapter_files.is_whole(before.done) else before.finished))
    return chained


def _numbering(jobs: list[Job], job: Job, before: list[dict]) -> Callable[[dict], dict]:
    """What makes a run's log line one of the arm's whole training: steps and tokens count over all runs."""
    t = job.train
    steps = sum(examples.steps(j.run.items, t.epochs, t.batch_size) for j in jobs)
    step, tokens = (before[-1]["step"], before[-1]["tokens"]) if before else (0, 0)
    several = {"iteration": job.number} if len(jobs) > 1 else {}
    return lambda line: {**line, "step": line["step"] + step, "steps": steps, "tokens": line["tokens"] + tokens, **several}


def _history(job: Job) -> list[dict]:
    text = storage.read_text(storage.join(job.done, HISTORY))
    return [line for line in json.loads(text)["log_history"] if "loss" in line]


def _assemble(job: Job, directory: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        frozen = adapter_files.fetch(job.frozen, scratch) if job.frozen else None
        start.assemble(frozen, adapter_files.fetch(job.done, scratch), directory)


def _keep(job: Job, found: str) -> None:
    """Copy what workers have left at `found` to `job.done`."""
    attempt.check()
    storage.write_text(storage.join(job.done, HISTORY), storage.read_text(storage.join(found, HISTORY)))
    adapter_files.copy(found, job.done)


class WorkerGroup:
    """The workers that go through the runs of some arms, started when the first result is asked for.

    `fit` runs in a thread, so that the driver's own can hand on progress, and so that Ctrl-C stays Python's (Ray Train would take
    SIGINT over).
    """

    def __init__(self, directory: str):
        self.directory, self.jobs = directory, []
        self._lines: dict[str, list[dict]] = {}  # by run: logged, and not handed on yet
        self._finished: set[str] = set()  # runs that the workers say are finished
        self._board = self._running = None
        self._executor = ThreadPoolExecutor(1)

    def finish(self, job: Job, on_line: Progress | None) -> None:
        """Wait until a run's adapter and history are in `job.done`. Raises RunFailed if training gave up."""
        from ray.exceptions import RayError
        from ray.train import TrainingFailedError

        max_failures = job.train.max_failures
        try:
            if self._running is None:
                self._start()
            while not adapter_files.is_whole(job.done):
                over = not wait([self._running], timeout=POLL_S).not_done
                self._read()
                for line in self._lines.pop(job.name, ()):
                    if on_line is not None:
                        on_line(line)
                if over:
                    self._running.result()
                if over or job.name in self._finished:
                    self._adopt(job)
        except TrainingFailedError as e:
            raise RunFailed(f"training gave up after {max_failures} restarts: {_cause(e)}") from e
        except RayError as e:
            raise RunFailed(
                f"Ray has gone down around the driver ({type(e).__name__}); the same command goes on from the last checkpoint"
            ) from e

    def release(self) -> None:
        self._executor.shutdown(wait=False)

    def _start(self) -> None:
        """Keep what earlier attempts have finished, and start the workers on the rest."""
        others = [place for place in self._attempts() if place != self.directory]
        for job in self.jobs:
            left = (storage.join(place, storage.name(job.finished)) for place in (*others, self.directory))
            if not adapter_files.is_whole(job.done) and (found := next(filter(adapter_files.is_whole, left), None)):
                _keep(job, found)
        todo = [job for job in self.jobs if not adapter_files.is_whole(job.done)]
        if not todo:
            self._running = Future()
            self._running.set_result(None)
            return
        self._board = beside_driver(_Board)
        todo[0] = replace(todo[0], resume=self._newest(todo[0], others))
        self._running = self._executor.submit(_fit, self.directory, [replace(job, progress=self._board) for job in todo])

    def _attempts(self) -> list[str]:
        """Directories of this attempt's groups and of earlier attempts'."""
        checkpoints = self.directory.rpartition("/")[0]
        return [storage.join(checkpoints, name) for name in storage.directories(checkpoints)]

    def _newest(self, job: Job, others: list[str]) -> str | None:
        """A copy of the newest whole checkpoint of a run that other attempts have left: those that still write delete theirs when
        they have newer ones."""
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
            with suppress(OSError):  # deleted meanwhile: there is a newer one
                storage.remove(kept := storage.join(self.directory, "resumed"))
                return storage.copy(found[max(found)], kept)
        raise RunFailed(
            f"{self.directory}: the checkpoints beside it change while they are read; see with `setbacks status` who else trains there"
        )

    def _read(self) -> None:
        """Sort what the workers have posted by run."""
        import ray

        if self._board is None:
            return
        for line in ray.get(self._board.take.remote()):
            if run := line.get("finished"):
                self._finished.add(run)
            else:
                self._lines.setdefault(line["run"], []).append({key: value for key, value in line.items() if key != "run"})

    def _adopt(self, job: Job) -> None:
        end = time.monotonic() + SEEN_S
        while not adapter_files.is_whole(job.finished):
            if time.monotonic() > end:
                raise RunFailed(f"{job.finished}: not there, though a worker has finished it; every node must see the run directory")
            time.sleep(POLL_S)
        _keep(job, job.finished)


def _fit(directory: str, jobs: list[Job]) -> None:
    """Run a worker group to the end of its jobs; Ray Train restarts it from its latest checkpoint when a worker is lost."""
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    for variable, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    t = jobs[0].train
    storage_path, name = directory.rsplit("/", 1)
    TorchTrainer(
        _train,
        train_loop_config={"jobs": jobs},
        scaling_config=ScalingConfig(num_workers=t.workers, use_gpu=t.use_gpu, elastic_resize_monitor_interval_s=RESIZE_S),
        run_config=RunConfig(
            name=name,
            storage_path=storage_path,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=t.max_failures, controller_failure_limit=t.max_failures),
            worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
            logging_config=LoggingConfig("CRITICAL"),
        ),
    ).fit()


def _train(arguments: dict) -> None:
    """The workers' function; imports torch there, not here."""
    with imports.quick():
        from pipeline.training import loop

    loop.train(arguments["jobs"])


def _cause(error: Exception) -> str:
    """The first sentence of the first worker's exception (Ray's text is a traceback, with the exception in the last line)."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    return str(cause).strip().splitlines()[-1].split(". ")[0]


class _Board:
    """The actor between the workers' log lines and the driver."""

    def __init__(self):
        self.lines: list[dict] = []

    def post(self, line: dict) -> None:
        self.lines.append(line)

    def take(self) -> list[dict]:
        lines, self.lines = self.lines, []
        return lines
