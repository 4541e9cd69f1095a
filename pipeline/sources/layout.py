"""Which files of a directory are its data: one split and configuration, without metadata.

Directories are laid out in three ways: by `datasets.save_to_disk` (`dataset_dict.json`), by a README whose
header lists `configs`, as on the hub, or by names of files and directories that hold the split as a word
(`data/train-00000-of-00001.parquet`). A directory without splits is read whole.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.settings.shown import shown

# Words that name a split, as on the hub.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
# Files of any split, as push_to_hub and the hub's conversion to Parquet name them.
_OF_SPLIT = re.compile(
    r"data/(.+)-\d{5}-of-\d{5,}\.|[^/]+/([^/=]*(?:train|test|val|dev)[^/=]*)/\d{4}\.parquet$"
)
_SHARD = re.compile(r"(.*)-\d{5}-of-(\d{5,})(\..*)")
# Names of JSON files that describe data, and are not read beside data.
_METADATA = {
    *("dataset_infos", "dataset_info", "dataset_dict", "state", "dataset-metadata", "dataset_metadata"),
    *("metadata", "meta", "croissant", "datapackage", "package", "package-lock", "config", "settings"),
    *("schema", "stats", "statistics", "license", "citation", "codemeta", "manifest", "readme", "info"),
}
_MOST_BYTES = 2**20  # of a file that describes the directory


@dataclass(frozen=True)
class Directory:
    """path: as the user wrote it. root: within `filesystem`."""

    path: str
    filesystem: fs.FileSystem
    root: str

    def select(self, keys: list[str], split: str, config: str | None, notes: Counter[str]) -> list[str]:
        """The data files among those of the directory, all relative to it.

        notes: filled with the files of other splits. Raises UserError if the split or the configuration is
        not there, or if there are several configurations and none is named.
        """
        keys = _without_metadata(keys)
        saved = self._by_dictionary(keys)
        if saved and config is not None:
            raise UserError(f"{self.path}: config = {config}: a saved data set has none; leave it out")
        found = saved or self._by_readme(keys, config) or _by_names(keys)
        if not found:
            if split != "train":
                raise UserError(f"{self.path}: has no splits, so split = {split} is not there; leave it out")
            return self._complete(keys, keys)
        wanted = split if split in found else _SPLIT_OF.get(split, split)
        if wanted not in found:
            names = ", ".join(sorted(map(shown, found)))
            raise UserError(
                f"{self.path}: has no split {split}; found are {names}: set split, or name files by a glob"
            )
        for other, files in found.items():
            if other != wanted and (left := set(files).intersection(keys).difference(found[wanted])):
                notes[f"a file of split {shown(other, 60)} is not read"] += len(left)
        if unnamed := set(keys).difference(*found.values()):
            notes["a file of no split or another configuration is not read"] += len(unnamed)
        if not found[wanted]:
            raise UserError(f"{self.path}: the files of split {split} are not there; fetch them first")
        return self._complete(found[wanted], keys)

    def _complete(self, files: list[str], there: list[str]) -> list[str]:
        """The files. Raises UserError if one of them is missing, or a shard that their names count."""
        shards = Counter(shard.groups() for shard in map(_SHARD.fullmatch, files) if shard)
        for (name, total, ending), count in shards.items():
            if count < int(total):
                raise UserError(
                    f"{self.path}: holds {count} of the {int(total)} files {name}-…-of-{total}{ending}; fetch"
                    " the others, or name what is there by a glob"
                )
        if missing := sorted(set(files).difference(there)):
            raise UserError(
                f"{self.path}: {shown(missing[0])} of its README is not there; fetch it, or name files by a"
                " glob"
            )
        return files

    def _by_dictionary(self, keys: list[str]) -> dict[str, list[str]]:
        """The splits of a saved DatasetDict: a directory each."""
        names = self._json("dataset_dict.json").get("splits")
        if not isinstance(names, list):
            return {}
        return {str(name): [key for key in keys if key.startswith(f"{name}/")] for name in names}

    def _by_readme(self, keys: list[str], config: str | None) -> dict[str, list[str]]:
        """The splits of a configuration in the README's header."""
        configs = [one for one in self._header().get("configs") or () if isinstance(one, dict)]
        configs = [one for one in configs if one.get("data_files") or one.get("data_dir")]
        names = [str(one.get("config_name", "default")) for one in configs]
        if not configs:
            if config is not None:
                raise UserError(
                    f"{self.path}: config = {config}: its README lists no configurations; leave it"
                    " out, or name a directory or a glob as path"
                )
            return {}
        default = next((n for n, c in zip(names, configs, strict=True) if c.get("default") is True), None)
        chosen = config or (names[0] if len(names) == 1 else default or "default")
        if chosen not in names:
            told = shown(", ".join(names))
            if config is None:
                raise UserError(f"{self.path}: has several configurations; name one as config: {told}")
            raise UserError(f"{self.path}: config = {config} is none of its configurations {told}")
        return _matching(configs[names.index(chosen)], keys)

    def _header(self) -> dict[str, Any]:
        text = self._read("README.md")
        found = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            header = yaml.safe_load(found[1]) if found else None
        except (yaml.YAMLError, ValueError, RecursionError):
            return {}
        return header if isinstance(header, dict) and isinstance(header.get("configs") or [], list) else {}

    def _json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads(self._read(name) or "{}")
        except (ValueError, RecursionError):
            return {}
        return value if isinstance(value, dict) else {}

    def _read(self, name: str) -> str:
        """The beginning of a file of the directory; empty if there is none."""
        path = f"{self.root.rstrip('/')}/{name}"
        if not self.filesystem.get_file_info(path).is_file:
            return ""
        with self.filesystem.open_input_stream(path) as stream:
            return stream.read(_MOST_BYTES).decode("utf-8", "replace")


def _without_metadata(keys: list[str]) -> list[str]:
    """The files without JSON that describes data and without caches of `datasets`, if anything is left."""
    data = [key for key in keys if not _is_metadata(key.lower().rpartition("/")[2])]
    return data or keys


def _is_metadata(name: str) -> bool:
    stem, _, ending = name.rpartition(".")
    return (ending == "json" and stem in _METADATA) or (ending == "arrow" and stem.startswith("cache-"))


def _matching(config: dict[str, Any], keys: list[str]) -> dict[str, list[str]]:
    """Files by split, of one configuration of a README."""
    below = str(config.get("data_dir") or "").strip("./")
    prefix = f"{below}/" if below else ""
    files = config.get("data_files")
    if files is None:
        inside = [key for key in keys if key.startswith(prefix)]
        return _by_names(inside) or {"train": inside}
    entries = files if isinstance(files, list) else [files]
    if isinstance(files, dict):
        entries = [{"split": split, "path": path} for split, path in files.items()]
    found: dict[str, list[str]] = {}
    for entry in entries:
        split, paths = "train", entry
        if isinstance(entry, dict):
            split, paths = entry.get("split", "train"), entry.get("path")
        for pattern in paths if isinstance(paths, list) else [paths]:
            pattern = f"{prefix}{pattern}".removeprefix("./")
            found.setdefault(str(split), []).extend(_glob(pattern, keys) or [pattern])
    return {split: list(dict.fromkeys(names)) for split, names in found.items()}


def _glob(pattern: str, keys: Iterable[str]) -> list[str]:
    from fsspec.utils import glob_translate

    matches = re.compile(glob_translate(pattern)).match
    return [key for key in keys if matches(key)]


def _by_names(keys: list[str]) -> dict[str, list[str]]:
    """Files by the split that their names, or else their directories' names, hold as a word."""
    found: dict[str, list[str]] = {}
    for key in keys:
        if (split := _split_of(key)) is not None:
            found.setdefault(split, []).append(key)
    return found


def _split_of(key: str) -> str | None:
    if found := _OF_SPLIT.match(key):
        name = found[1] or found[2]
        return _SPLIT_OF.get(name, name)
    for part in reversed(key.split("/")):
        words = re.split(r"[^a-z]+", part.lower())
        if named := next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None):
            return named
    return None
