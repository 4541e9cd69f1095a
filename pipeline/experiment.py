"""THE MAIN PATH: generate → mix → train → evaluate → rejudge → report. Read this file first.

Each stage depends only on the configuration and on outputs of earlier stages in the run directory, so it can
run alone and resume. Complete outputs are skipped, and committed rows of an interrupted stage are kept:
`making` and `fitting` see to that, in the run directory that a `Run` holds.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any

from pipeline import models, preflight, sampling, tracking
from pipeline.adapters import check_adapter
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.fitting import fit, fit_further, stage_adapters
from pipeline.making import Making, make, measure, write_training_set
from pipeline.run import Machinery, Run, adapter_digest
from pipeline.sources.counts import Accounts
from pipeline.sources.overlap import Seen
from pipeline.suites import verdicts
from pipeline.suites.asked import asked


def run(
    config: Config,
    stages: Iterable[str] | None = None,
    *,
    overwrite: bool = False,
    retry_failed: bool = False,
    suites: Sequence[str] = (),
    log: Callable[[str], Any] = print,
    machinery: Machinery | None = None,
) -> None:
    """Run stages in order; by default all stages that have work in this configuration.

    overwrite, retry_failed, suites: as on the command line. log: gets one line per output. machinery: what
    the stages run on. Raises UserError before anything starts, RunFailed if a stage cannot be completed.
    """
    run = Run(
        config, overwrite=overwrite, retry_failed=retry_failed, suites=suites, log=log, machinery=machinery
    )
    wanted = run.stages(stages)
    if wanted == ["report"]:
        return report(run)  # reads nothing but the run directory
    with run.open(wanted):
        for stage in wanted:
            run.begin(stage)
            STAGES[stage](run)


def generate(run: Run) -> None:
    """Instructions → each method's data set: one row per instruction and sample; no row is lost."""
    makings = []
    for name, method in run.config.methods.items():
        generator, (_, adapter) = run.config.generator(name), method.generator
        if not generator.engine.is_model:
            method = method.model_copy(update={"gates": None})  # a rehearsal: its texts mean nothing
        adapter = adapter if generator.engine.reads_model else None
        adapters = (storage.absolute(adapter),) if adapter else ()

        makings.append(
            Making(
                run.generated[name],
                method.rows,
                f"methods.{name}",
                method.listed,
                method.recipe(run.config.seed),
                run.models(generator, adapters, ["generate"], f"methods.{name}."),
                method.inputs() | ({"adapter": adapter_digest(adapter)} if adapter else {}),
            )
        )
    make(run, "generate", makings)


def mix(run: Run) -> None:
    """Generated data sets → training sets: conversations, preference pairs, other runs' instructions."""
    for schema, methods in run.config.training_sets().items():
        sources = {name: run.generated[name] for name in methods}

        def rows(drops, counts, schema=schema, methods=methods, sources=sources) -> Iterable[dict]:
            parts = (
                methods[name].examples(
                    schema, source.dataset.rows(), drops, run.config.seed, counts.below(f"methods.{name}")
                )
                for name, source in sources.items()
            )
            return chain.from_iterable(parts)

        write_training_set(
            run,
            run.training_sets[schema],
            sources,
            rows,
            nothing="; ".join(method.nothing for method in methods.values()),
        )
    if run.further_set and run.config.durability:
        write_training_set(
            run,
            run.further_set,
            {},
            run.config.durability.examples,
            nothing="durability.data has no instruction with a response",
        )


def train(run: Run) -> None:
    """The training sets → one LoRA adapter per arm and training seed."""
    inputs = {}
    for name, replica in run.config.replicas.items():
        how = replica.section.train
        training_set = run.training_sets[how.accepts]
        inputs[name] = {training_set.name: run.complete(training_set, "mix")["digest"]}
        if how.start:
            inputs[name]["start"] = adapter_digest(how.start.adapter)
    fit(run, inputs)
    if run.further_set:
        data = {run.further_set.name: run.complete(run.further_set, "mix")["digest"]}
        begun = {arm: output.facts["digest"] for arm, output in run.adapters.items()}
        fit_further(
            run,
            {
                name: data | ({"start": begun[one.arm]} if one.arm in begun else {})
                for name, one in run.config.further.items()
            },
        )


def evaluate(run: Run) -> None:
    """Run the base model, all arms and given adapters through all suites: one engine start, arms by LoRA."""
    config = run.config
    trained = run.adapters | run.further
    inputs = {arm: run.complete(output, "train")["digest"] for arm, output in trained.items()}
    inputs |= {name: adapter_digest(path) for name, path in config.adapters.items()}
    adapters = {arm: output.path for arm, output in trained.items()} | preflight.given_adapters(config)
    staged = any(config.suites.items()[name].asks_every_stage for name in run.suites)
    stages = stage_adapters(run) if staged else {}
    for arm, path in (adapters | stages).items():
        if arm not in config.adapters:
            check_adapter(config.adapter_field(arm), path, run.model_dir)
    own = config.answering(None)
    but = " and ".join(name for name in run.suites if config.suites.items()[name].runs_apart)
    for arm, text in config.asks.items():
        every = f"every suite but {but}" if but else "every suite"
        run.log(f"evaluate: {arm} is asked with a text of its own in {every}: {text!r}")
    tokenizer = partial(models.load_tokenizer, config.model, run.model_dir)

    @cache
    def seen(needed: bool) -> Seen | None:
        """What the methods read; an evaluation that only counts it does without what is gone."""
        try:
            return Seen.of(config.trained_on().values()) if config.methods else None
        except (UserError, OSError) as e:
            if needed:
                raise
            run.log(f"evaluate: the instructions of the methods cannot be compared with the suites' ({e})")
            return None

    makings, apart = [], []
    for name, store in run.suites.items():
        suite = config.suites.items()[name]
        if suite.runs_apart:
            apart.append((store, suite))
            continue
        more = stages if suite.asks_every_stage else {}

        def answers(counts: Accounts, suite=suite, more=more) -> Iterable[dict]:
            arms = [*config.arm_names, *more]
            return suite.rows(arms, config.seed, counts, tokenizer, seen(suite.compares_seen))

        makings.append(
            Making(
                store,
                answers,
                f"suites.{name}",
                store.schema,
                asked(suite.recipe(adapters | more), adapters | more, config.asks, suite.plain_steps),
                run.models(own, tuple((adapters | stages).values()), ["evaluate"], f"suites.{name}."),
                inputs,
            )
        )
    make(run, "evaluate", makings)
    for store, suite in apart:  # after the engines have ended: another program takes their place
        measure(run, "evaluate", store, suite, adapters, inputs)
    if not run.reports:  # else the report, which ends this attempt, does it
        run.track_results()


def rejudge(run: Run) -> None:
    """Finished answers → the verdicts of more judges, a data set each. No answer is generated."""
    config, makings = run.config, []
    for (name, judge_name), store in run.verdicts.items():
        suite, answers = config.suites.items()[name], run.suites[name]
        judge = suite.judges_later[judge_name]
        digest = run.complete(answers, "evaluate")["digest"]

        def rows(_counts: Accounts, suite=suite, answers=answers, judge_name=judge_name) -> Iterable[dict]:
            return verdicts.work(suite.stored(answers.dataset.rows()), judge_name)

        makings.append(
            Making(
                store,
                rows,
                f"suites.{name}.more_judges.{judge_name}",
                verdicts.TO_JUDGE,
                suite.verdict_recipe(judge),
                run.models(
                    config.answering(None) if judge.tokens() else None,
                    (),
                    ["rejudge"],
                    f"suites.{name}.more_judges.{judge_name}.",
                ),
                {answers.name: digest},
                first=judge.asked,
            )
        )
    make(run, "rejudge", makings)


def report(run: Run) -> None:
    """Results in the run directory → report.html, report.md and results.json."""
    preflight.check_run_dir(run.config, set())
    tracking.check(run.config.track, run.config.run_dir)
    tracking.check_reach(run.config.track)
    if not storage.exists(storage.join(run.path, "config.yaml")):
        raise UserError(f"run_dir = {run.config.run_dir}: contains no run; use `setbacks run` first")
    from pipeline.commands.report import write_report  # imports the plotting library

    config, _ = sampling.resolved(run.config, stages=(), suites=())
    for line in run.made_otherwise(config, STAGES):
        run.log(line)
    html, markdown = write_report(config, run.path)
    run.log(f"report: {html} and {markdown}; the numbers as data: results.json")
    run.track_results()


STAGES = {
    "generate": generate,
    "mix": mix,
    "train": train,
    "evaluate": evaluate,
    "rejudge": rejudge,
    "report": report,
}
