"""THE MAIN PATH: generate → mix → train → evaluate → report. Read this file first.

Each stage is a function of the configuration and of what earlier stages left in the run directory, so each can be run alone and
resumed. A stage that is whole is passed over; what an interrupted one has committed is kept.
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from functools import cache, partial

from pipeline import models, placement, preflight
from pipeline.config import Config, dump
from pipeline.data import storage
from pipeline.data.card import Origin, write_card
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import RunFailed, UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.pool import Job, ModelSpec, run_recipes
from pipeline.methods.base import Method
from pipeline.runtime import attempt
from pipeline.runtime.console import step_bar
from pipeline.runtime.session import ray_session, stage_logs
from pipeline.schema import DROPPED, FAILED, INSTRUCTIONS, STAGES, Schema
from pipeline.settings.base import Model, Section, Source
from pipeline.settings.walk import sections
from pipeline.sources import instructions
from pipeline.suites.base import Suite

ON_RAY = {"generate", "train", "evaluate"}


class Experiment:
    """One run directory and the configuration it is made with. `tell` takes one line per stage for the person watching."""

    def __init__(self, config: Config, *, overwrite: bool = False, retry_failed: bool = False, suites: Iterable[str] = (), tell=print):
        self.config, self.overwrite, self.retry_failed, self.tell = config, overwrite, retry_failed, tell
        self.run_dir = storage.absolute(config.run_dir)
        self.generated = {name: self._store(method.generated) for name, method in config.methods.items()}
        self.training_sets = {schema: self._store(schema) for schema in config.training_sets()}
        self.adapters = {arm: Output(self.run_dir, f"adapter/{arm}", fence=attempt.check) for arm in config.arms}
        self.suites = {suite: self._store(config.suites.items()[suite].schema) for suite in preflight.check_suites(config, suites)}
        self.outputs = {
            "generate": [*self.generated.values()],
            "mix": [*self.training_sets.values()],
            "train": [*self.adapters.values()],
            "evaluate": [*self.suites.values()],
        }

    def run(self, stages: Iterable[str] | None = None) -> None:
        """Run stages in order; by default all that the configuration has work for.

        Raises UserError before anything starts, RunFailed where a stage cannot be completed.
        """
        every = [stage for stage, outputs in self.outputs.items() if outputs] + ["report"]
        if self.config.model.is_dummy:
            every = ["generate", "mix", "report"]  # it has no weights to train
        wanted = [stage for stage in STAGES if stage in (every if stages is None else set(stages))]
        if wanted == ["report"]:
            return self.report()  # reads nothing but the run directory
        preflight.check(self.config, set(wanted), suites=set(self.suites))
        self.model_dir = models.model_dir(self.config.model)
        self.fingerprints = fingerprints(self.config)
        if not self.overwrite:
            for output in (output for stage in wanted for output in self.outputs.get(stage, ())):
                output.check(self.fingerprints[output.name])
        for notice in preflight.check_models(self.config, set(wanted), set(self.suites), self.model_dir):
            self.tell(notice)
        with attempt.Attempt(self.run_dir, wanted), stage_logs(self.run_dir, wanted[0]) as log_to, ExitStack() as on_exit:
            self._start_ray = cache(lambda: self._connect(on_exit, set(wanted) & ON_RAY))
            if any(output.complete is None for stage in ON_RAY.intersection(wanted) for output in self.outputs[stage]):
                self._start_ray()  # what the cluster lacks is told before anything else is done
            storage.write_text(storage.join(self.run_dir, "config.yaml"), dump(self.config))
            for stage in wanted:
                attempt.begin(stage)
                log_to(stage)
                getattr(self, stage)()

    # -- stages

    def generate(self) -> None:
        """Instructions → what each method makes of them: one row per instruction and sample, every row accounted for."""
        jobs: dict[ModelSpec, list[Job]] = {}
        for name, method in self.config.methods.items():
            store, (model, adapter) = self.generated[name], method.generator(self.config.model)
            self._open(store, {"adapter": _digest(adapter)} if adapter else None)
            self._reopen("generate", store)
            if store.complete is None:
                counts = instructions.Counts()
                rows = instructions.read(method.instructions, counts)
                self._write_work("generate", store, _repeated(rows, method.samples), INSTRUCTIONS, counts)
                spec = self._spec(model, (storage.absolute(adapter),) if adapter else (), endpoint=True)
                jobs.setdefault(spec, []).append(Job(method.recipe(self.config.seed), store))
        for spec, together in jobs.items():  # methods that ask the same model share its engines
            self._run_jobs("generate", together, spec)
        for store in self.generated.values():
            self._tell_dataset("generate", store)

    def mix(self) -> None:
        """What was generated → training sets: conversations, preference pairs."""
        for schema, methods in self.config.training_sets().items():
            store = self.training_sets[schema]
            sources = {name: self.generated[name] for name in methods}
            self._open(store, {source.name: self._whole(source, "generate")["digest"] for source in sources.values()})
            if store.complete is None:
                started, drops = time.monotonic(), Counter()
                rows = (methods[name].examples(source.dataset.rows(), drops, self.config.seed) for name, source in sources.items())
                done = store.write_rows(itertools.chain.from_iterable(rows))
                figures = {"rows": done["rows"], "seconds": round(time.monotonic() - started, 2), "drops": dict(drops)}
                self._record("mix", figures if len(self.training_sets) == 1 else {"suite": schema.name, **figures})
                self._write_card(store, {"drops": dict(drops)})
            if not store.complete["rows"]:
                nothing = "; ".join(method.nothing for method in methods.values())
                raise RunFailed(f"mix: no training example in {store.path}: {nothing}")
            self._tell_dataset("mix", store)

    def train(self) -> None:
        """The training sets → one LoRA adapter per arm. Arms that ask for the same workers share them."""
        for arm, output in self.adapters.items():
            train = self.config.arms[arm].train
            training_set = self.training_sets[train.accepts]
            made_from = {training_set.name: self._whole(training_set, "mix")["digest"]}
            self._open(output, made_from | ({"start": _digest(train.start.adapter)} if train.start else {}))
        waiting = {arm: output for arm, output in self.adapters.items() if output.complete is None}
        for arm, output in self.adapters.items():
            if arm not in waiting:
                self._tell_adapter(arm, output)
        if not waiting:
            return
        from pipeline.training.arm import Places, Training

        self._start_ray()
        checkpoints = storage.join(self.run_dir, ".state", "train")
        if self.overwrite:
            storage.remove(checkpoints)
        specs = preflight.arm_specs(self.config, self.model_dir)
        examples = {schema: store.dataset for schema, store in self.training_sets.items()}
        arms = [
            (specs[arm], Places(examples[specs[arm].train.accepts], output.path, output.state("train"))) for arm, output in waiting.items()
        ]
        with Training(arms, checkpoints) as training:
            for arm, output in waiting.items():
                attempt.making(output.name)
                with step_bar(f"train {arm}", attempt.step_reporter()) as update:
                    figures = training.result(arm, on_progress=lambda line: update(line["step"], line["steps"], f"loss {line['loss']:.3f}"))
                figures["digest"] = _digest(output.path)
                output.mark_complete(figures)
                storage.remove(output.state("train"))
                self._record("train", {"arm": arm, **figures})
                if notice := figures.get("notice"):
                    self.tell(f"train: {notice}")
                self._tell_adapter(arm, output)

    def evaluate(self) -> None:
        """The base model, all arms and given adapters through all suites: one engine start, arms by LoRA."""
        trained = {arm: self._whole(output, "train")["digest"] for arm, output in self.adapters.items()}
        given = {name: _digest(path) for name, path in self.config.adapters.items()}
        adapters = {arm: output.path for arm, output in self.adapters.items()} | preflight.given_adapters(self.config)
        for arm in self.adapters:
            models.check_adapter(f"arms.{arm}", adapters[arm], self.model_dir)
        if self.config.inference.endpoint:
            self.tell("evaluate: inference.endpoint is not used here; adapters need vLLM in the actors")
        jobs = []
        for suite, store in self.suites.items():
            self._open(store, trained | given)
            self._reopen("evaluate", store)
            if store.complete is None:
                jobs.append(self._suite_job(self.config.suites.items()[suite], store, adapters))
        if jobs:
            self._run_jobs("evaluate", jobs, self._spec(self.config.model, tuple(adapters.values())))
        for store in self.suites.values():
            self._tell_dataset("evaluate", store)

    def report(self) -> None:
        """What is in the run directory → report.html and report.md."""
        preflight.check_run_dir(self.config, set())
        if not storage.exists(self.run_dir):
            raise UserError(f"run_dir = {self.config.run_dir}: nothing has been run there; use `setbacks run` first")
        from pipeline.commands.report import write_report

        html, markdown = write_report(self.config, self.run_dir)
        self.tell(f"report: {html} and {markdown}")

    def _suite_job(self, suite: Suite, store: Store, adapters: dict[str, str]) -> Job:
        """Write the work list of a suite, and say how it is run."""
        counts = instructions.Counts()
        tokenizer = partial(models.load_tokenizer, self.config.model, self.model_dir)
        rows = suite.rows(self.config.arm_names, self.config.seed, counts, tokenizer)
        self._write_work("evaluate", store, rows, store.schema, counts)
        return Job(suite.recipe(adapters), store)

    # -- what the stages share

    def _connect(self, on_exit: ExitStack, stages: set[str]) -> None:
        on_exit.enter_context(ray_session(self.run_dir))
        placement.check_cluster(self.config, stages, self.run_dir, preflight.directories(self.config, stages, self.model_dir))

    def _open(self, output: Output, made_from: dict | None = None) -> None:
        """Start or resume an output; `made_from` are the digests of the earlier outputs it is derived from."""
        attempt.making(output.name)
        output.open({**self.fingerprints[output.name], "made_from": made_from or {}}, overwrite=self.overwrite)

    def _store(self, schema: Schema) -> Store:
        return Store(self.run_dir, schema.name, schema, fence=attempt.check)

    def _reopen(self, stage: str, store: Store) -> None:
        if self.retry_failed and (failed := store.reopen_failed()):
            self.tell(f"{stage}: {failed} failed rows are run again")

    def _write_work(
        self, stage: str, store: Store, rows: Iterable[dict], schema: Schema, counts: instructions.Counts | None = None
    ) -> None:
        wanted = self.config.inference.rows_per_commit
        begun_with = store.write_work(rows, schema, counts, block_rows=wanted)["block_rows"]
        if begun_with != wanted:
            self.tell(f"{stage}: goes on with rows_per_commit = {begun_with}, as it began; {wanted} would need --overwrite")

    def _run_jobs(self, stage: str, jobs: list[Job], spec: ModelSpec) -> None:
        """Run the jobs with one start of the engines. A data set becomes whole when its own rows are done."""
        self._start_ray()
        attempt.making(*(job.name for job in jobs))
        suites = {store.name: {"suite": suite} for suite, store in self.suites.items()}
        if stage == "generate" and len(self.generated) > 1:
            suites |= {store.name: {"suite": store.name} for store in self.generated.values()}
        with closing(run_recipes(jobs, spec, seed=self.config.seed, label=stage)) as finished:
            for job, figures in finished:
                done = job.store.finish()
                read = {key: count for key, count in job.store.work().items() if key != "token"}
                about = suites.get(job.name, {})
                self._record(stage, {**about, **figures, **read, **done["status"], "drops": done["reasons"]})
                self._write_card(job.store, figures)

    def _write_card(self, store: Store, figures: dict) -> None:
        write_card(store, origin(self.config, store.schema), self.fingerprints[store.name]["prompts"], figures)

    def _spec(self, model: Model, adapters: tuple[str, ...], *, endpoint: bool = False) -> ModelSpec:
        inference = self.config.inference
        if not endpoint and inference.endpoint:
            inference = inference.model_copy(update={"endpoint": None})
        directory = self.model_dir if model == self.config.model else models.model_dir(model)
        return ModelSpec(model, directory, inference, adapters)

    def _whole(self, output: Output, stage: str) -> dict:
        facts = output.complete
        if facts is None:
            raise UserError(f"{output.path} is not complete: run `setbacks {stage}` first")
        return facts

    def _record(self, stage: str, figures: dict) -> None:
        """Append a line to RUN/metrics.jsonl: what the report tells of timings and counts."""
        attempt.check()
        path = storage.join(self.run_dir, "metrics.jsonl")
        before = storage.read_text(path) if storage.exists(path) else ""
        storage.write_text(path, before + json.dumps({"stage": stage, **figures}) + "\n")

    def _tell_adapter(self, arm: str, output: Output) -> None:
        done = output.complete
        self.tell(
            f"train: {arm} on {done['examples']:,} examples, {done['steps']} steps, final loss {done['final_loss']:.3f} → {output.path}"
        )

    def _tell_dataset(self, stage: str, store: Store) -> None:
        if not storage.exists(storage.join(store.path, "README.md")):  # a crash came between completion and card
            self._write_card(store, {})
        done = store.complete
        counts = ", ".join(f"{count:,} {status}" for status, count in sorted(done["status"].items()))
        self.tell(f"{stage}: {done['rows']:,} rows{f' ({counts})' if counts else ''} → {store.path}")
        nothing = [status for status in (FAILED, DROPPED) if done["status"].get(status)]
        if done["rows"] and sum(done["status"][status] for status in nothing) == done["rows"]:
            common = max(done["reasons"], key=done["reasons"].get)
            mend = "change the source or the selection, and use --overwrite"
            if FAILED in nothing:
                mend = "mend the cause and use --retry-failed, or --overwrite to read the source again"
            raise RunFailed(f"{stage}: all {done['rows']} rows {' or '.join(nothing)}, most with: {common}; {mend}")


def origin(config: Config, schema: Schema) -> Origin:
    """What a data set is made by, for its card."""
    model, adapter, made_by = config.model, None, []
    for method in config.methods.values():
        if schema in (method.generated, method.training_set):
            made_by.append(method)
            if schema == method.generated or not method.mixing:
                model, adapter = method.generator(config.model)
    made_by += [suite for suite in config.suites.items().values() if suite.schema == schema]
    read = {source.path for section in made_by for name, source in sections(section, Source).items() if _is_read(section, name, schema)}
    return Origin(model, adapter, config.seed, sorted(read), made_by)


def _is_read(section: Section, name: str, schema: Schema) -> bool:
    """Whether a source is read for a data set: a method's `generate` does not read what only `mix` reads."""
    return not (isinstance(section, Method) and schema == section.generated and name.split(".")[0] in section.mixing)


def _repeated(source: Iterable[dict], samples: int) -> Iterator[dict]:
    """Each instruction `samples` times, with ids of their own; a malformed one once."""
    for row in source:
        copies = 1 if row["status"] == FAILED else samples
        for sample in range(copies):
            yield row if samples == 1 else {**row, "id": f"{row['instruction_id']}-{sample}", "sample": sample}


def _digest(adapter: str) -> str:
    return storage.digest(storage.join(storage.absolute(adapter), "adapter_model.safetensors"))
