"""`setbacks show DATASET`: prints rows of a data set; harmful text is masked unless --reveal is given."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pipeline.commands import picked
from pipeline.data import storage
from pipeline.data.dataset import Dataset, decoding
from pipeline.errors import UserError
from pipeline.registry import WRITTEN
from pipeline.schema import HARMFUL, HARMLESS, INSTRUCTIONS, UNKNOWN, Column

_MOST_DIRECTORIES = 100  # looked into for a hint
_COUNTED = ("status", "kind", "suite", "arm", "condition")
_MOST_CHARACTERS = 2_000
# Columns and struct members are known by name only: a foreign file's own labels would prove nothing.
_COLUMNS = {column.name: column for schema in (INSTRUCTIONS, *WRITTEN) for column in schema.columns}
_MEMBERS = {member.name: member for column in _COLUMNS.values() for member in column.members}


def show(
    dataset_dir: str,
    rows: int,
    reveal: bool,
    console,
    *,
    where: Sequence[str] = (),
    offset: int = 0,
    as_json: bool = False,
) -> None:
    """Print a data set's columns, counts and `rows` rows on a `rich.console.Console`, or as JSON. Picked rows
    are printed without the columns.

    where: `column=value`, which all rows that are counted and shown have. offset: how many of them are passed
    over before the first that is shown. Raises UserError if the data set does not exist, cannot be read, has
    changed since a run finished it, or has no row with a value.
    """
    dataset = _open(dataset_dir)
    schema, every, total = dataset.schema, 0, 0
    conditions = [picked.Condition.of(text, schema) for text in where]
    first: list[dict] = []
    counts: dict[str, Counter] = {name: Counter() for name in _COUNTED if name in schema.names}
    known: dict[str, Counter] = {name: Counter() for name in counts}
    for whole in dataset.tables():
        table = picked.filtered(whole, conditions)
        with decoding(dataset_dir):
            first += table.slice(max(0, offset - total), rows - len(first)).to_pylist()
            for name in counts:
                counts[name].update(_counted(table[name]))
                known[name].update(_counted(whole[name]) if conditions else {})
        every, total = every + whole.num_rows, total + table.num_rows
    picked.check_found(conditions, {name: list(values) for name, values in known.items()}, total)
    if total and offset >= total:
        raise UserError(f"--offset {offset}: there are only {total} rows; the first has offset 0")
    if as_json:
        columns = [{"name": f.name, "type": str(f.type), "meaning": _meaning(f)} for f in schema]
        shown = [
            {name: _value(value, hide=not reveal and _is_hidden(name, row)) for name, value in row.items()}
            for row in first
        ]
        facts = {"rows": total, "offset": offset, "counts": counts, "columns": columns, "shown": shown}
        print(json.dumps({"dataset": dataset_dir, **facts, "masked": not reveal}, indent=1, default=str))
        return

    of = f" of {every}, {', '.join(map(str, conditions))}" if conditions else ""
    console.print(_line(f"{dataset_dir}: {total} rows{of}"), style="bold")
    for name, values in counts.items():
        console.print(_line(f"  {name}: " + ", ".join(f"{value} {n}" for value, n in values.most_common())))
    if not conditions and not offset:  # who picks rows wants to see rows
        console.print(_columns(schema))
    for number, row in enumerate(first, start=1 + offset):
        console.rule(_line(f"row {number} of {total}"), style="dim")
        console.print(_fields(row, reveal))
    if not reveal:
        console.print("Text that may be harmful is masked; --reveal shows it.", style="dim")


def safe_text(text: str) -> str:
    """Text without terminal commands: control, direction and invisible characters escaped, line ends kept."""
    return "".join(
        c if c.isprintable() or c == "\n" else " " if c.isspace() else c.encode("unicode_escape").decode()
        for c in text
    )


def masked(text: str) -> str:
    """What is printed instead of a text that may be harmful."""
    return f"▒▒▒▒ ({len(text)} characters)"


def _open(dataset_dir: str) -> Dataset:
    from pyarrow import fs

    filesystem, inner = storage.filesystem(dataset_dir)
    if filesystem.get_file_info(inner).type != fs.FileType.Directory:
        raise UserError(
            f"{dataset_dir}: no such directory; a data set is a directory of Parquet files, such as"
            " RUN/mistakes"
        )
    dataset = Dataset.at(storage.absolute(dataset_dir))
    if dataset is None:
        raise UserError(f"{dataset_dir}: holds no Parquet files{_inside(filesystem, inner)}")
    return dataset


def _inside(filesystem, inner: str) -> str:
    """A hint for a user who names a run instead of one of its data sets."""
    from pyarrow import fs

    try:
        below = filesystem.get_file_info(fs.FileSelector(inner))
        for directory in [f.path for f in below if f.type == fs.FileType.Directory][:_MOST_DIRECTORIES]:
            below += filesystem.get_file_info(fs.FileSelector(directory))
    except OSError:  # such as a directory of somebody else
        return ""
    names = sorted(
        {
            f.path.removeprefix(inner).lstrip("/").rpartition("/")[0]
            for f in below
            if f.path.endswith(".parquet")
        }
    )
    visible = [name for name in names if name and not name.startswith(".")]
    return (
        f"; name a data set in it: {safe_text(', '.join(visible))}"
        if visible
        else "; it may not be complete yet"
    )


def _counted(column) -> dict[str, int]:
    """Count of each value; a foreign column with a known name may hold anything."""
    counts: Counter = Counter()
    for pair in column.value_counts().to_pylist():
        counts[str(pair["values"])] += pair["counts"]
    return counts


def _columns(schema):
    """Name, type and meaning of each column; the data files store the meaning."""
    from rich.table import Table

    table = Table("column", "type", "meaning", box=None, header_style="dim", padding=(0, 2, 0, 2))
    for field in schema:
        table.add_row(_line(field.name), _line(str(field.type)), _line(_meaning(field)), style="dim")
    return table


def _meaning(field) -> str:
    return (field.metadata or {}).get(b"description", b"").decode("utf-8", "replace")


def _fields(row: dict, reveal: bool):
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in row.items():
        if value is not None:
            text = _rendered(value, hide=not reveal and _is_hidden(name, row))
            table.add_row(_line(name), Text(_cut(text)))
    return table


def _is_hidden(name: str, row: dict) -> bool:
    return _is_masked(_text(name, _COLUMNS), row)


def _text(name: str, known: dict[str, Column]) -> str | None:
    """The kind of text under a column or member name; an unknown name counts as UNKNOWN text."""
    return known[name].text if name in known else UNKNOWN


def _is_masked(text: str | None, row: dict) -> bool:
    """Whether a column of this text kind is masked in a row, whatever a judge said: judges err."""
    if text in (None, HARMLESS):
        return False
    return text == HARMFUL or "helpful" not in (row.get("suite"), row.get("kind"))


def _rendered(value: Any, *, hide: bool) -> str:
    """A value as lines of text; each text in a conversation, list or struct is masked separately."""
    if isinstance(value, str):
        return masked(value) if hide else safe_text(value)
    if isinstance(value, dict) and value.keys() == {"role", "content"}:
        return f"{safe_text(str(value['role']))}: {_rendered(value['content'], hide=hide)}"
    if isinstance(value, dict):
        lines = []
        for name, member in value.items():
            if member is not None:
                text = _rendered(
                    member, hide=hide and _text(name, _MEMBERS | _COLUMNS) not in (None, HARMLESS)
                )
                lines.append(f"{safe_text(str(name))}: {text}")
        return "\n".join(lines)
    if isinstance(value, list | tuple):  # entries of a map are pairs
        return "\n".join(_rendered(v, hide=hide) for v in value)
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    return safe_text(str(value))


def _value(value: Any, *, hide: bool) -> Any:
    """A value for JSON, its texts masked as `_rendered` masks them. Texts keep their characters."""
    if isinstance(value, str):
        return masked(value) if hide else value
    if isinstance(value, dict) and value.keys() == {"role", "content"}:
        return {"role": value["role"], "content": _value(value["content"], hide=hide)}
    if isinstance(value, dict):
        return {
            name: _value(one, hide=hide and _text(name, _MEMBERS | _COLUMNS) not in (None, HARMLESS))
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [_value(one, hide=hide) for one in value]
    return f"({len(value)} bytes)" if isinstance(value, bytes) else value


def _cut(text: str) -> str:
    return (
        text
        if len(text) <= _MOST_CHARACTERS
        else f"{text[:_MOST_CHARACTERS]}… ({len(text) - _MOST_CHARACTERS} more characters)"
    )


def _line(text: str):
    """One line as rich Text, so that square brackets are no markup."""
    from rich.text import Text

    return Text(safe_text(text).replace("\n", "\\n"))
