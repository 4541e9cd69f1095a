"""A typed walk over a configuration: all values of one kind, by field name.

Preflight, manifest and data set cards use it. A plug-in with a new source, server, model, adapter or prompt
file therefore needs no central list.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pipeline.settings.base import NameKind, PathKind, Section

S = TypeVar("S", bound=Section)
T = TypeVar("T", bound=Section)


def sections(tree: Section, kind: type[S], prefix: str = "") -> dict[str, S]:
    """Every section of a type, by dotted field name, in the order of the fields.

    For example `{"suites.safety.harmful": Source(…)}`.
    """
    return {name: value for name, value, _ in _walk(tree, prefix) if isinstance(value, kind)}


def paths(tree: Section, kind: PathKind | NameKind, prefix: str = "") -> dict[str, str]:
    """Every path or name of this kind, by dotted field name: `paths(config, PathKind.ADAPTER)`."""
    return {name: value for name, value, metadata in _walk(tree, prefix) if kind in metadata}


def replaced(tree: T, changes: Mapping[str, Section], prefix: str = "") -> T:
    """The tree with other sections at these dotted field names."""
    update: dict[str, Any] = {}
    for name in type(tree).model_fields:
        value, dotted = getattr(tree, name), f"{prefix}.{name}" if prefix else name
        if (new := _replaced(value, changes, dotted)) is not value:
            update[name] = new
    return tree.model_copy(update=update) if update else tree


def _replaced(value: Any, changes: Mapping[str, Section], name: str) -> Any:
    if name in changes:
        return changes[name]
    if not any(changed.startswith(f"{name}.") for changed in changes):
        return value
    if isinstance(value, dict):
        return {key: _replaced(one, changes, f"{name}.{key}") for key, one in value.items()}
    return replaced(value, changes, name) if isinstance(value, Section) else value


def _walk(tree: Section, prefix: str) -> Iterator[tuple[str, Any, tuple]]:
    """(dotted name, value, metadata of its type) of every value below a section that is not null."""
    for name, annotation, metadata in _fields(type(tree)):
        dotted = f"{prefix}.{name}" if prefix else name
        yield from _value(dotted, getattr(tree, name), annotation, metadata)


def _value(name: str, value: Any, annotation: Any, metadata: tuple) -> Iterator[tuple[str, Any, tuple]]:
    if value is None:
        return
    if isinstance(value, Section):
        yield name, value, metadata
        yield from _walk(value, name)
    elif isinstance(value, dict):
        values, of_values = _bare(get_args(annotation)[1])
        for key, one in value.items():
            yield from _value(f"{name}.{key}", one, values, of_values)
    else:
        yield name, value, metadata


@cache
def _fields(section: type[Section]) -> list[tuple[str, Any, tuple]]:
    """Name, type and metadata of its fields, found once: commands walk over a configuration many times."""
    fields = section.model_fields.items()
    return [(name, *_bare(field.annotation, tuple(field.metadata))) for name, field in fields]


def _bare(annotation: Any, metadata: tuple = ()) -> tuple[Any, tuple]:
    """A type that may also be null, or has metadata, without either; and its metadata."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _bare(inner, (*metadata, *more))
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _bare(members[0], metadata)
    return annotation, metadata
