"""The data sets of a run: made by recipes over rows, measured by another program, or written at once."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from pipeline import passes, usable
from pipeline.chat import Recipe
from pipeline.data import endings, faults, storage
from pipeline.data.card import write_card
from pipeline.data.store import Store
from pipeline.data.work import shared
from pipeline.errors import RunFailed
from pipeline.inference.pool import Job, ModelSpec
from pipeline.inference.row_chat import OWN
from pipeline.origin import origin
from pipeline.registry import trainable
from pipeline.run import Run
from pipeline.runtime import attempt
from pipeline.schema import DROPPED, FAILED, Schema
from pipeline.sources.counts import Accounts
from pipeline.suites.base import Suite


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


def make(run: Run, stage: str, makings: Sequence[Making]) -> None:
    """Make data sets by running recipes over rows. Data sets with the same model share engines.

    A data set is completed and recorded as soon as its own rows are done.
    """
    jobs = []
    for making in makings:
        store = making.store
        run.start(store, making.inputs)
        if run.retry_failed and (failed := store.reopen_failed()):
            run.log(f"{stage}: rerunning {failed} failed rows")
        if store.complete is None:
            _write_work(run, stage, making)
            jobs.append(Job(making.recipe, store, making.models, making.first or OWN))
    earlier: dict[str, dict] = {}  # figures of earlier passes, by output
    turns = passes.passes(stage, jobs, connect=run.connect, beside=run.machinery.beside, log=run.log)
    with closing(turns):
        for spec, together in turns:
            run.connect()
            attempt.making(*(job.name for job in together))
            named = passes.names(spec, together)
            own = any(job.beside or job.models[OWN] == spec for job in together)
            label = stage if own or not named else f"{stage} by {', '.join(named)}"
            with closing(
                run.machinery.engines(together, spec, seed=run.config.seed, label=label)
            ) as finished:
                for job, figures in finished:
                    figures = passes.added(earlier.get(job.name), figures)
                    if job.undone():  # the other rows wait for another model
                        earlier[job.name] = figures
                        continue
                    _finish(run, stage, job.store, figures)
    for making in makings:
        _log_dataset(run, stage, making.store)
        if told := usable.few(making.store, 0.5):
            run.log(f"WARNING: {stage}: {told}")
        done = making.store.facts
        if told := faults.unjudged(done.get("faults", {}), done["rows"]):
            run.log(f"WARNING: {stage}: {told}")


def _finish(run: Run, stage: str, store: Store, figures: dict) -> None:
    """Complete and record a data set whose rows are all committed."""
    done = store.finish()
    read = {key: count for key, count in (store.work() or {}).items() if key != "token"}
    run.record(
        stage,
        {
            **_part(run, stage, store),
            **figures,
            **read,
            **done["status"],
            **{name: done[name] for name in ("thoughts", "unended_thoughts") if name in done},
            "drops": done["reasons"],
        },
    )
    _write_card(run, store, {**figures, "sources": usable.sources(store).told()})


def measure(
    run: Run, stage: str, store: Store, suite: Suite, adapters: Mapping[str, str], inputs: Mapping[str, str]
) -> None:
    """Make the data set of a suite that another program runs, arm after arm; finished parts are kept.

    adapters: arm → adapter directory. inputs: digests of the adapters.
    """
    run.start(store, inputs)
    if store.complete is None:
        started, parts = time.monotonic(), store.state("results")
        own = run.config.answering(None)
        for arm in run.config.arm_names:
            model = run.pinned(own.model)
            left = suite.apart(arm, adapters.get(arm), model, run.model_dir, own.engine, parts)
            if left is not None:
                run.connect()
                attempt.making(store.name)
                run.log(f"{stage}: {suite.title}: {left.told}")
                run.machinery.apart(left.function, gpus=left.gpus)
        rows, told = suite.collected(run.config.arm_names, parts)
        done = store.write_rows(rows)
        seconds = round(time.monotonic() - started, 2)
        run.record(
            stage,
            {**_part(run, stage, store), "rows": done["rows"], "seconds": seconds, **done["status"]},
        )
        _write_card(run, store, {"seconds": seconds, "sources": told})
        storage.remove(parts)
    _log_dataset(run, stage, store)


def write_training_set(
    run: Run,
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
    run.start(store, {source.name: run.complete(source, "generate")["digest"] for source in inputs.values()})
    found = Accounts()
    if store.complete is None:
        if told := usable.too_few(run.config, run.generated):
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
        run.record("mix", {**_part(run, "mix", store), **figures})
        _write_card(run, store, {"drops": dict(drops), "sources": found.told()})
        _log_sources(run, "mix", found)
    if not store.facts["rows"]:
        raise RunFailed(f"mix: no training example in {store.path}: {nothing}")
    usable.check_kinds(run.config, store, run.generated, found)
    _log_dataset(run, "mix", store)
    if not trainable(store.schema) and store is not run.further_set:
        run.log(
            f"mix: nothing is trained on {store.schema.name}; {store.path} can be the path of another"
            " run's instructions"
        )


def _write_work(run: Run, stage: str, making: Making) -> None:
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
    _log_sources(run, stage, usable.sources(making.store))
    begun_with = written.get("rows_per_commit", wanted)
    if begun_with != wanted:
        fixed = f"rows_per_commit={begun_with} (fixed when the run started)"
        run.log(f"{stage}: resuming with {fixed}; use --overwrite to change it to {wanted}")


def _log_sources(run: Run, stage: str, found: Accounts) -> None:
    for line in found.told(all=False):
        run.log(f"{stage}: {line}")


def _part(run: Run, stage: str, store: Store) -> dict:
    """The key of a metrics.jsonl line that says which of several outputs of a stage it is about."""
    suites = {made.name: name for name, made in run.suites.items()}
    if stage == "evaluate":
        return {"suite": suites[store.name]}
    if stage == "rejudge":
        return {"suite": store.name}
    return {"suite": store.name} if len(run.outputs(stage)) > 1 else {}


def _write_card(run: Run, store: Store, figures: dict) -> None:
    made = next((place for place, one in run.verdicts.items() if one.name == store.name), None)
    write_card(
        store, origin(run.config, store.schema, made), run.fingerprints[store.name]["prompts"], figures
    )


def _log_dataset(run: Run, stage: str, store: Store) -> None:
    """Log a data set. Raises RunFailed if no row succeeded: later stages would have no input."""
    # a crash occurred between completion and card
    if not storage.exists(storage.join(store.path, "README.md")):
        _write_card(run, store, {"sources": usable.sources(store).told()})
    done = store.facts
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(done["status"].items()))
    run.log(f"{stage}: {done['rows']:,} rows{f' ({counts})' if counts else ''} → {store.path}")
    counted = faults.told(done.get("faults", {}), done.get("endings", {}))
    for sentence in [*endings.told(done), *counted]:
        run.log(f"{stage}: {sentence}")
    nothing = [status for status in (FAILED, DROPPED) if done["status"].get(status)]
    if done["rows"] and sum(done["status"][status] for status in nothing) == done["rows"]:
        common = max(done["reasons"], key=done["reasons"].get)
        remedy = "change the source, the selection or max_tokens, and use --overwrite"
        if FAILED in nothing:
            remedy = "fix the cause and rerun with --retry-failed, or --overwrite to reread the source"
        ended = f"all {done['rows']} rows {' or '.join(nothing)}"
        raise RunFailed(f"{stage}: {ended}, most with: {common}; {remedy}")
