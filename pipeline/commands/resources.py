"""The second half of `setbacks plan`: engines, workers, nodes and hours that a run needs."""

import os
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from pipeline import models, placement, preflight
from pipeline.config import Config
from pipeline.data import records, storage
from pipeline.inference.base import Engine
from pipeline.memory import GIB, PARTS
from pipeline.runtime.nodes import Autoscaler, Node, autoscaler, nodes
from pipeline.runtime.session import ray_session
from pipeline.settings.base import span
from pipeline.settings.shown import plural
from pipeline.suites.base import Suite
from pipeline.training.base import Train

# new tokens per engine; used until a run has been measured
ASSUMED_TOKENS_PER_S = {"cpu": 2_000, "gpu": 2_500}


def cluster(config: Config) -> tuple[list[Node], Autoscaler | None]:
    """The nodes and the autoscaler of the cluster at $RAY_ADDRESS; without one, this machine, if that
    matters to models."""
    if not os.environ.get("RAY_ADDRESS"):
        return (placement.this_machine() if any(map(config.asked_together, config.stages)) else []), None
    with ray_session(config.run_dir):
        return nodes(), autoscaler()


def show(config: Config, nodes: list[Node], console: Console) -> None:
    """Print the engines, workers and GPUs that each stage requests. nodes: of the cluster."""
    console.print("[bold]Resources[/bold]")
    generators: dict[Engine, list[str]] = {}
    for name in config.methods:
        generators.setdefault(config.generator(name).engine, []).append(name)
    for engine, names in generators.items():
        whose = f", for {', '.join(names)}" if len(generators) > 1 else ""
        console.print(f"  generate   {engine.described()}{whose}")
    _show_passes("generate", config, nodes, console)
    alike: dict[str, list[str]] = {}
    for name, arm in config.arms.items() if "train" in config.stages else ():
        seeds = arm.train.seeds or []
        told = f" (seeds {', '.join(map(str, seeds))})" if len(seeds) > 1 else ""
        alike.setdefault(_training(arm.train), []).append(f"{name}{told}")
    for training, names in alike.items():
        console.print(f"  train      {training}, one arm after the other: {', '.join(names)}")
    if "evaluate" in config.stages:
        suites = config.suites.items().values()
        asked = " and ".join(f"{plural(arms(config, suite), 'arm')} × {suite.size()}" for suite in suites)
        lora = " by LoRA" if config.arm_names[1:] else ""
        console.print(
            f"  evaluate   {plural(config.engine.actors_told, 'engine')}, {asked}{lora}, all in one start"
        )
        for name, arm in config.arms.items():
            if arm.ask:
                console.print(f"  {'':<10} arms.{name}.ask: {escape(repr(arm.ask))}")
        _show_passes("evaluate", config, nodes, console)
    if "rejudge" in config.stages:
        again = [judge for suite in config.suites.items().values() for judge in suite.judges_later]
        console.print(f"  rejudge    stored answers by {', '.join(again)}; no answer is generated")
        _show_passes("rejudge", config, nodes, console)
    console.print()


def _show_passes(stage: str, config: Config, nodes: list[Node], console: Console) -> None:
    """Print the passes of a stage after its first engines, and what is asked beside them."""
    passes, beside = config.passes(stage), placement.standing_beside(config, stage, nodes)
    first = {config.generator(name).engine_field for name in config.methods} if stage == "generate" else set()
    if stage == "evaluate":
        first = {"engine"}
    for field, engine in config.engines([stage]).items():
        if field in first:
            continue
        place = field.removesuffix(".engine")
        if field in beside:
            told = "beside the engines above, since there is room for both"
        elif field in passes:
            told = "a pass of its own, after the engines before it have ended"
        else:
            told = "asked by the actors of the engines above"
        console.print(f"  {'':<10} {place}: {engine.described()}; {told}")


def show_cluster(
    config: Config, stages: set[str], nodes: list[Node], scaler: Autoscaler | None, console: Console
) -> None:
    """Print the placement on the cluster at $RAY_ADDRESS.

    Raises UserError if the cluster is too small for a stage.
    """
    console.print(f"[bold]Cluster[/bold] at {escape(os.environ['RAY_ADDRESS'])}")
    for line in placement.told(config, stages, nodes):
        console.print(f"  {escape(line)}", soft_wrap=True)
    for notice in placement.check(config, stages, nodes, lambda: scaler):
        console.print(f"  {escape(notice)}", soft_wrap=True)
    console.print()


def show_memory(config: Config, stages: set[str], nodes: list[Node], console: Console) -> list[dict]:
    """Print what engines and trainers need on each of their GPUs, in GiB; nothing if none is on a GPU.

    nodes: of the cluster. Returns the same as facts. Raises UserError for what cannot fit.
    """
    if not preflight.on_gpus(config, stages):
        return []
    console.print("[bold]Memory[/bold] of each GPU in GiB, estimated from the model's shape")
    if any(models.cached_model_dir(model) is None for model in config.read_models().values()):
        console.print("  unknown, because a model is not on this disk\n")
        return []
    found = preflight.footprints(config, stages, nodes)
    parts = [name for name in PARTS if any(name in one.memory.parts for one in found)]
    width = max((len(f"{one.field}: {one.stage}") for one in found), default=0)
    console.print("  " + " " * width + "".join(f"{name:>{len(name) + 2}}" for name in parts) + "  total")
    for one in found:
        cells = (
            f"{one.memory.parts.get(name, 0) / GIB:>{len(name) + 2}.1f}"
            if name in one.memory.parts
            else " " * (len(name) + 2)
            for name in parts
        )
        console.print(
            f"  {f'{one.field}: {one.stage}':<{width}}{''.join(cells)}{one.memory.total / GIB:>7.1f}"
            f"  {escape(_verdict(one))}"
        )
    console.print()
    for notice in preflight.check_memory(found):
        console.print(f"[yellow]{escape(notice)}[/yellow]\n")
    return [
        {
            "field": one.field,
            "stage": one.stage,
            "bytes": dict(one.memory.parts),
            "most_bytes": one.memory.total,
            "least_bytes": one.memory.least,
            "verdict": one.verdict,
            "gpu_gib": None if one.gpus is None else [one.gpus.least_gib, one.gpus.most_gib],
            "longest_sequences": one.sequences,
        }
        for one in found
    ]


def _verdict(one: preflight.Footprint) -> str:
    if one.gpus is None:
        return "of an unknown size; set gpu_memory_gib"
    share = f"{one.share:.0%} of " if one.share < 1 else ""
    cache = "" if one.sequences is None else f"; cache for {plural(one.sequences, 'longest sequence')}"
    return f"of {share}{one.gpus}: {one.verdict}{cache}"


def _training(train: Train) -> str:
    workers = train.workers if isinstance(train.workers, int) else f"{train.workers[0]}–{train.workers[1]}"
    method = train.described()
    return f"{plural(workers, 'worker')} × {1 if train.use_gpu else 'no'} GPU, {method}"


def arms(config: Config, suite: Suite) -> int:
    """Number of adapters that a suite evaluates, at most, and one for the base model."""
    stages = [name for arm in config.replicas for name in config.stage_names(arm)]
    return len(config.arm_names) + (len(stages) if suite.asks_every_stage else 0)


@dataclass(frozen=True)
class Work:
    """Work of a method or suite. counted: how it is counted, and new tokens at most; None if unknown, and
    why.

    by: name in `models` of the model that does it; None = the method's own, or the run's.
    """

    stage: str
    name: str
    counted: tuple[str, int] | None
    by: str | None = None
    why: str = "its source cannot be reached"

    def __str__(self) -> str:
        return f"{self.stage} {self.name}" + (f" by {self.by}" if self.by else "")

    def engine(self, config: Config) -> Engine:
        """The engine that does it."""
        if self.by is None and self.stage == "generate":
            return config.generator(self.name).engine
        return config.answering(self.by).engine


def show_time(config: Config, work: list[Work], tokens_per_s: float | None, console: Console) -> list[dict]:
    """Print the new tokens of each part of the work, and the hours and GPU-hours they take at most.

    Returns the hours as facts, of each engine.
    """
    console.print("[bold]Time[/bold]")
    for part in work:
        if part.counted:
            told, most = part.counted
            console.print(f"  {part}: {told}: at most {most:,} new tokens")
        else:
            console.print(f"  {part}: unknown, {part.why}")
    spent: dict[Engine, list[Work]] = {}
    for part in work:
        if part.counted:
            spent.setdefault(part.engine(config), []).append(part)
    hours = []
    for engine, parts in spent.items():
        whose = f" for {', '.join(map(str, parts))}" if len(spent) > 1 else ""
        hours.append(_show_hours(config, engine, parts, whose, tokens_per_s, console))
    return hours


def _show_hours(
    config: Config,
    engine: Engine,
    parts: list[Work],
    whose: str,
    tokens_per_s: float | None,
    console: Console,
) -> dict:
    most = sum(part.counted[1] for part in parts if part.counted)
    _, actors = span(engine.actors)
    measured = _measured(config, parts)
    speed = tokens_per_s or measured or ASSUMED_TOKENS_PER_S["gpu" if engine.gpus else "cpu"]
    assumed = "assumed; pass --tokens-per-s with a measured value"
    origin = "given" if tokens_per_s else "measured in this run directory" if measured else assumed
    hours = most / (speed * actors) / 3600
    console.print(f"  at {speed:,.0f} tokens/s per engine ({origin}): at most {hours:.2f} h", end="")
    console.print((f" = {hours * actors * engine.gpus:.1f} GPU-hours" if engine.gpus else "") + whose)
    return {
        "of": [f"{part.stage} {part.name}" for part in parts],
        "tokens_per_s": speed,
        "origin": origin,
        "most_hours": hours,
        "most_gpu_hours": hours * actors * engine.gpus,
    }


def _measured(config: Config, parts: list[Work]) -> float | None:
    """New tokens per second of one engine, from the last comparable stage of this run directory, if any.

    parts: the engine's work. If methods are among it, only their stage is comparable.
    """
    path = storage.join(storage.absolute(config.run_dir), "metrics.jsonl")
    lines = records.lines(path)
    if made := [config.methods[part.name].generated.name for part in parts if part.stage == "generate"]:
        lines = [line for line in lines if line["stage"] == "generate" and line.get("suite") in (None, *made)]
    else:
        lines = [line for line in lines if line["stage"] == "evaluate"]
    for line in reversed(lines):
        if line.get("engine_s") and line.get("completion_tokens"):
            return line["completion_tokens"] / line["engine_s"]
        if line.get("tokens_per_s"):  # written before engine_s was recorded
            return line["tokens_per_s"]
    return None
