"""Public sets of instructions that a configuration can name as `path: preset:NAME`, of presets.yaml."""

from functools import cache
from pathlib import Path
from typing import Any

from pipeline.settings.yaml_text import read

PREFIX = "preset:"
_OF_SOURCE = ("path", "config", "split", "columns")


@cache
def known() -> dict[str, dict[str, Any]]:
    """All presets, by name, as they stand in `presets.yaml`."""
    return read(Path(__file__).with_name("presets.yaml"))


def expanded(source: Any) -> Any:
    """A source as parsed from YAML, with the fields of the preset that its path names.

    What the source sets itself goes before the preset. Raises ValueError for a preset that is not known.
    """
    path = source.get("path") if isinstance(source, dict) else None
    if not isinstance(path, str) or not path.startswith(PREFIX):
        return source
    name = path.removeprefix(PREFIX)
    if name not in known():
        raise ValueError(f"path = {path[:100]}: there is no such preset; known are {', '.join(known())}")
    preset = {field: known()[name][field] for field in _OF_SOURCE if field in known()[name]}
    return {**preset, **{field: value for field, value in source.items() if field != "path"}}
