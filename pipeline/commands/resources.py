"""The second half of `setbacks plan`: engines, workers, nodes and hours that a run needs."""

import json
import os
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape

from pipeline import placement
from pipeline.config import Config, Train
from pipeline.data import storage
from pipeline.runtime.session import ray_session
from pipeline.settings.base import span

# new tokens per engine; used until a run has been measured
ASSUMED_TOKENS_PER_S = {"cpu": 2_000, "gpu": 2_500}


def show(config: Config, console: Console) -> None:
    """Print the engines, workers and GPUs that each stage requests."""
    inference = config.inference
    fewest, most = span(inference.actors)
    actors = str(fewest) if fewest == most else f"{fewest}–{most}"
    console.print("[bold]Resources[/bold]")
    if config.methods and inference.endpoint:
        console.print(
            f"  generate   {inference.endpoint.url}, {inference.endpoint.concurrency} requests in flight per"
            f" actor × {actors}"
        )
    elif config.methods:
        gpus = inference.gpus_per_actor(config.model)
        console.print(f"  generate   {actors} engines × {gpus or 'no'} GPU = {most * gpus} GPUs")
    alike: dict[str, list[str]] = {}
    for name, arm in config.arms.items():
        alike.setdefault(_training(arm.train), []).append(name)
    for training, names in alike.items():
        console.print(f"  train      {training}, one arm after the other: {', '.join(names)}")
    if config.suites.items():
        asked = " and ".join(f"{arms(config)} arms × {what}" for what in _suites(config))
        console.print(f"  evaluate   {actors} engines, {asked} by LoRA, all in one start")
    console.print()


def show_cluster(config: Config, stages: set[str], console: Console) -> None:
    """Print the placement on the cluster at $RAY_ADDRESS.

    Raises UserError if the cluster is too small for a stage.
    """
    with ray_session(config.run_dir):
        cluster = placement.nodes()
    console.print(f"[bold]Cluster[/bold] at {escape(os.environ['RAY_ADDRESS'])}")
    for line in placement.told(config, stages, cluster):
        console.print(f"  {escape(line)}", soft_wrap=True)
    placement.check(config, stages, cluster)
    console.print()


def _training(train: Train) -> str:
    workers = train.workers if isinstance(train.workers, int) else f"{train.workers[0]}–{train.workers[1]}"
    method = train.described()
    return f"{workers} workers × {1 if train.use_gpu else 'no'} GPU, {method}"


def _suites(config: Config) -> list[str]:
    return [suite.size() for suite in config.suites.items().values()]


def arms(config: Config) -> int:
    """Number of arms, base model included."""
    return len(config.arm_names)


@dataclass(frozen=True)
class Work:
    """Work of a method or suite. counted: how it is counted, and new tokens at most; None if unknown."""

    stage: str
    name: str
    counted: tuple[str, int] | None


def show_time(config: Config, work: list[Work], tokens_per_s: float | None, console: Console) -> None:
    console.print("[bold]Time[/bold]")
    for part in work:
        if part.counted:
            told, most = part.counted
            console.print(f"  {part.stage} {part.name}: {told}: at most {most:,} new tokens")
        else:
            console.print(f"  {part.stage} {part.name}: unknown, its source cannot be reached")
    known = [part.counted[1] for part in work if part.counted]
    if not known:
        return
    inference = config.inference
    _, actors = span(inference.actors)
    measured = _measured(config)
    speed = tokens_per_s or measured or ASSUMED_TOKENS_PER_S["gpu" if inference.num_gpus else "cpu"]
    assumed = "assumed; pass --tokens-per-s with a measured value"
    origin = "given" if tokens_per_s else "measured in this run directory" if measured else assumed
    hours = sum(known) / (speed * actors) / 3600
    console.print(f"  at {speed:,.0f} tokens/s per engine ({origin}): at most {hours:.2f} h", end="")
    console.print(f" = {hours * actors * inference.num_gpus:.1f} GPU-hours" if inference.num_gpus else "")


def _measured(config: Config) -> float | None:
    """New tokens per second of one engine, from the last comparable stage of this run directory, if any."""
    path = storage.join(storage.absolute(config.run_dir), "metrics.jsonl")
    if not storage.exists(path):
        return None
    lines = [json.loads(line) for line in storage.read_text(path).splitlines()]
    wanted = ("generate",) if config.methods else ("generate", "evaluate")
    lines = [line for line in lines if line["stage"] in wanted]
    for line in reversed(lines):
        if line.get("engine_s") and line.get("completion_tokens"):
            return line["completion_tokens"] / line["engine_s"]
        if line.get("tokens_per_s"):  # written before engine_s was recorded
            return line["tokens_per_s"]
    return None
