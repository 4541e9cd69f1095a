"""One run directory, open for one attempt: what its stages have in common."""

import json
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from pipeline import models, placement, preflight, sampling, tracking, usable
from pipeline.config import Answering, Config, dump
from pipeline.data import storage
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.base import Engine
from pipeline.inference.pool import NO_MODEL, Job, ModelSpec, run_recipes
from pipeline.inference.row_chat import OWN
from pipeline.runtime import apart, attempt
from pipeline.runtime.session import ray_session, stage_logs
from pipeline.schema import STAGES, Schema
from pipeline.settings.base import Model
from pipeline.training.durability import DURABILITY

ON_RAY = ("generate", "train", "evaluate", "rejudge")


class Trainer(Protocol):
    """Trains the arms: `training.arm.Training`."""

    def result(self, arm: str, on_progress: Callable[[dict], None] | None = None) -> dict: ...


def train_arms(arms: list, checkpoints: str) -> AbstractContextManager[Trainer]:
    """The trainer of a real run. Imports torch."""
    from pipeline.training.arm import Training

    return Training(arms, checkpoints)


@dataclass(frozen=True)
class Machinery:
    """The machinery of a run: Ray, engines and trainers. Tests replace them.

    session: run directory → a context with a connected Ray.
    check:   checks that the cluster has room for the stages and sees the directories
             (`preflight.check_cluster`).
    engines: runs the recipes of jobs (see `inference.pool.run_recipes`).
    trainer: trains arms (see `training.arm.Training`).
    beside:  starts engines of all given models but the first beside its pool, if there is room
             (`placement.beside`).
    apart:   calls a function in a process of its own (see `runtime.apart.call`).
    """

    session: Callable[[str], AbstractContextManager] = ray_session
    check: Callable[..., None] = preflight.check_cluster
    engines: Callable[..., Generator[tuple[Job, dict], None, None]] = run_recipes
    trainer: Callable[..., AbstractContextManager[Trainer]] = train_arms
    beside: Callable[..., AbstractContextManager[Mapping[ModelSpec, Any]]] = placement.beside
    apart: Callable[..., None] = apart.call


class Run:
    """The outputs of a configuration in its run directory.

    `log` takes one line per output for the person watching.
    """

    def __init__(
        self,
        config: Config,
        *,
        overwrite: bool = False,
        retry_failed: bool = False,
        suites: Sequence[str] = (),
        log: Callable[[str], Any] = print,
        machinery: Machinery | None = None,
    ):
        self.config, self.overwrite, self.retry_failed, self.log = config, overwrite, retry_failed, log
        self.machinery = machinery or Machinery()
        self.path = storage.absolute(config.run_dir)
        self.generated = {name: self._store(method.generated) for name, method in config.methods.items()}
        self.training_sets = {schema: self._store(schema) for schema in config.training_sets()}
        self.adapters = {
            name: Output(self.path, f"adapter/{name}", fence=attempt.check) for name in config.replicas
        }
        self.further = {
            name: Output(self.path, f"adapter/{name}", fence=attempt.check) for name in config.further
        }
        self.further_set = self._store(DURABILITY) if config.further else None
        self.suites = {
            name: self._store(config.suites.items()[name].data_schema)
            for name in preflight.check_suites(config, suites)
        }
        self.verdicts = {
            (name, judge): Store(self.path, suite.verdicts_name(judge), suite.verdicts, fence=attempt.check)
            for name, suite in config.suites.items().items()
            if name in self.suites
            for judge in suite.judges_later
        }
        self._commits: dict[Model, Model] = {}
        self._anew = False
        self.on_exit = ExitStack()
        self._connected = False
        self._stages: list[str] = []
        self._log_to: Callable[[str], None] = lambda stage: None

    @cached_property
    def model_dir(self) -> str:
        """The directory (or hub id) of the run's model."""
        return models.model_dir(self.config.model)

    @cached_property
    def fingerprints(self) -> dict[str, dict]:
        """Fingerprints by output name. Computed after preflight, because they read prompt files."""
        return fingerprints(self.chosen)

    @property
    def chosen(self) -> Config:
        """The configuration with the chosen suites alone: what the others need is not checked."""
        return self.config.only(self.suites)

    def _store(self, schema: Schema) -> Store:
        return Store(self.path, schema.name, schema, fence=attempt.check)

    def outputs(self, stage: str) -> list[Output]:
        """The outputs of a stage."""
        made: dict[str, Iterable[Output]] = {
            "generate": self.generated.values(),
            "mix": [*self.training_sets.values(), *filter(None, [self.further_set])],
            "train": [*self.adapters.values(), *self.further.values()],
            "evaluate": self.suites.values(),
            "rejudge": self.verdicts.values(),
        }
        return [*made.get(stage, ())]

    def stages(self, wanted: Iterable[str] | None) -> list[str]:
        """The wanted stages, in order; None is all stages that have work in this configuration."""
        if wanted is not None:
            return [stage for stage in STAGES if stage in set(wanted)]
        return self.config.stages

    @contextmanager
    def open(self, stages: list[str]) -> Iterator[None]:
        """Hold the run directory while the body runs the stages.

        Raises UserError if a check fails before anything starts, RunFailed if another attempt takes over.
        """
        wanted = set(stages)
        preflight.check(self.chosen, wanted)
        self._anew = self._makes_all_anew(wanted)
        self.config = preflight.dated(self.config, anew=self._anew)
        self.config, sampled = sampling.resolved(self.config, wanted, self.suites)
        if not self.overwrite:
            for output in (output for stage in stages for output in self.outputs(stage)):
                output.check(self.fingerprints[output.name])
        again = "generate" in wanted and (self.overwrite or self.retry_failed)
        if {"mix", "train"} & wanted and not again:
            unmade = [
                output for stage in ("mix", "train") if stage in wanted for output in self.outputs(stage)
            ]
            if any(output.complete is None for output in unmade) and (
                told := usable.too_few(self.config, self.generated)
            ):
                raise UserError(told)
        preflight.check_build(self.chosen, wanted)
        preflight.check_reach(self.chosen, wanted, set(self.suites))
        checked = preflight.check_models(self.chosen, wanted, set(self.suites), self.model_dir)
        read = [stage for stage in STAGES[: STAGES.index(stages[-1])] if stage not in wanted]
        for notice in [*sampled, *checked, *self.made_otherwise(self.chosen, read)]:
            self.log(notice)
        self._stages = stages
        with (
            attempt.Attempt(self.path, stages),
            stage_logs(self.path, stages[0]) as self._log_to,
            self.on_exit,
        ):
            if any(
                output.complete is None
                for stage in stages
                if stage in ON_RAY
                for output in self.outputs(stage)
            ):
                self.connect()  # finds missing cluster resources first
            storage.write_text(preflight.date_file(self.config), str(self.config.model.date))
            storage.write_text(storage.join(self.path, "config.yaml"), dump(self.config))
            yield

    def _makes_all_anew(self, stages: set[str]) -> bool:
        """Whether --overwrite covers every output that the run directory holds."""
        others = (output for stage in STAGES if stage not in stages for output in self.outputs(stage))
        return self.overwrite and not any(storage.exists(output.path) for output in others)

    def made_otherwise(self, config: Config, stages: Iterable[str]) -> Iterator[str]:
        """A warning for each output of the stages that was made with other settings than `config` has."""
        try:
            now = fingerprints(preflight.dated(config))
        except UserError as e:  # a prompt file is gone; a report needs none
            yield f"WARNING: outputs cannot be compared with their settings ({e})"
            return
        for output in (output for stage in stages for output in self.outputs(stage)):
            if changes := output.changes(now[output.name]):
                yield (
                    f"WARNING: {output.name} was made with other settings than the configuration's"
                    f" ({'; '.join(changes)}); restore them, or make it again with --overwrite"
                )

    @property
    def reports(self) -> bool:
        """Whether this attempt ends with a report."""
        return STAGES[-1] in self._stages

    def begin(self, stage: str) -> None:
        attempt.begin(stage)
        self._log_to(stage)

    def connect(self) -> None:
        """Join or start Ray, unless already connected."""
        if not self._connected:
            stages = {stage for stage in self._stages if stage in ON_RAY}
            self.on_exit.enter_context(self.machinery.session(self.path))
            self._connected = True
            read = preflight.directories(self.chosen, stages, self.model_dir)
            self.machinery.check(self.chosen, stages, self.path, read, self.log)

    # -- outputs

    def start(self, output: Output, inputs: Mapping[str, str]) -> None:
        """Open an output to be made. inputs: digests of the upstream outputs, by name."""
        attempt.making(output.name)
        output.open({**self.fingerprints[output.name], "made_from": dict(inputs)}, overwrite=self.overwrite)

    def complete(self, output: Output, stage: str) -> dict:
        """The facts of a finished output.

        Raises UserError, naming the stage to run, if the output is not complete.
        """
        facts = output.complete
        if facts is None:
            raise UserError(f"{output.path} is not complete: run `setbacks {stage}` first")
        return facts

    def record(self, stage: str, figures: dict) -> None:
        """Append a line to RUN/metrics.jsonl, the report's source of timings and counts."""
        attempt.check()
        path = storage.join(self.path, "metrics.jsonl")
        before = storage.read_text(path) if storage.exists(path) else ""
        storage.write_text(path, before + json.dumps({"stage": stage, **figures}) + "\n")

    # -- models

    def models(
        self, own: Answering | None, adapters: tuple[str, ...], stages: Sequence[str], field: str
    ) -> dict[str, ModelSpec]:
        """The models of a recipe, by name: its own (None: it has none), and those that a section names.

        field: the section's path and a dot; stages: those that ask.
        """
        found = {OWN: self._spec(own.model, adapters, own.engine)} if own else {OWN: NO_MODEL}
        for place, name in self.config.named(stages).items():
            if place.startswith(field):
                one = self.config.answering(name)
                found[name] = self._spec(one.model, (), one.engine)
        return found

    def _spec(self, model: Model, adapters: tuple[str, ...], engine: Engine) -> ModelSpec:
        """How actors open a model."""
        if not engine.reads_model and model != self.config.model:
            return ModelSpec(model, "", engine, adapters)
        directory = self.model_dir if model == self.config.model else models.model_dir(model)
        if model.date is None:
            model = model.model_copy(update={"date": self.config.model.date})
        return ModelSpec(self.pinned(model), directory, engine, adapters)

    def pinned(self, model: Model) -> Model:
        """The model at its commit, which is looked up once for each attempt."""
        if model not in self._commits:
            self._commits[model] = models.pinned(model, self.path, anew=self._anew and not self._commits)
        return self._commits[model]

    # -- trackers

    def tracked(self, name: str, state: str, settings: dict) -> AbstractContextManager[tracking.Tracked]:
        """The trackers' runs of this name. state: the file that keeps their ids."""
        config = self.config
        return tracking.opened(config.track, self.path, name, state, settings, lambda told: self.log(told))

    def track_results(self) -> None:
        """Report the suites' numbers, and the report without examples: a page only folds their texts."""
        if not self.config.track:
            return
        from pipeline.commands import report, report_results

        state = storage.join(self.path, ".state", "tracking.json")
        with tempfile.TemporaryDirectory() as scratch:
            html, _ = report.write_report(self.config, self.path, to=scratch, examples=False)
            found = report_results.read(scratch)
            settings = {"model": self.config.model.identity(), "seed": self.config.seed, "arms": found.arms}
            with self.tracked("results", state, settings) as tracked:
                files = html, storage.join(scratch, report_results.FILE)
                tracked.conclude(report_results.by_name(found), files)


def adapter_digest(adapter: str) -> str:
    """A digest of an adapter's matrices. Raises OSError."""
    return storage.digest(storage.join(storage.absolute(adapter), "adapter_model.safetensors"))
