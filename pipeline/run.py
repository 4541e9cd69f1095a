"""One run directory, open for one attempt: helpers for every stage to make, record and log outputs."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

from pipeline import models, passes, placement, preflight, sampling, tracking, usable
from pipeline.chat import Recipe
from pipeline.config import Answering, Config, dump
from pipeline.data import endings, faults, records, storage
from pipeline.data.adapter import stage_directory
from pipeline.data.card import write_card
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.data.work import shared
from pipeline.errors import RunFailed, UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.base import Engine
from pipeline.inference.pool import NO_MODEL, Job, ModelSpec, run_recipes
from pipeline.inference.row_chat import OWN
from pipeline.origin import origin
from pipeline.registry import trainable
from pipeline.runtime import apart, attempt
from pipeline.runtime.console import step_bar
from pipeline.runtime.session import ray_session, stage_logs
from pipeline.schema import DROPPED, FAILED, STAGES, Schema
from pipeline.settings.base import Model
from pipeline.sources.counts import Accounts
from pipeline.suites.base import Suite
from pipeline.training.durability import DURABILITY
from pipeline.training.job import forget

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


@dataclass(frozen=True)
class Making:
    """A data set to make by running a recipe over rows.

    rows:   the rows to do, of schema `listed`; reading them fills the counts of the sources.
    field:  the configuration field of the section that names the sources.
    models: the models that the recipe asks, by name; its own is `row_chat.OWN`.
    inputs: digests of the upstream outputs, by name.
    first:  name of the model that the recipe asks first; None = its own.
    """

    store: Store
    rows: Callable[[Accounts], Iterable[dict]]
    field: str
    listed: Schema
    recipe: Recipe
    models: Mapping[str, ModelSpec]
    inputs: Mapping[str, str]
    first: str | None = None


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
        for notice in [*sampled, *checked]:
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

    # -- making

    def make(self, stage: str, makings: Sequence[Making]) -> None:
        """Make data sets by running recipes over rows. Data sets with the same model share engines.

        A data set is completed and recorded as soon as its own rows are done.
        """
        jobs = []
        for making in makings:
            store = making.store
            self._start(store, making.inputs)
            if self.retry_failed and (failed := store.reopen_failed()):
                self.log(f"{stage}: rerunning {failed} failed rows")
            if store.complete is None:
                self._write_work(stage, making)
                jobs.append(Job(making.recipe, store, making.models, making.first or OWN))
        earlier: dict[str, dict] = {}  # figures of earlier passes, by output
        turns = passes.passes(stage, jobs, connect=self.connect, beside=self.machinery.beside, log=self.log)
        with closing(turns):
            for spec, together in turns:
                self.connect()
                attempt.making(*(job.name for job in together))
                named = passes.names(spec, together)
                own = any(job.beside or job.models[OWN] == spec for job in together)
                label = stage if own or not named else f"{stage} by {', '.join(named)}"
                with closing(
                    self.machinery.engines(together, spec, seed=self.config.seed, label=label)
                ) as finished:
                    for job, figures in finished:
                        figures = passes.added(earlier.get(job.name), figures)
                        if job.undone():  # the other rows wait for another model
                            earlier[job.name] = figures
                            continue
                        self._finish(stage, job.store, figures)
        for making in makings:
            self._log_dataset(stage, making.store)
            if told := usable.few(making.store, 0.5):
                self.log(f"WARNING: {stage}: {told}")
            done = making.store.facts
            if told := faults.unjudged(done.get("faults", {}), done["rows"]):
                self.log(f"WARNING: {stage}: {told}")

    def _finish(self, stage: str, store: Store, figures: dict) -> None:
        """Complete and record a data set whose rows are all committed."""
        done = store.finish()
        read = {key: count for key, count in (store.work() or {}).items() if key != "token"}
        self._record(
            stage,
            {
                **self._part(stage, store),
                **figures,
                **read,
                **done["status"],
                **{name: done[name] for name in ("thoughts", "unended_thoughts") if name in done},
                "drops": done["reasons"],
            },
        )
        self._write_card(store, {**figures, "sources": usable.sources(store).told()})

    def measure(
        self, stage: str, store: Store, suite: Suite, adapters: Mapping[str, str], inputs: Mapping[str, str]
    ) -> None:
        """Make the data set of a suite that another program runs, arm after arm; finished parts are kept.

        adapters: arm → adapter directory. inputs: digests of the adapters.
        """
        self._start(store, inputs)
        if store.complete is None:
            started, parts = time.monotonic(), store.state("results")
            own = self.config.answering(None)
            for arm in self.config.arm_names:
                model = self._pinned(own.model)
                left = suite.apart(arm, adapters.get(arm), model, self.model_dir, own.engine, parts)
                if left is not None:
                    self.connect()
                    attempt.making(store.name)
                    self.log(f"{stage}: {suite.title}: {left.told}")
                    self.machinery.apart(left.function, gpus=left.gpus)
            rows, told = suite.collected(self.config.arm_names, parts)
            done = store.write_rows(rows)
            seconds = round(time.monotonic() - started, 2)
            self._record(
                stage,
                {**self._part(stage, store), "rows": done["rows"], "seconds": seconds, **done["status"]},
            )
            self._write_card(store, {"seconds": seconds, "sources": told})
            storage.remove(parts)
        self._log_dataset(stage, store)

    def write(
        self,
        store: Store,
        inputs: Mapping[str, Store],
        rows: Callable[[Counter, Accounts], Iterable[dict]],
        nothing: str,
    ) -> None:
        """Make a training set at once.

        rows: yields the rows; called with a counter of omissions by reason, and the counts of sources.
        nothing: why there can be no row. Raises RunFailed if there is no row, or none of a kind that an arm
        is trained on.
        """
        self._start(
            store, {source.name: self.complete(source, "generate")["digest"] for source in inputs.values()}
        )
        found = Accounts()
        if store.complete is None:
            if told := usable.too_few(self.config, self.generated):
                raise RunFailed(f"mix: {told}")
            started = time.monotonic()
            drops: Counter[str] = Counter()
            done = store.write_rows(rows(drops, found))
            figures = {
                "rows": done["rows"],
                "seconds": round(time.monotonic() - started, 2),
                "drops": dict(drops),
                "sources": found.facts(),
            }
            self._record("mix", {**self._part("mix", store), **figures})
            self._write_card(store, {"drops": dict(drops), "sources": found.told()})
            self._log_sources("mix", found)
        if not store.facts["rows"]:
            raise RunFailed(f"mix: no training example in {store.path}: {nothing}")
        usable.check_kinds(self.config, store, self.generated, found)
        self._log_dataset("mix", store)
        if not trainable(store.schema) and store is not self.further_set:
            self.log(
                f"mix: nothing is trained on {store.schema.name}; {store.path} can be the path of another"
                " run's instructions"
            )

    def fit(self, inputs: Mapping[str, Mapping[str, str]]) -> None:
        """Train the arms.

        Arms with the same workers share them. inputs: arm → digests of its upstream outputs.
        """
        for arm, output in self.adapters.items():
            self._check_unfinished(output, inputs[arm])
            self._start(output, inputs[arm])
        waiting = {arm: output for arm, output in self.adapters.items() if output.complete is None}
        for arm, output in self.adapters.items():
            if arm not in waiting:
                self._log_adapter(arm, output)
        checkpoints = storage.join(self.path, ".state", "train")
        if not waiting:
            self._log_unequal()
            storage.remove(f"{checkpoints}_sets")  # of an attempt that ended right after its last arm
            return
        from pipeline.training import equal
        from pipeline.training.arm import Places  # imports torch

        self.connect()
        if self.overwrite:
            storage.remove(checkpoints)
            storage.remove(f"{checkpoints}_sets")
        specs = preflight.arm_specs(self.config, self.model_dir, self._pinned(self.config.model))
        examples = {schema: store.dataset for schema, store in self.training_sets.items()}
        arms = []
        finished = self._steps(set(self.adapters) - set(waiting))
        for arm, output in waiting.items():
            places = Places(examples[specs[arm].train.accepts], output.path, output.state("train"))
            key = equal.compared(specs[arm].train)
            done = finished.get(key, {}) if key is not None else {}
            arms.append((replace(specs[arm], finished=max(done.values(), default=0)), places))
        self._train(arms, waiting, checkpoints)
        self._log_unequal()
        forget(checkpoints, self.adapters)  # those that earlier attempts have left

    def fit_further(self, inputs: Mapping[str, Mapping[str, str]]) -> None:
        """Train arms further from their adapters (see `training.durability`). inputs: as in `fit`."""
        for name, output in self.further.items():
            self._check_unfinished(output, inputs[name])
            self._start(output, inputs[name])
        waiting = {name: output for name, output in self.further.items() if output.complete is None}
        for name, output in self.further.items():
            if name not in waiting:
                self._log_adapter(name, output)
        if not waiting or self.further_set is None:
            return
        from pipeline.training.arm import Places  # imports torch

        self.connect()
        checkpoints = storage.join(self.path, ".state", "train_further")
        if self.overwrite:
            storage.remove(checkpoints)
            storage.remove(f"{checkpoints}_sets")
        paths = {arm: output.path for arm, output in self.adapters.items()}
        specs = preflight.further_specs(self.config, self.model_dir, paths, self._pinned(self.config.model))
        examples = self.further_set.dataset
        arms = [
            (specs[name], Places(examples, output.path, output.state("train")))
            for name, output in waiting.items()
        ]
        self._train(arms, waiting, checkpoints)
        forget(checkpoints, self.further)

    def _train(self, arms: list, waiting: Mapping[str, Output], checkpoints: str) -> None:
        """Train arms one after the other, and record each one as it is finished."""
        with self.machinery.trainer(arms, checkpoints) as training:
            for arm, output in waiting.items():
                attempt.making(output.name)
                with (
                    self.tracked(arm, output.state("tracking.json"), self._settings_of(arm)) as tracked,
                    step_bar(f"train {arm}", attempt.step_reporter()) as update,
                ):

                    def show(line: dict, arm=arm, update=update, tracked=tracked) -> None:
                        if "reference" in line:
                            done = f"{line['reference']:,} of {line['pairs']:,} pairs"
                            self.log(f"train: {arm}: log-probabilities under the reference for {done}")
                            return
                        update(line["step"], line["steps"], f"loss {line['loss']:.3f}")
                        tracked.line(line)

                    figures = training.result(arm, show)
                    for line in records.lines(storage.join(output.path, "metrics.jsonl")):
                        tracked.line(line)  # those that nobody was there to show
                    tracked.conclude(figures, under="training/")
                figures["digest"] = adapter_digest(output.path)
                output.mark_complete(figures)
                storage.remove(output.state("train"))
                self._record("train", {"arm": arm, **figures})
                if notice := figures.get("notice"):
                    self.log(f"train: {notice}")
                self._log_adapter(arm, output)

    def tracked(self, name: str, state: str, settings: dict) -> AbstractContextManager[tracking.Tracked]:
        """The trackers' runs of this name. state: the file that keeps their ids."""
        config = self.config
        return tracking.opened(config.track, self.path, name, state, settings, lambda told: self.log(told))

    def _settings_of(self, arm: str) -> dict:
        """What trackers are told of an arm."""
        common = {"arm": arm, "model": self.config.model.identity(), "seed": self.config.seed}
        if (replica := self.config.replicas.get(arm)) is None:
            return {**common, "durability": self.fingerprints[f"adapter/{arm}"]["durability"]}
        section = replica.section.model_dump(mode="json")
        return {**common, "seed": replica.seed, "kinds": section["kinds"], "train": section["train"]}

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

    def _steps(self, arms: Iterable[str]) -> dict[tuple, dict[str, int]]:
        """The steps of finished arms, by what makes arms comparable (see `training.equal`)."""
        from pipeline.training import equal

        found: dict[tuple, dict[str, int]] = {}
        for arm in arms:
            train = self.config.replicas[arm].section.train
            key, steps = equal.compared(train), self.adapters[arm].facts.get("steps")
            if key is not None and steps is not None:
                found.setdefault(key, {})[arm] = steps
        return found

    def stage_adapters(self) -> dict[str, str]:
        """The adapters after every stage but the last of the staged arms: name → directory.

        Raises UserError if an arm was trained before these were kept.
        """
        found = {}
        for name, output in self.adapters.items():
            possible, kept = self.config.stage_names(name), self.complete(output, "train").get("stages")
            if possible and kept is None:
                raise UserError(
                    f"{output.path} was trained by an older version, which did not keep the adapters of the"
                    " stages: set every_stage to false, or train anew with --overwrite"
                )
            for stage in possible[: (kept or 1) - 1]:
                found[stage] = stage_directory(output.path, int(stage.rpartition("_stage")[2]))
        return found

    def _log_unequal(self) -> None:
        """Warn of compared arms with other numbers of steps: an arm was added, or an older version ran."""
        from pipeline.training import equal

        for steps in self._steps(self.adapters).values():
            if max(steps.values()) - min(steps.values()) > equal.TOLERANCE:
                told = ", ".join(f"{arm} {count}" for arm, count in steps.items())
                self.log(
                    f"WARNING: train: arms are trained for different numbers of steps ({told}), although"
                    " train.equal_steps is true: use --overwrite to train them alike"
                )

    def _check_unfinished(self, output: Output, inputs: Mapping[str, str]) -> None:
        """Raises UserError if a training began on other inputs: a restart would delete its checkpoints."""
        if self.overwrite or output.complete is not None or not storage.directories(output.state("train")):
            return
        if changes := output.other_inputs(inputs):
            raise UserError(
                f"{output.path} is partly trained on other data ({'; '.join(changes)}): "
                "choose another run_dir, or train anew with --overwrite"
            )

    def complete(self, output: Output, stage: str) -> dict:
        """The facts of a finished output.

        Raises UserError, naming the stage to run, if the output is not complete.
        """
        facts = output.complete
        if facts is None:
            raise UserError(f"{output.path} is not complete: run `setbacks {stage}` first")
        return facts

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
        return ModelSpec(self._pinned(model), directory, engine, adapters)

    def _pinned(self, model: Model) -> Model:
        """The model at its commit, which is looked up once for each attempt."""
        if model not in self._commits:
            self._commits[model] = models.pinned(model, self.path, anew=self._anew and not self._commits)
        return self._commits[model]

    # -- records and logs

    def _start(self, output: Output, inputs: Mapping[str, str]) -> None:
        attempt.making(output.name)
        output.open({**self.fingerprints[output.name], "made_from": dict(inputs)}, overwrite=self.overwrite)

    def _write_work(self, stage: str, making: Making) -> None:
        spec, found = making.models[making.first or OWN], Accounts()
        wanted = spec.engine.rows_per_commit
        rows, block_rows = making.rows(found.below(making.field)), wanted
        if making.store.work() is None:  # else its sources are not read again
            rows, block_rows = shared(rows, wanted, spec.most_actors)
        written = making.store.write_work(
            rows,
            making.listed,
            lambda: {"sources": found.facts(), "rows_per_commit": wanted},
            block_rows=block_rows,
        )
        self._log_sources(stage, usable.sources(making.store))
        begun_with = written.get("rows_per_commit", wanted)
        if begun_with != wanted:
            fixed = f"rows_per_commit={begun_with} (fixed when the run started)"
            self.log(f"{stage}: resuming with {fixed}; use --overwrite to change it to {wanted}")

    def _log_sources(self, stage: str, found: Accounts) -> None:
        for line in found.told(all=False):
            self.log(f"{stage}: {line}")

    def _part(self, stage: str, store: Store) -> dict:
        """The key of a metrics.jsonl line that says which of several outputs of a stage it is about."""
        suites = {made.name: name for name, made in self.suites.items()}
        if stage == "evaluate":
            return {"suite": suites[store.name]}
        if stage == "rejudge":
            return {"suite": store.name}
        return {"suite": store.name} if len(self.outputs(stage)) > 1 else {}

    def _record(self, stage: str, figures: dict) -> None:
        """Append a line to RUN/metrics.jsonl, the report's source of timings and counts."""
        attempt.check()
        path = storage.join(self.path, "metrics.jsonl")
        before = storage.read_text(path) if storage.exists(path) else ""
        storage.write_text(path, before + json.dumps({"stage": stage, **figures}) + "\n")

    def _write_card(self, store: Store, figures: dict) -> None:
        made = next((place for place, one in self.verdicts.items() if one.name == store.name), None)
        write_card(
            store, origin(self.config, store.schema, made), self.fingerprints[store.name]["prompts"], figures
        )

    def _log_adapter(self, arm: str, output: Output) -> None:
        done = output.facts
        self.log(
            f"train: {arm} on {done['examples']:,} examples{_held_out(done)}, {done['steps']}"
            f" steps{_more(done)}, final loss {done['final_loss']:.3f} → {output.path}"
        )

    def _log_dataset(self, stage: str, store: Store) -> None:
        """Log a data set. Raises RunFailed if no row succeeded: later stages would have no input."""
        # a crash occurred between completion and card
        if not storage.exists(storage.join(store.path, "README.md")):
            self._write_card(store, {"sources": usable.sources(store).told()})
        done = store.facts
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(done["status"].items()))
        self.log(f"{stage}: {done['rows']:,} rows{f' ({counts})' if counts else ''} → {store.path}")
        counted = faults.told(done.get("faults", {}), done.get("endings", {}))
        for sentence in [*endings.told(done), *counted]:
            self.log(f"{stage}: {sentence}")
        nothing = [status for status in (FAILED, DROPPED) if done["status"].get(status)]
        if done["rows"] and sum(done["status"][status] for status in nothing) == done["rows"]:
            common = max(done["reasons"], key=done["reasons"].get)
            remedy = "change the source, the selection or max_tokens, and use --overwrite"
            if FAILED in nothing:
                remedy = "fix the cause and rerun with --retry-failed, or --overwrite to reread the source"
            ended = f"all {done['rows']} rows {' or '.join(nothing)}"
            raise RunFailed(f"{stage}: {ended}, most with: {common}; {remedy}")


def _more(done: dict) -> str:
    """How many steps a finished training would have taken by its own epochs, if it took others."""
    own = done.get("own_steps", done["steps"])
    return "" if own == done["steps"] else f" ({own} in {done['own_epochs']:g} epochs, made equal)"


def _held_out(done: dict) -> str:
    """What was held out of a training, and how the adapter that was kept does on it."""
    if "held_out" not in done:
        return ""
    return (
        f" ({done['held_out']:,} held out, loss {done['holdout_loss']:.3f} at step {done['kept_step']}, which"
        " is kept)"
    )


def adapter_digest(adapter: str) -> str:
    """A digest of an adapter's matrices. Raises OSError."""
    return storage.digest(storage.join(storage.absolute(adapter), "adapter_model.safetensors"))
