"""What the harness knows of tasks, asked in a process of its own: which there are, and what they need.

`python -m pipeline.suites.utility.tasks` is that process. It prints one line of JSON.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from typing import Any

from pipeline.errors import OutOfReach, UserError
from pipeline.settings.shown import first_line
from pipeline.suites.utility.schema import HARNESS

_LOCAL = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml", "webdataset")  # builders for files
_ANSWER_S = 600
_MARK = "setbacks-tasks: "


def check_installed(field: str) -> None:
    """Raises UserError if the harness is not installed, or in another version."""
    remedy = "install it with pip install 'setbacks[utility]', or leave the suite out"
    try:
        found = metadata.version("lm_eval")
    except metadata.PackageNotFoundError:
        raise UserError(f"{field}: lm-evaluation-harness is not installed; {remedy}") from None
    if found != HARNESS:
        raise UserError(
            f"{field}: lm-evaluation-harness {found} is installed, and the suite counts as {HARNESS} does;"
            f" {remedy}"
        )


def check(field: str, names: Sequence[str], include: str | None) -> None:
    """Raises UserError for a task that the harness does not have, or that cannot be run here."""
    found = _asked(tuple(names), include, False)
    for name in found["unknown"]:
        place = f", nor has {include}" if include else ""
        raise UserError(
            f"{field}.tasks: lm-evaluation-harness {HARNESS} has no task {name}{place}; `lm-eval ls tasks`"
            " lists them"
        )
    for name, why in found["refused"]:
        raise UserError(f"{field}.tasks: {name} {why}; leave it out")


def check_reach(field: str, names: Sequence[str], include: str | None) -> None:
    """Raises OutOfReach for a data set of a task that is neither on this disk nor on a hub that answers."""
    for name, data, why in _asked(tuple(names), include, True)["lacking"]:
        raise OutOfReach(
            f"{field}.tasks: {name} reads {data} from the hub, which cannot be had ({why}); connect to the"
            " hub once, or give tasks with files of your own by include_path"
        )


@cache
def _asked(names: tuple[str, ...], include: str | None, reach: bool) -> dict[str, list]:
    asked = json.dumps({"names": names, "include": include, "reach": reach})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.suites.utility.tasks", asked],
            capture_output=True,
            text=True,
            timeout=_ANSWER_S,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"suites.utility: lm-evaluation-harness did not list its tasks in {_ANSWER_S} s; try again"
        ) from None
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    raise UserError(
        f"suites.utility: lm-evaluation-harness cannot list its tasks ({last[0][:200]}); install"
        " setbacks[utility] again"
    )


# -- in the process of its own


def look(names: Sequence[str], include: str | None, reach: bool) -> dict[str, list]:
    """unknown: names; refused: [name, why]; lacking: [name, data set, why], if `reach`."""
    from lm_eval.tasks import TaskManager

    manager = None
    if include:  # the harness's own tasks take seconds to list
        own = TaskManager(include_path=include, include_defaults=False)
        manager = own if all(name in own.task_index for name in names) else None
    manager = manager or TaskManager(include_path=include)
    found: dict[str, list] = {"unknown": [], "refused": [], "lacking": []}
    asked: dict[str, str] = {}
    for name in names:
        if name not in manager.task_index:
            found["unknown"].append(name)
            continue
        for task, config in _leaves(name, manager.task_index):
            if why := _cannot_run(task, config):
                found["refused"].append([name, why])
            path = config.get("dataset_path")
            if reach and isinstance(path, str) and path not in _LOCAL and path not in asked:
                asked[path] = _unreachable(path, config.get("dataset_name"))
                if asked[path]:
                    found["lacking"].append([name, path, asked[path]])
    return found


def _leaves(name: str, index: Any, seen: frozenset[str] = frozenset()) -> Iterator[tuple[str, dict]]:
    """The tasks below a name, with their configurations as they stand in YAML."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = index.get(name)
    if entry is None or name in seen:
        return
    seen |= {name}
    config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else dict(entry.cfg or {})
    if entry.tags and "task" not in config:
        members: list[Any] = sorted(entry.tags)
    else:
        members = config["task"] if isinstance(config.get("task"), list) else []
    if not members:
        yield name, config
    for member in members:
        if isinstance(member, str):
            yield from _leaves(member, index, seen)
            continue
        below = member.get("group") or member.get("task")
        if isinstance(below, str):
            inherited = list(_leaves(below, index, seen)) or [(below, {})]
            yield from ((task, {**of, **member}) for task, of in inherited)


def _cannot_run(task: str, config: dict) -> str | None:
    """Why a task cannot be run here, as the end of a sentence."""
    if config.get("unsafe_code"):
        return f"runs code that the model writes ({task})"
    metrics = [str(one.get("metric")) for one in config.get("metric_list") or () if isinstance(one, dict)]
    if "perspective" in " ".join([task, *metrics]).lower() or task.startswith("realtoxicityprompts"):
        return f"needs the Perspective API ({task})"
    if config.get("dataset_path") in _LOCAL:
        given = (config.get("dataset_kwargs") or {}).get("data_files") or ()
        for file in given.values() if isinstance(given, dict) else [given]:
            for one in file if isinstance(file, list | tuple) else [file]:
                local = isinstance(one, str) and one and "://" not in one and "*" not in one
                if local and not os.path.exists(os.path.join(_data_dir(config), one)):
                    return f"reads {one}, which is not there ({task})"
    return None


def _data_dir(config: dict) -> str:
    return str((config.get("dataset_kwargs") or {}).get("data_dir") or "")


def _unreachable(path: str, name: str | None) -> str:
    """Why a data set cannot be had; empty if it can."""
    import datasets

    try:
        datasets.load_dataset_builder(path, name)
    except Exception as e:  # the hub's client raises a dozen kinds
        return f"{type(e).__name__}: {first_line(e)[:120]}"
    return ""


if __name__ == "__main__":
    print(_MARK + json.dumps(look(**json.loads(sys.argv[1]))))
