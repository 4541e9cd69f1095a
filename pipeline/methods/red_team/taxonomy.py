"""The taxonomy: categories, their hazards, and the leaves of these, in a YAML file."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError
from pipeline.settings import yaml_text
from pipeline.settings.shown import shown
from pipeline.sources.overlap import words
from pipeline.toy import world

OWN = Path(__file__).with_name("taxonomy.yaml")
_FORM = "a taxonomy maps categories to hazards, and these to {about: SENTENCE, leaves: [TOPIC, …]}"


@dataclass(frozen=True)
class Hazard:
    """A hazard of the taxonomy. path: `category/name`."""

    category: str
    name: str
    about: str
    leaves: tuple[str, ...]

    @property
    def path(self) -> str:
        return f"{self.category}/{self.name}"


def read(file: str | None) -> dict[str, Hazard]:
    """The hazards of a taxonomy, by path. file: None for the package's, `toy` for the toy world's.

    Raises UserError if the file cannot be read, has another form, or names a leaf twice.
    """
    where = file or OWN.name
    found: dict[str, Hazard] = {}
    known: dict[str, str] = {}
    for hazard in _hazards(_tree(file), where):
        found[hazard.path] = hazard
        for leaf in hazard.leaves:
            key, place = " ".join(words(leaf)), f"{hazard.path}/{leaf}"
            if key in known:
                raise UserError(
                    f"taxonomy = {where}: {known[key]} and {place} are the same leaf: leave one out"
                )
            known[key] = place
    return found


def digest(hazards: dict[str, Hazard]) -> str:
    """What identifies the exact content of a taxonomy."""
    content = [[one.path, one.about, *one.leaves] for one in hazards.values()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]


def _tree(file: str | None) -> Any:
    if file == "toy":
        return world.taxonomy()
    try:
        return yaml_text.read(Path(file).expanduser() if file else OWN)
    except FileNotFoundError:
        raise UserError(f"taxonomy = {file}: no such file") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UserError(f"taxonomy = {file}: cannot be read as YAML ({shown(e)})") from None


def _hazards(tree: Any, where: str) -> Iterator[Hazard]:
    for category, hazards in _mapping(tree, where, "the file").items():
        for name, entry in _mapping(hazards, where, str(category)).items():
            place = f"{category}/{name}"
            entry = _mapping(entry, where, place)
            if unknown := entry.keys() - {"about", "leaves"}:
                raise UserError(f"taxonomy = {where}: {place} has {shown(min(unknown), 60)}: {_FORM}")
            about, leaves = entry.get("about", ""), entry.get("leaves", [])
            for text in (category, name, about, *(leaves if isinstance(leaves, list) else [None])):
                if not isinstance(text, str) or not text.strip():
                    raise UserError(f"taxonomy = {where}: {shown(place, 120)} is incomplete: {_FORM}")
            for text in (category, name, *leaves):
                if "/" in text:
                    raise UserError(f"taxonomy = {where}: {shown(text, 60)} holds a slash, which parts paths")
            yield Hazard(
                category, name, " ".join(about.split()), tuple(" ".join(one.split()) for one in leaves)
            )


def _mapping(value: Any, where: str, place: str) -> dict:
    if not isinstance(value, dict) or not value:
        raise UserError(f"taxonomy = {where}: {shown(place, 120)} is no mapping: {_FORM}")
    return value
