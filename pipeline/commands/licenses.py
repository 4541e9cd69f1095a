"""Under which license a run's texts and adapters may be shared, by what is known of sources and model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.settings import presets
from pipeline.settings.shown import shown

OWN = "apache-2.0"  # the toy model and its sentences come with this package
HUB = "hub:"
# What the hub's page "Licenses" lists. `other` and `unknown` are left out: they say nothing.
IDS = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m",
    "bigscience-bloom-rail-1.0", "bigcode-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "c-uda", "cc", "cc0-1.0", "cc-by-2.0",
    "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0",
    "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cdla-sharing-1.0", "cdla-permissive-1.0",
    "cdla-permissive-2.0", "wtfpl", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0", "eupl-1.1", "eupl-1.2",
    "agpl-3.0", "gfdl", "gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "h-research",
    "intel-research", "lppl-1.3c", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "odc-by", "odbl",
    "openmdw-1.0", "openrail++", "osl-3.0", "postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "pddl",
    "lgpl-lr", "deepfloyd-if-license", "fair-noncommercial-research-license", "llama2", "llama3",
    "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma",
}  # fmt: skip


@dataclass(frozen=True)
class License:
    """A license as cards name it. id: the hub's, or `other` with a name and the address of its text."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of a card's header."""
        return {"license": self.id, "license_name": self.name, "license_link": self.link}

    @property
    def told(self) -> str:
        return self.link or self.id


def chosen(given: str | None, known: Mapping[str, str | None]) -> License:
    """The license of what is published.

    given: `--license`, an id of the hub or the address of a text. known: the license of all that it was made
    from, None if it is not known. Raises UserError if there is none, or `given` is no license.
    """
    if given is not None:
        if given.startswith("https://"):
            name = given.rstrip("/").rpartition("/")[2].rpartition(".")[0] or given.rstrip("/").split("/")[-1]
            return License("other", name.lower(), given)
        if given.lower() in IDS:
            return License(given.lower())
        raise UserError(
            f"--license = {shown(given, 60)}: the hub knows no such license; give its id there, such as"
            " cc-by-4.0, or the https:// address of the license's text"
        )
    remedy = "say with --license under which license you may share what was made from them, such as cc-by-4.0"
    if unknown := [name for name, license in known.items() if license is None]:
        raise UserError(f"--license is missing: the license of {', '.join(unknown)} is not known; {remedy}")
    if len(different := sorted({license for license in known.values() if license})) != 1:
        raise UserError(
            f"--license is missing: the sources have {' and '.join(different) or 'none'}; {remedy}"
        )
    return License(different[0])


def is_non_commercial(license: str | None) -> bool:
    return license is not None and ("-nc-" in license or "noncommercial" in license)


def of_source(path: str) -> str | None:
    """The license of a source's texts; None if it is not known. Asks the hub for the card of a data set."""
    if path.startswith("toy:"):
        return OWN
    for about in presets.known().values():
        if about["path"] == path and about["licence"]:
            return about["licence"].lower()
    return _on_hub(path.removeprefix(HUB), "dataset") if path.startswith(HUB) else None


def of_model(config: Config) -> str | None:
    """The license of the run's base model; None if it is not known."""
    path = config.model.path
    if path == "toy":
        return OWN
    return _in_directory(path) if os.path.isdir(path) else _on_hub(path, "model")


def _in_directory(path: str) -> str | None:
    from huggingface_hub import ModelCard

    try:
        return _known(ModelCard.load(os.path.join(path, "README.md")).data.get("license"))
    except (OSError, ValueError):
        return None


@cache
def _on_hub(name: str, kind: Literal["model", "dataset"]) -> str | None:
    import httpx
    from huggingface_hub import DatasetCard, ModelCard

    try:
        return _known((ModelCard if kind == "model" else DatasetCard).load(name).data.get("license"))
    except (OSError, ValueError, httpx.HTTPError):  # no network, no such card, or its header cannot be read
        return None


def _known(license: object) -> str | None:
    """A card's license, if it is one that says something."""
    found = license[0] if isinstance(license, list) and len(license) == 1 else license
    return found if isinstance(found, str) and found in IDS else None
