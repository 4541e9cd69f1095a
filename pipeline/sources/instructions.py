"""Any instruction source as rows of one shape (`schema.INSTRUCTIONS`), one at a time.

    files     Parquet, Arrow, JSONL (.jsonl, .ndjson), JSON, CSV or TSV; a file, directory or glob; local,
              s3://, gs://, hf://; .gz, .zst, …
    hub:NAME  a data set through `datasets`, streamed
    toy:SPLIT the embedded toy world

An instruction's id is a hash of its text alone, so the same instruction has the same id in every file. The
first row of an id is yielded; later ones count as duplicates. A malformed row never ends the read: it is
yielded as a failed row with its reason. `Counts` accounts for every row and column.
"""

import hashlib
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from pipeline.data.ids import IdSet
from pipeline.errors import UserError
from pipeline.schema import FAILED, OK
from pipeline.settings.base import Source
from pipeline.sources import files
from pipeline.sources.columns import Fields
from pipeline.sources.counts import Counts
from pipeline.sources.files import BadRow
from pipeline.sources.shapes import Shape, recognize
from pipeline.sources.values import BadContent, decoded, is_missing, says_safe

MAX_CHARACTERS = 100_000  # of any text of a row
_SHOWN_CHARACTERS = 200  # kept of a malformed instruction
_MOST_COLUMNS = 500  # names that are remembered; JSONL can have others in every row
# Rows that `check` reads; up to _SEARCHED_ROWS until it finds what it needs, for at most _PROBE_S seconds.
_PROBED_ROWS = 200
_SEARCHED_ROWS = 10_000
_PROBE_S = 20.0


@dataclass(frozen=True)
class _Part:
    """A file or data set of a source.

    `key` does not change if the source moves; each `rows(columns)` call rereads it.
    """

    name: str
    key: str
    rows: Callable[[Container[str] | None], Iterable[dict | BadRow]]


def check(source: Source, needs: Collection[str] = ()) -> Counts:
    """Read the first rows as the run will: the source is readable, and some of them can be used.

    needs: responses (`safe_response`, `unsafe_response`) that one of them must have. Returns the counts of
    the rows read. Raises UserError, one sentence.
    """
    counts, lacking, started = Counts(), set(needs), time.monotonic()
    for row in read(source, counts):
        if row["status"] == OK:
            lacking -= {need for need in lacking if row[need]}
        enough = counts.ok > 0 and not lacking and counts.read >= _PROBED_ROWS
        if enough or counts.read >= _SEARCHED_ROWS or time.monotonic() - started > _PROBE_S:
            break
    if not counts.ok:
        raise UserError(
            f"{source.path}: none of its first {counts.read} rows can be used ({counts.why()}); check its"
            f" format{_left_out(counts, ', and name the columns as columns: {instruction: NAME}')}"
        )
    for need in sorted(lacking):
        kinds = [("a safe", counts.safe), ("an unsafe", counts.unsafe)]
        (kind, _), (other, count) = kinds if need == "safe_response" else kinds[::-1]
        raise NoResponse(
            f"{source.path}: none of its first {counts.read} rows has {kind} response"
            f"{f' ({other} one: {count:,})' if count else ''}; name the column that holds it as"
            f" columns.{need}, or take another source{_left_out(counts)}"
        )
    return counts


class NoResponse(UserError):
    """A source none of whose rows has a response that is needed."""


def _left_out(counts: Counts, remedy: str = "") -> str:
    left_out = counts.left_out()
    return f" ({'; '.join(left_out)}){remedy if counts.unused else ''}" if left_out else ""


def read(source: Source, counts: Counts | None = None) -> Iterator[dict]:
    """Rows of `INSTRUCTIONS`, ok or failed, until the source ends or `source.limit` distinct instructions are
    ok.

    Streams: memory holds one batch and about 30 bytes per distinct instruction (and a whole `.json` file).
             `counts` is updated as rows are read. Raises UserError at once if the source cannot be found or
             its columns are of no known shape; also later, if a file is unreadable.
    """
    counts = counts if counts is not None else Counts()
    counts.source = source.path
    parts = _parts(source, counts)
    shape, names = _shape(source, parts)
    return _rows(parts, shape, names, source.limit, counts)


def well_formed(source: Source | None, counts: Counts | None = None) -> Iterator[dict]:
    """The ok rows of `read`; no rows if there is no source."""
    return (row for row in (read(source, counts) if source else ()) if row["status"] != FAILED)


class HasId(Protocol):
    """What `records` makes of a row."""

    @property
    def id(self) -> str: ...


Record = TypeVar("Record", bound=HasId)


def records(source: Source, counts: Counts, made: Callable[[dict[str, Any]], Record]) -> Iterator[Record]:
    """The rows of a source that holds more than instructions, each as `made` makes it. Fills `counts`.

    made: from a row by the keys of the source's `columns`; raises BadContent if the row is malformed. A
    record whose `id` has been read before counts as a repetition. Raises UserError like `read`.
    """
    seen: set[str] = set()
    for row in _by_columns(source, counts):
        try:
            found = row if isinstance(row, str) else made(row)
        except BadContent as e:
            found = str(e)
        if isinstance(found, str):
            counts.spoil(found)
        elif found.id in seen:
            counts.duplicates += 1
        else:
            seen.add(found.id)
            counts.ok += 1
            yield found
            if counts.ok == source.limit:
                return


def _by_columns(source: Source, counts: Counts) -> Iterator[dict[str, Any] | str]:
    """Every row by the keys of the source's `columns`, as it stands; why instead, if it cannot be read."""
    counts.source = source.path
    parts = _parts(source, counts)
    shape, names = _shape(source, parts)
    renamed = shape.renamed or {}
    counts.unused = sorted(names - set(renamed.values()))
    for part in parts:
        for content in part.rows(shape.columns):
            counts.read += 1
            if isinstance(content, BadRow):
                yield content.reason
            else:
                yield {own: content.get(column) for own, column in renamed.items()}


def instruction_id(instruction: str) -> str:
    """128 bits of a hash of the text, as hex; Unicode-normalized, without surrounding white space."""
    return _digest(instruction).hex()


def _digest(instruction: str) -> bytes:
    text = unicodedata.normalize("NFC", instruction.strip())
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"instruction").digest()


def _parts(source: Source, counts: Counts) -> list[_Part]:
    scheme, _, name = source.path.partition(":")
    if scheme == "hub":
        from pipeline.sources import hub

        return [_Part(source.path, f"{source.path}/{source.split}", hub.rows(source, name))]
    if scheme == "toy":
        from pipeline.toy import world

        files.check_whole(source.path, source.split, source.config, counts.notes)
        return [_Part(source.path, source.path, lambda _columns: world.rows(name))]
    found = files.find(source.path, source.split, source.config, counts.notes)
    return [_Part(file.name, file.key, file.rows) for file in found]


def _shape(source: Source, parts: list[_Part]) -> tuple[Shape, set[str]]:
    """How the source is read, by the columns of its first rows, and these columns."""
    names: set[str] = set()
    bad: Counter[str] = Counter()
    readable = 0
    for row in islice((row for part in parts for row in part.rows(None)), _PROBED_ROWS):
        if isinstance(row, BadRow):
            bad[row.reason] += 1
        else:
            readable += 1
            names.update(row)
    if not readable and not bad:
        raise UserError(f"{source.path}: is empty; an instruction source needs at least one row")
    if not readable:
        unreadable = Counts(reasons=bad)
        raise UserError(
            f"{source.path}: none of its first {bad.total()} rows can be read ({unreadable.why()}); check its"
            " format"
        )
    return recognize(names, source.columns, source.path), names


def _rows(
    parts: list[_Part], shape: Shape, seen: set[str], limit: int | None, counts: Counts
) -> Iterator[dict]:
    ids, used, known = IdSet(), set[str](), -1
    for part in parts:
        for number, content in enumerate(part.rows(shape.columns), start=1):
            counts.read += 1
            notes: Counter[str] = Counter()
            if isinstance(content, dict) and len(seen) < _MOST_COLUMNS:
                seen.update(content)
            made = _fields(content, shape, notes, used)
            if len(seen) + len(used) > known:
                known = len(seen) + len(used)
                counts.unused = sorted(name for name in seen - used if name.strip())
            if isinstance(made, str):
                counts.spoil(made)
                yield _failed(part, number, made, _raw(content, shape))
                continue
            digest = _digest(made.instruction)
            if not ids.add(digest):
                counts.duplicates += 1
                continue
            counts.ok += 1
            counts.safe += made.safe_response is not None
            counts.unsafe += made.unsafe_response is not None
            counts.notes.update(notes.keys())
            yield _row(digest.hex(), f"{part.name}#{number}", made, OK, None)
            if counts.ok == limit:
                return


def _fields(content: dict | BadRow, shape: Shape, notes: Counter[str], used: set[str]) -> Fields | str:
    """The row's content, checked, or why it is malformed."""
    if isinstance(content, BadRow):
        return content.reason
    try:
        return _checked(shape.fields(content, notes, used))
    except BadContent as e:
        return str(e)


def _row(id: str, source: str, fields: Fields, status: str, error: str | None) -> dict:
    return {
        "id": id,
        "instruction_id": id,
        "sample": 0,
        **vars(fields),
        "source": source,
        "status": status,
        "error": error,
    }


def _failed(part: _Part, number: int, reason: str, raw: bytes) -> dict:
    """A malformed row.

    Its id also hashes its position: equal malformed rows at different positions differ.
    """
    id = hashlib.blake2b(
        f"{part.key}#{number}\n".encode() + raw, digest_size=16, person=b"malformed"
    ).hexdigest()
    shown = raw[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")[:_SHOWN_CHARACTERS]
    return _row(id, f"{part.name}#{number}", Fields(shown), FAILED, reason)


def _raw(content: dict | BadRow, shape: Shape) -> bytes:
    """The readable part of a malformed row's instruction."""
    if isinstance(content, BadRow):
        return content.raw
    try:
        text = shape.fields(content, Counter(), set()).instruction
    except BadContent:
        return b""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def _checked(found: Fields) -> Fields:
    """The row's content with all texts validated. Raises BadContent with the first error."""
    unsafe = (
        _optional("unsafe_response", response)
        for response in found.unsafe_responses or [found.unsafe_response]
    )
    return Fields(
        text_of("instruction", found.instruction),
        _optional("safe_response", found.safe_response),
        _optional("unsafe_response", found.unsafe_response),
        _category(found.category),
        [response for response in unsafe if response is not None],
    )


def _optional(name: str, value: Any) -> str | None:
    """An optional response: null, NaN and empty text mean that the source has none."""
    return None if is_missing(value) else text_of(name, value)


def text_of(name: str, value: Any) -> str:
    """A text of a row, checked. Raises BadContent for one that is missing, too long or not valid UTF-8."""
    value = decoded(name, value)
    if value is None or (is_missing(value) and not isinstance(value, str)):
        raise BadContent(f"{name} is null")
    if not isinstance(value, str):
        raise BadContent(f"{name} is not a string but {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise BadContent(f"{name} is too long: {len(value)} characters, of at most {MAX_CHARACTERS}")
    if is_missing(value):
        raise BadContent(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        # Readers keep a byte that is not UTF-8 as one of these; a JSON file can name the others.
        is_byte = "\udc80" <= value[e.start] <= "\udcff"
        raise BadContent(
            f"{name} is not valid UTF-8" if is_byte else f"{name} has half of a surrogate pair"
        ) from None
    return value


def _category(value: Any) -> str | None:
    """One category: a scalar, the first of a list, or the first key that is true in a mapping of flags."""
    if isinstance(value, dict):
        value = next((name for name, flag in value.items() if _is_set(flag)), None)
    if isinstance(value, list):
        value = value[0] if value else None
    if is_missing(value) or isinstance(value, dict | list):
        return None
    try:
        return _optional("category", value if isinstance(value, str | bytes) else str(value))
    except (OverflowError, ValueError) as e:  # such as a time that Python has no year for
        raise BadContent(f"category cannot be written as text ({type(e).__name__})") from None


def _is_set(flag: Any) -> bool:
    try:
        return says_safe("category", flag, True) is True
    except BadContent:
        return False


def repeated(source: Iterable[dict], samples: int) -> Iterator[dict]:
    """Each instruction `samples` times, each with its own id; a malformed one once."""
    for row in source:
        copies = 1 if row["status"] == FAILED else samples
        for sample in range(copies):
            yield (
                row if samples == 1 else {**row, "id": f"{row['instruction_id']}-{sample}", "sample": sample}
            )
