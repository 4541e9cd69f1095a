"""The rows of a `.json` file, in the layouts that pandas and others write."""

from typing import Any

from pipeline.errors import UserError
from pipeline.settings.shown import shown
from pipeline.sources.columns import is_known
from pipeline.sources.conversations import messages


def rows_of(value: Any, where: str) -> list[Any]:
    """The rows of a parsed file: a list of them, a single row, or a table by columns or by rows.

    pandas writes `{column: {label: value}}`, `{column: [value]}`, `{label: {column: value}}`,
    `{"columns": […], "data": [[…]]}` or `{"schema": …, "data": […]}`. Raises UserError for an object that is
    none of these.
    """
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    columns, data, inner = value.get("columns"), value.get("data"), list(value.values())
    if isinstance(columns, list) and isinstance(data, list):
        return [dict(zip(map(str, columns), row)) if isinstance(row, list) else row for row in data]  # noqa: B905
    if any(is_known(name) for name in value if name != "data"):
        return _by_columns(value, where)
    if inner and all(isinstance(row, dict) and any(map(is_known, row)) for row in inner):
        return inner
    lists = [one for one in inner if isinstance(one, list) and any(isinstance(row, dict) for row in one)]
    if len(lists) == 1:
        return lists[0]
    if inner and all(isinstance(one, list | dict) for one in inner):
        raise _refusal(value, where)
    return [value]


def _by_columns(value: dict, where: str) -> list[Any]:
    """The rows of a table whose columns are lists, or mappings from labels; a single row is one row."""
    inner = list(value.values())
    if any(messages(one) is not None for one in inner if isinstance(one, list | dict)):
        return [value]
    by_label = [one for one in inner if isinstance(one, dict)]
    lists = [one for one in inner if isinstance(one, list)]
    if len(by_label) == len(inner) and all(one.keys() == by_label[0].keys() for one in by_label):
        return [{name: column[label] for name, column in value.items()} for label in by_label[0]]
    if len(lists) == len(inner) and all(len(one) == len(lists[0]) for one in lists):
        return [dict(zip(value, row, strict=True)) for row in zip(*inner, strict=True)]
    if not any(isinstance(one, str) for one in inner):
        raise _refusal(value, where)
    return [value]


def _refusal(value: dict, where: str) -> UserError:
    return UserError(
        f"{shown(where, 1000)}: is one JSON object with the keys {shown(', '.join(map(str, value)))}, and its"
        " values are no columns of one length; write the rows as a list of objects, or as JSONL"
    )
