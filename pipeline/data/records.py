"""JSON files of a run's state, each with a checksum, so that a damaged one is refused; and logs in JSONL."""

import json
from hashlib import blake2b

from pipeline.data import storage
from pipeline.errors import UserError

_CHECKSUM = "checksum"


def write(path: str, facts: dict) -> None:
    """Write facts atomically, with their checksum."""
    storage.write_text(path, _text(facts))


def create(path: str, facts: dict) -> bool:
    """Write facts as a new file; False if there is one."""
    return storage.create(path, _text(facts)) is not None


def read(path: str) -> dict | None:
    """The facts that `write` was given; None if there is no such file.

    Files of older versions have no checksum and are only parsed. Raises UserError if the file is damaged.
    """
    try:
        content = storage.read_bytes(path)
    except FileNotFoundError:
        return None
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError):
        raise _damaged(path) from None
    if not isinstance(facts, dict):
        raise _damaged(path)
    if not facts:
        return facts
    name, last = facts.popitem()
    is_checksum = last == _checksum(facts)
    if (name == _CHECKSUM) != is_checksum:  # other facts, or a damaged name
        raise _damaged(path)
    return facts if is_checksum else {**facts, name: last}


def lines(path: str) -> list[dict]:
    """The objects of a JSONL file; none if it does not exist. Raises UserError for a damaged line."""
    found = []
    content = storage.read_bytes(path) if storage.exists(path) else b""
    for number, text in enumerate(content.splitlines(), 1):
        if text.strip():
            try:
                found.append(json.loads(text))
            except (ValueError, RecursionError):
                found.append(None)
            if not isinstance(found[-1], dict):
                raise UserError(f"{path}: line {number} is corrupt; restore or delete it")
    return found


def _text(facts: dict) -> str:
    return json.dumps({**facts, _CHECKSUM: _checksum(facts)}, indent=1)


def _checksum(facts: dict) -> str:
    """BLAKE2b digest of the facts as JSON gives them back: keys are strings, tuples are lists."""
    canonical = json.dumps(json.loads(json.dumps(facts)), sort_keys=True)
    return blake2b(canonical.encode(), digest_size=16).hexdigest()


def _damaged(path: str) -> UserError:
    return UserError(
        f"{path}: is corrupt or was changed; restore it, or make the output again with --overwrite"
    )
