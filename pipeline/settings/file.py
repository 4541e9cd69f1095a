"""A tree of sections as a YAML file: `load(Config, "run.yaml", ["train.epochs=1"])` reads it, applies
overrides and validates.

Every wrong key or value becomes one `UserError` sentence: the field, the value, the remedy.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from pipeline.errors import UserError
from pipeline.settings import yaml_text
from pipeline.settings.base import tag
from pipeline.settings.shown import shown

Tree = TypeVar("Tree", bound=BaseModel)
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)  # libyaml's, if PyYAML was built with it


def load(root: type[Tree], path: str | Path, overrides: Sequence[str] = ()) -> Tree:
    """Read a YAML configuration and apply `key.sub=value` overrides (values are YAML: `3`, `true`, `[1, 2]`).

    Raises UserError (one sentence) if the file is missing or unreadable, or a key or value is wrong.
    """
    try:
        tree = yaml_text.read(path)
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: no such configuration file") from None
    except yaml.YAMLError as e:
        raise UserError(f"{path}: not valid YAML ({shown(e)})") from None
    except IsADirectoryError:
        made = Path(path, "config.yaml")
        told = f"is a run directory; give {made}" if made.is_file() else "is a directory; give a YAML file"
        raise UserError(f"{shown(path)}: {told}") from None
    except (OSError, ValueError) as e:  # ValueError: not UTF-8, or a NUL in the file's name
        raise UserError(f"{shown(path)}: cannot be read ({shown(e)})") from None
    if tree is None:
        raise UserError(f"{path}: is empty; give at least run_dir, model, and methods or suites")
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, not {type(tree).__name__}")
    for override in overrides:
        _override(tree, override)
    return validated(root, tree, path)


def validated(root: type[Tree], tree: Any, where: str | Path) -> Tree:
    """Parsed YAML as a section. Raises UserError (one sentence that begins with `where`)."""
    try:
        return root.model_validate(tree)
    except ValidationError as e:
        raise UserError(f"{where}: {_first_error(e, root)}") from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML, with all defaults. `load` reads it back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_DUMPER, sort_keys=False, allow_unicode=True)


def _override(tree: dict, override: str) -> None:
    key, eq, text = override.partition("=")
    if not eq or not key.strip():
        raise UserError(f"override {_short(override)}: write it as key.sub=value")
    try:
        value = yaml_text.parse(text)
    except yaml.YAMLError as e:
        raise UserError(f"override {_short(override)}: the value is not valid YAML ({shown(e)})") from None
    *parents, leaf = key.strip().split(".")
    if len(parents) >= yaml_text.MOST_LEVELS:
        raise UserError(f"override {_short(override)}: key has too many levels; write it as key.sub=value")
    node: Any = tree
    for name in parents:
        child = {} if node.get(name) is None else node[name]
        if not isinstance(child, dict):
            kind = type(child).__name__
            raise UserError(f"override {_short(override)}: {shown(name)} is a {kind}, which has no keys")
        child = node[name] = dict(child)  # a YAML alias may share this mapping
        node = child
    node[leaf] = value


_TAGS = ("kind", "name", "method")  # fields that select a member of a union
_MISSPELT = ("extra_forbidden", "invalid_key")


def _first_error(e: ValidationError, root: type[BaseModel]) -> str:
    """One sentence of pydantic's report: field, value, remedy, and the number of other errors."""
    # A misspelled key comes first, because it often explains a missing one. Arms inherit errors of `train`;
    # those copies are dropped.
    errors = sorted(e.errors(), key=lambda error: error["type"] not in _MISSPELT)
    own = {error["loc"] for error in errors if error["loc"][:1] == ("train",)}
    errors = [error for error in errors if error["loc"][:1] != ("arms",) or error["loc"][2:] not in own]
    first = errors[0]
    field = _field(first, root)
    if first["type"] == "extra_forbidden":
        text = f"{field} is not a known key{_suggestion(first['loc'], root)}"
    elif first["type"].startswith("union_tag_"):
        text = _no_member(field, first, root)
    elif first["type"] == "missing":
        text = f"{field} is missing; it has no default"
    else:
        message = _PLAIN.get(first["type"]) or shown(first["msg"].removeprefix("Value error, "), 500)
        text = (
            f"{field} = {_written(first['input'])}: {message[0].lower()}{message[1:]}"
            if first["loc"]
            else message
        )
    more = len({_field(error, root) for error in errors}) - 1
    return text + (f" (and {more} more)" if more else "")


def _written(value: Any) -> str:
    """A value, as YAML has it if Python's name is another."""
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value)) or _short(value)


# Replacements for pydantic messages about Python types.
_PLAIN = {
    "string_type": "should be a text",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "none_required": "has no meaning here; leave it out",
}


def _no_member(field: str, error: Mapping[str, Any], root: type[BaseModel]) -> str:
    """A union whose member is not selected, or is unknown."""
    members = _sections(_walk(error["loc"], root)[1])
    key = next(name for name in _TAGS if name in members[0].model_fields)
    known = ", ".join(member.model_fields[key].default for member in members)
    given = tag(error["input"], key, None)
    return f"{field}.{key} " + (
        f"is missing; known are {known}" if given is None else f"= {_short(given)}: known are {known}"
    )


def _field(error: Mapping[str, Any], root: type[BaseModel]) -> str:
    location = error["loc"]
    unknown = location[-1:] if error["type"] == "extra_forbidden" else ()
    names = _walk(location[: len(location) - len(unknown)], root)[0]
    return ".".join(shown(name, 60) for name in (*names, *unknown))


def _suggestion(location: tuple, root: type[BaseModel]) -> str:
    """The known key closest to an unknown one, another member of the union that has it, or all known keys."""
    import difflib

    known = list(_fields(_walk(location[:-1], root)[1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    others = [
        f"{name}: {section.model_fields[name].default}"
        for section in _union(location[:-1], root)
        for name in _TAGS
        if name in section.model_fields and location[-1] in section.model_fields
    ]
    if others:
        return f"; it is a key of {' and of '.join(others)}"
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _union(location: tuple, root: type[BaseModel]) -> list[type[BaseModel]]:
    """The members of the union at a location that ends with the tag of one; else none."""
    members = _sections(_walk(location[:-1], root)[1]) if location else []
    return members if any(location[-1] in _tags(member) for member in members) else []


def _walk(location: tuple, root: type[BaseModel]) -> tuple[list[str], Any]:
    """The keys of a pydantic location, without names of union branches, and the type at that location."""
    names, here = [], root
    for part in location:
        if part in _fields(here):
            here = _fields(here)[part]
        elif get_origin(here) is dict:
            here = get_args(here)[1]
        elif isinstance(part, str):
            here = next((s for s in _sections(here) if part in _tags(s)), here)
            continue
        names.append(str(part))
    return names, here


def _fields(annotation: Any) -> dict[str, Any]:
    return {
        name: field.annotation
        for section in _sections(annotation)
        for name, field in section.model_fields.items()
    }


def _tags(section: type[BaseModel]) -> list[Any]:
    """The tags of a section in a union."""
    return [section.model_fields[name].default for name in _TAGS if name in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [] if get_origin(annotation) is dict else [s for a in get_args(annotation) for s in _sections(a)]


def _short(value: Any) -> str:
    return shown(repr(value), 60)
