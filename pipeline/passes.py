"""The passes of a stage: which model is open when, and which data sets are made with it meanwhile."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from pipeline.errors import RunFailed
from pipeline.inference.pool import NO_MODEL, Job, ModelSpec
from pipeline.inference.row_chat import OWN

_ADD_UP = ("seconds", "prompt_tokens", "completion_tokens", "engine_s", "busy_s")  # over passes


def passes(
    stage: str,
    jobs: list[Job],
    *,
    connect: Callable[[], None],
    beside: Callable[..., AbstractContextManager[Mapping[ModelSpec, Any]]],
    log: Callable[[str], Any],
) -> Generator[tuple[ModelSpec, list[Job]]]:
    """The passes until all jobs are finished: a model, and the jobs with rows that wait for it.

    If there is room for the engines of all models that the jobs of an own model ask, they need one pass,
    and the other models' engines stand beside it. Else models take turns, own models first: each has the
    cluster for itself, and rows are run in a pass as far as they come with its model. Raises RunFailed
    if rows wait for ever.
    """
    specs = list(dict.fromkeys(job.models[name] for job in jobs for name in (job.first, OWN)))
    specs += [spec for job in jobs for spec in job.models.values() if spec not in specs]
    for own in specs:
        group = [job for job in jobs if job.models[job.first] == own]
        asked = [spec for spec in specs if any(spec in job.models.values() for job in group)]
        local = [spec for spec in asked if spec not in (own, NO_MODEL) and not spec.engine.is_client]
        if not local or not any(job.ready(own) for job in group):
            continue
        connect()
        with beside([own, *local]) as engines:
            if engines:
                told = ", ".join(sorted({name for spec in engines for name in names(spec, group)}))
                log(f"{stage}: {told} beside the other engines, so that no row waits")
                yield own, [replace(job, beside=engines) for job in group]
    while any(job.store.complete is None for job in jobs):
        for spec in specs:
            ready = {job.name: job.ready(spec) for job in jobs if job.store.complete is None}
            # A job without undone rows is only to be finished.
            together = [
                job
                for job in jobs
                if job.name in ready
                and (ready[job.name] or (not job.undone() and job.models[job.first] == spec))
            ]
            if not together:
                continue
            yield spec, together
            for job in together:
                if job.store.complete is None and set(job.ready(spec)) & set(ready[job.name]):
                    raise RunFailed(f"{job.store.path}: rows wait for a model, although its pass has ended")


def names(spec: ModelSpec, jobs: Iterable[Job]) -> list[str]:
    """The names in `models` under which jobs ask a model."""
    return sorted({name for job in jobs for name, one in job.models.items() if one == spec} - {OWN})


def added(earlier: dict | None, figures: dict) -> dict:
    """The figures of a data set's last pass, with what adds up over its passes."""
    if earlier is None:
        return figures
    total = {
        name: round(earlier[name] + figures[name], 3)
        for name in _ADD_UP
        if name in earlier and name in figures
    }
    resumed = {"resumed_rows": earlier["resumed_rows"]} if "resumed_rows" in earlier else {}
    speed = {}
    if total.get("busy_s"):
        speed = {"tokens_per_s": round(total["completion_tokens"] / total["busy_s"], 1)}
    return {**figures, **total, **resumed, **speed}
