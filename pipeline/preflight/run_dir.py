"""The run directory: whether it can be written, and the day on which the run began."""

import os
import re
from datetime import date
from pathlib import Path

from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError

MIN_FREE_BYTES = 256 * 2**20
_NOT_WRITTEN = ("http", "https", "ftp", "data", "github", "git", "zip", "tar", "memory")  # of fsspec


def check_run_dir(config: Config, stages: set[str]) -> None:
    """Raises UserError if the run directory cannot be created or written, or its disk is nearly full."""
    _check_written(config.run_dir)
    if not storage.is_local(config.run_dir):
        storage.filesystem(config.run_dir)
        _check_one_node(config, stages)
        return
    place = Path(storage.absolute(config.run_dir))
    for around in place.parents:
        if (around / ".state").is_dir() and (around / "config.yaml").is_file():
            raise UserError(f"run_dir = {config.run_dir}: is inside the run {around}; choose another run_dir")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"run_dir = {config.run_dir}: {place} is not a directory; choose another run_dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"run_dir = {config.run_dir}: {place} is not writable; choose another run_dir or change its"
            " permissions"
        )
    free = storage.free_bytes(config.run_dir)
    if free is not None and free < MIN_FREE_BYTES:
        raise UserError(
            f"run_dir = {config.run_dir}: only {free / 2**20:.0f} MiB are free on its disk, "
            f"at least {MIN_FREE_BYTES / 2**20:.0f} are needed"
        )


def _check_written(run_dir: str) -> None:
    """Raises UserError for what looks like a place in which no run can write."""
    if not run_dir.strip():
        raise UserError("run_dir is blank: choose a directory")
    scheme, colon, _ = run_dir.lower().partition(":")
    if colon and scheme in _NOT_WRITTEN:
        raise UserError(
            f"run_dir = {run_dir}: a run cannot write there; choose a directory, or an object store such as"
            " s3://BUCKET/runs/mine"
        )
    if re.match(r"[a-z0-9+.-]{2,}:/[^/]", run_dir):
        raise UserError(f"run_dir = {run_dir}: a slash is missing; write {scheme}://…")


def _check_one_node(config: Config, stages: set[str]) -> None:
    """Raises UserError if adapters in an object store would be read by engines on several nodes.

    An engine copies them to the disk of its first node.
    """
    for field, engine in config.engines(stages & {"evaluate"}).items():
        if engine.nodes > 1 and engine.takes_adapters:
            raise UserError(
                f"run_dir = {config.run_dir}: {field}.num_nodes = {engine.nodes}, and every node of an engine"
                " reads the adapters; choose a run_dir on a file system that all nodes see"
            )


def dated(config: Config, *, anew: bool = False) -> Config:
    """The configuration with the date that chat templates take for today's.

    A run directory keeps the day on which it began, so that it is resumed with the same prompts on any day.
    anew: whether all that the directory holds is made again, so that the configuration may name another day.
    Raises UserError if it names another day otherwise.
    """
    _check_written(config.run_dir)
    path = date_file(config)
    try:
        recorded = date.fromisoformat(storage.read_text(path)) if storage.exists(path) else None
    except ValueError:
        raise UserError(
            f"{path} holds no date: write the day on which the run began into it, as 2026-01-31"
        ) from None
    named = config.model.date
    if recorded and named and named != recorded and not anew:
        raise UserError(
            f"model.date = {named}: the run directory {config.run_dir} was begun with {recorded}; leave it"
            " out, choose another run_dir, or make all of it anew with --overwrite"
        )
    day = (named or recorded) if anew else (recorded or named)
    model = config.model.model_copy(update={"date": day or date.today()})
    return config.model_copy(update={"model": model})


def date_file(config: Config) -> str:
    """The file in the run directory that keeps its date."""
    return storage.join(storage.absolute(config.run_dir), ".state", "date")


def check_no_password(field: str, path: str) -> None:
    """Raises UserError for a password in a path (s3://…): configuration, cards and reports store paths."""
    userinfo = path.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if ":" in userinfo:
        remedy = "remove it and set credentials in the environment"
        raise UserError(f"{field}: contains a password, which would be stored; {remedy}")
