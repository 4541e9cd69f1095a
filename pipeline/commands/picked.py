"""Rows of a data set that a user names by values: `--where arm=sft --where harmful=true`."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError
from pipeline.settings.shown import shown

NULL = "null"
_MOST_VALUES = 10  # named in a message


@dataclass
class Condition:
    """column = value; the value `null` stands for no value. found: whether some row had it."""

    column: pa.Field
    value: str
    found: bool = False

    @classmethod
    def of(cls, text: str, schema: pa.Schema) -> "Condition":
        """`arm=sft`. Raises UserError if it is written otherwise, or the data set has no such column."""
        name, equals, value = text.partition("=")
        option = f"--where {shown(text, 60)}"
        if not equals or not name:
            raise UserError(f"{option}: write it as COLUMN=VALUE, such as arm=sft or harmful=true")
        if name not in schema.names:
            single = [field.name for field in schema if not pa.types.is_nested(field.type)]
            raise UserError(f"{option}: there is no column {shown(name, 40)}; it has {', '.join(single)}")
        made = cls(schema.field(name), value.strip())
        if value != NULL:
            made.matches(pa.array([], made.column.type))
        return made

    def __str__(self) -> str:
        return f"{self.column.name} = {shown(self.value, 60)}"

    def matches(self, column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        """Whether each value is the wanted one. Raises UserError if the column cannot hold it."""
        if self.value == NULL:
            return pc.is_null(column)
        kind = column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind):
            raise UserError(f"--where {self}: the column is a {kind}; pick rows by single values")
        try:
            wanted = pa.scalar(self.value.lower() if pa.types.is_boolean(kind) else self.value).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"--where {self}: the column holds values of type {kind}") from None
        return pc.fill_null(pc.equal(column, wanted), False)


def filtered(table: pa.Table, conditions: Sequence[Condition]) -> pa.Table:
    """The rows that meet all conditions; remembers which conditions were met by some row."""
    for condition in conditions:
        matches = condition.matches(table[condition.column.name])
        condition.found = condition.found or bool(pc.any(matches).as_py())
    for condition in conditions:
        table = table.filter(condition.matches(table[condition.column.name]))
    return table


def check_found(conditions: Sequence[Condition], known: dict[str, Sequence[str]], rows: int) -> None:
    """Raises UserError if no row has a value, or all of them.

    known: column → its values, of columns that hold no texts. rows: how many have all values.
    """
    for condition in conditions:
        if not condition.found:
            values = [shown(one, 40) for one in known.get(condition.column.name, ())]
            told = f"; there are {', '.join(values[:_MOST_VALUES])}" if values else ""
            raise UserError(f"--where {condition}: no row has this value{told}")
    if conditions and not rows:
        raise UserError(f"--where {', '.join(map(str, conditions))}: no row has all of these values")
