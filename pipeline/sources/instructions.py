"""Any instruction source as rows of one shape (`data.schema.INSTRUCTIONS`), one at a time.

    files     Parquet, JSONL (.jsonl, .ndjson), JSON or CSV; a file, directory or glob; local, s3://, gs://,
              hf://; .gz, .zst, …
    hub:NAME  a data set through `datasets`, streamed
    toy:SPLIT the embedded toy world

An instruction's id is a hash of its text alone, so the same instruction has the same id in every file. The
first row of an id is yielded; later ones count as duplicates. A malformed row never ends the read: it is
yielded as a failed row with its reason.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pipeline.data.ids import IdSet
from pipeline.errors import UserError
from pipeline.schema import FAILED, OK
from pipeline.settings.base import Source
from pipeline.settings.shown import shown
from pipeline.sources import files
from pipeline.sources.files import BadRow
from pipeline.sources.shapes import BadContent, Fields, Shape, recognize

MAX_CHARACTERS = 100_000  # of any text of a row
_SHOWN_CHARACTERS = 200  # kept of a malformed instruction
_PROBED_ROWS = 100
_SEARCHED_ROWS = 10_000  # for an unsafe response


@dataclass
class Counts:
    """Counts of the rows read: read = ok + duplicates + malformed."""

    read: int = 0
    ok: int = 0
    duplicates: int = 0
    malformed: int = 0


@dataclass(frozen=True)
class _Part:
    """A file or data set of a source.

    `key` does not change if the source moves; each `rows(columns)` call rereads it.
    """

    name: str
    key: str
    rows: Callable[[Collection[str] | None], Iterable[dict | BadRow]]


def check(source: Source) -> None:
    """The cheap checks of `read`: the source is readable, not empty, and starts with rows of a known shape.

    Raises UserError, one sentence.
    """
    _shape(source, _parts(source))


def check_unsafe(source: Source) -> None:
    """Check that one of the first rows has an unsafe response, for methods that need it.

    Stops at the first such row.

    Raises UserError, one sentence.
    """
    searched = 0
    for row in islice(read(source), _SEARCHED_ROWS):
        if row["unsafe_responses"]:
            return
        searched += 1
    raise UserError(
        f"{source.path}: none of its first {searched} rows has an unsafe response; name the column that holds"
        " it as columns.unsafe_response, or take another source"
    )


def read(source: Source, counts: Counts | None = None) -> Iterator[dict]:
    """Rows of `INSTRUCTIONS`, ok or failed, until the source ends or `source.limit` distinct instructions are
    ok.

    Streams: memory holds one batch and about 30 bytes per distinct instruction (and a whole `.json` file).
             `counts` is updated as rows are read. Raises UserError as `check` does, at once; also later, if a
             file is unreadable.
    """
    parts = _parts(source)
    return _rows(parts, _shape(source, parts), source.limit, counts if counts is not None else Counts())


def well_formed(source: Source | None) -> Iterator[dict]:
    """The ok rows of `read`; no rows if there is no source."""
    return (row for row in (read(source) if source else ()) if row["status"] != FAILED)


def instruction_id(instruction: str) -> str:
    """128 bits of a hash of the text, as hex; Unicode-normalized, without surrounding white space."""
    return _digest(instruction).hex()


def _digest(instruction: str) -> bytes:
    text = unicodedata.normalize("NFC", instruction.strip())
    return hashlib.blake2b(text.encode(), digest_size=16, person=b"instruction").digest()


def _parts(source: Source) -> list[_Part]:
    scheme, _, name = source.path.partition(":")
    if scheme == "hub":
        return [_hub(source, name)]
    if scheme == "toy":
        from pipeline.toy import world

        return [_Part(source.path, source.path, lambda _columns: world.rows(name))]
    return [_Part(file.name, file.key, file.rows) for file in files.find(source.path)]


def _hub(source: Source, name: str) -> _Part:
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # it prints every retry; the exception has the details
    try:
        dataset = datasets.load_dataset(name, split=source.split, streaming=True)
    except Exception as e:  # the hub client raises a dozen kinds, network errors among them
        raise UserError(
            f"{source.path}: split {source.split} cannot be loaded from the hub ({shown(e)})"
        ) from None

    def rows(columns: Collection[str] | None) -> Iterator[dict]:
        wanted = columns and [c for c in dataset.column_names or () if c in columns]
        try:
            yield from dataset.select_columns(wanted) if wanted else dataset
        except Exception as e:
            raise UserError(f"{source.path}: the hub's data cannot be read ({shown(e)})") from None

    return _Part(source.path, f"{source.path}/{source.split}", rows)


def _shape(source: Source, parts: list[_Part]) -> Shape:
    """The source's shape, detected from the columns of its first rows."""
    names: set[str] = set()
    bad: list[str] = []
    readable = 0
    for row in islice((row for part in parts for row in part.rows(None)), _PROBED_ROWS):
        if isinstance(row, BadRow):
            bad.append(row.reason)
        else:
            readable += 1
            names.update(row)
    if not readable and not bad:
        raise UserError(f"{source.path}: is empty; an instruction source needs at least one row")
    if not readable:
        raise UserError(
            f"{source.path}: none of its first {len(bad)} rows can be read ({bad[0]}); check its format"
        )
    return recognize(names, source.columns, source.path)


def _rows(parts: list[_Part], shape: Shape, limit: int | None, counts: Counts) -> Iterator[dict]:
    seen = IdSet()
    for part in parts:
        for number, content in enumerate(part.rows(shape.columns), start=1):
            counts.read += 1
            try:
                fields = _fields(content, shape)
            except BadContent as e:
                counts.malformed += 1
                yield _failed(part, number, str(e), _raw(content, shape))
                continue
            digest = _digest(fields.instruction)
            if not seen.add(digest):
                counts.duplicates += 1
                continue
            counts.ok += 1
            yield _row(digest.hex(), f"{part.name}#{number}", fields, OK, None)
            if counts.ok == limit:
                return


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
        text = shape.fields(content).instruction
    except BadContent:
        return b""
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def _fields(content: dict | BadRow, shape: Shape) -> Fields:
    """The row's content with all texts validated. Raises BadContent with the first error."""
    if isinstance(content, BadRow):
        raise BadContent(content.reason)
    found = shape.fields(content)
    unsafe = (
        _optional("unsafe_response", response)
        for response in found.unsafe_responses or [found.unsafe_response]
    )
    return Fields(
        _text("instruction", found.instruction),
        _optional("safe_response", found.safe_response),
        _optional("unsafe_response", found.unsafe_response),
        _category(found.category),
        [response for response in unsafe if response is not None],
    )


def _optional(name: str, value: Any) -> str | None:
    """An optional response: null and empty text mean that the source has none."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return _text(name, value)


def _text(name: str, value: Any) -> str:
    if value is None:
        raise BadContent(f"{name} is null")
    if not isinstance(value, str):
        raise BadContent(f"{name} is not a string but {type(value).__name__}")
    if len(value) > MAX_CHARACTERS:
        raise BadContent(f"{name} is longer than {MAX_CHARACTERS} characters ({len(value)})")
    if not value.strip():
        raise BadContent(f"{name} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadContent(f"{name} is not valid UTF-8") from None
    return value


def _category(value: Any) -> str | None:
    """One category: a text or number, the first of a list, or the first key that is true in a mapping of
    flags."""
    if isinstance(value, dict):
        value = next((name for name, flag in value.items() if flag is True), None)
    if isinstance(value, list):
        value = value[0] if value else None
    return _optional("category", str(value) if isinstance(value, int | float) else value)


def repeated(source: Iterable[dict], samples: int) -> Iterator[dict]:
    """Each instruction `samples` times, each with its own id; a malformed one once."""
    for row in source:
        copies = 1 if row["status"] == FAILED else samples
        for sample in range(copies):
            yield (
                row if samples == 1 else {**row, "id": f"{row['instruction_id']}-{sample}", "sample": sample}
            )
