"""Writes docs/configuration.md: one table per section of the configuration; and the JSON schemas beside it.

python -m pipeline.commands.reference
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from pipeline.commands import schemas
from pipeline.config import Config
from pipeline.settings.base import Section

FILE = Path(__file__).parents[2] / "docs" / "configuration.md"
INTRODUCTION = """\
# Configuration

Every section of a configuration and every field of it. `make reference` writes this file from the
descriptions in the code; do not edit it.

A configuration is one YAML file. `key.sub=value` after its name on the command line changes a field:
`setbacks run config.yaml seed=1 train.epochs=2`. Unknown keys are errors. *NAME* is a name that you choose,
of lower-case letters, digits and `_`. A dash means no default: set the field, unless its
description says what is used instead.
"""
_WORDS = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", NoneType: "`null`"}
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_NO_BOUND = 2**31  # larger limits only keep numbers within machine integers; not shown


def reference() -> str:
    """The whole page, in Markdown."""
    places: dict[type[Section], list[str]] = {Config: []}
    for place, section in _sections(Config, ""):
        places.setdefault(section, []).append(place)
    return "\n".join([INTRODUCTION, *(_page(section, found) for section, found in places.items())])


def _sections(model: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    """Every section below `model`, with its dotted name."""
    for name, field in model.model_fields.items():
        place = f"{prefix}{name}.NAME" if get_origin(field.annotation) is dict else f"{prefix}{name}"
        for section in _members(field.annotation):
            yield place, section
            yield from _sections(section, f"{place}.")


def _members(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _members(part)


def _page(section: type[Section], places: list[str]) -> str:
    lines = [f"## {_title(section)}", "", inspect.cleandoc(vars(section).get("__doc__") or ""), ""]
    if places:
        lines += [f"Used as {', '.join(f'`{place}`' for place in dict.fromkeys(places))}.", ""]
    lines += ["| field | type | default | description |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        kind = _type(field.annotation, field.metadata)
        cells = [f"`{name}`", kind, _default(field), field.description or ""]
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _title(section: type[Section]) -> str:
    """The section's name; for a member of a union, also the field that selects the member."""
    tags = (f"{name}: {field.default}" for name, field in section.model_fields.items() if _is_tag(field))
    return section.__name__ + "".join(f" (`{tag}`)" for tag in tags)


def _is_tag(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and get_args(field.annotation) == (field.default,)


def _link(section: type[Section]) -> str:
    title = _title(section)
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")  # same rule as GitHub
    return f"[{title}](#{anchor})"


def _type(annotation: Any, metadata: list) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], [*metadata, *parts[1:]])
    if origin in (Union, UnionType):
        return " or ".join(_type(part, metadata) for part in parts)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin is list:
        return f"list of {_type(parts[0], [])}"
    if origin is tuple:
        return f"[{', '.join(_type(part, []) for part in parts)}]"
    if origin is dict:
        return f"*NAME* → {_type(parts[1], [])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _link(annotation)
    word = str(_WORDS.get(annotation) or getattr(annotation, "__name__", annotation))
    return f"{word} {_bounds(metadata)}".strip() if annotation in (int, float) else word


def _bounds(metadata: list) -> str:
    found = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    said = []
    for name, sign in _BOUNDS.items():
        limits = [getattr(part, name) for part in found if hasattr(part, name)]
        said += [f"{sign} {limit:g}" for limit in limits if limit < _NO_BOUND]
    return ", ".join(said)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "–"
    value = field.default
    if isinstance(value, Section):
        tags = {name: field.default for name, field in type(value).model_fields.items() if _is_tag(field)}
        value = tags | value.model_dump(mode="json", exclude_defaults=True)
        if not value:
            return "its defaults"
    value = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return f"`{text.strip().removesuffix('...').strip()}`"  # YAML ends a scalar document with dots


if __name__ == "__main__":
    for file, text in (
        (FILE, reference()),
        (schemas.CONFIGURATION, schemas.configuration()),
        (schemas.RESULTS, schemas.results()),
    ):
        file.write_text(text, encoding="utf-8")
        print(f"wrote {file}")
