"""Rows of CSV and TSV, with care for quotes: one that is not closed takes the next rows into its field."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

from pipeline.errors import UserError
from pipeline.settings.shown import shown
from pipeline.sources.rows import MAX_LINE_BYTES, BadRow

# A field with at least this many lines that look like rows has swallowed rows. Texts often have one delimiter
# on a line, so rows of two columns need more lines.
_ROWS_OF_TWO, _ROWS_OF_MORE = 5, 2


def separated(text: io.TextIOWrapper, where: str, delimiters: str) -> Iterator[dict | BadRow]:
    """The rows of a text with a header line. delimiters: the one that the header holds most often is taken.

    Quotes are read strictly. After an error, reading resumes after the line at which quotes are balanced
    again: a row that began inside a quoted text would be an invention. Raises UserError if two columns have
    one name.
    """
    # The limit is global to the interpreter, and its default is too short for real texts. Over-long
    # instructions are rejected later.
    csv.field_size_limit(MAX_LINE_BYTES)
    lines = _Lines(text)
    first = next(lines, "")
    if named := re.fullmatch(r"sep=(.)\s*", first):  # as Excel writes it
        first, delimiters = next(lines, ""), named[1]
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = max(delimiters, key=unquoted.count)
    lines.back = first
    spaced = f"{delimiter} " in unquoted or f'{delimiter} "' in first
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
    header: list[str] | None = None
    while True:
        lines.begin()
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            lines.skip_to_even_quotes()
            yield BadRow(_reason(lines, str(e)), b"")
            continue
        if not fields:
            continue
        if header is None:
            header = fields
            check_names(header, where)
        elif len(fields) > len(header):
            yield BadRow("more fields than the header has", b"")
        elif any(_holds_rows(field, len(header) - 1, delimiter) for field in fields) or (
            len(fields) < len(header) and any("\n" in field for field in fields)
        ):
            yield BadRow(f"a quoted field holds what seems to be rows{lines.span()}", b"")
        else:
            yield dict(zip(header, fields + [None] * (len(header) - len(fields)), strict=True))


def check_names(names: list[str], where: str) -> None:
    """Raises UserError if two columns have one name: only one of them would be read."""
    twice = [name for name, count in Counter(names).items() if count > 1 and name.strip()]
    if twice:
        raise UserError(f"{shown(where, 1000)}: has two columns {shown(twice[0], 60)}; rename one of them")


def _reason(lines: "_Lines", error: str) -> str:
    """Why a row cannot be read, and how many lines are lost with it."""
    lost = lines.span()
    if "unexpected end of data" in error:
        return f"a quote is not closed, so the rows after it cannot be told apart{lost}"
    if "expected after" in error:
        return f"text follows a closing quote (a quote inside a quoted field is written twice){lost}"
    return f"not valid CSV ({shown(error)}){lost}"


def _holds_rows(field: str, delimiters: int, delimiter: str) -> bool:
    """Whether the lines of a field look like rows of the file: as many delimiters, and no space behind them.

    The first line is the end of the row that the field began in, the last one may be cut.
    """
    if "\n" not in field or delimiters < 1:
        return False

    def looks_like_row(line: str) -> bool:
        return line.count(delimiter) == delimiters and f"{delimiter} " not in line

    lines = [line for line in field.splitlines() if line.strip()][1:]
    rows = sum(map(looks_like_row, lines))
    enough = _ROWS_OF_TWO if delimiters == 1 else _ROWS_OF_MORE
    return rows >= enough and all(map(looks_like_row, lines[:-1]))


class _Lines:
    """The lines of a text, counted, with the quotes since the row's beginning.

    A line longer than MAX_LINE_BYTES raises csv.Error; the next call continues after that line.
    """

    def __init__(self, text: io.TextIOWrapper):
        self._text, self.back = text, ""
        self.number = self.start = self._quotes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.back:
            line, self.back = self.back, ""
            return line
        line = self._text.readline(MAX_LINE_BYTES)
        if not line:
            raise StopIteration
        self.number += 1
        self._quotes += line.count('"')
        if not _cut(line):
            return line
        while _cut(self._text.readline(MAX_LINE_BYTES)):
            pass
        self._quotes = 0
        raise csv.Error(f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")

    def begin(self) -> None:
        """A row begins with the next line."""
        self.start = self.number + (not self.back)
        if not self.back:
            self._quotes = 0

    def span(self) -> str:
        """The lines of the row, for a message."""
        return f": from line {self.start} to line {self.number}"

    def skip_to_even_quotes(self) -> None:
        """Read on until the quotes since the row's beginning are even, which they are at the end of a row."""
        while self._quotes % 2:
            try:
                next(self)
            except StopIteration:
                return
            except csv.Error:
                continue


def _cut(line: str) -> bool:
    return len(line) >= MAX_LINE_BYTES and not line.endswith(("\n", "\r"))
