"""Writes to object stores on a condition, through obstore: create a file, or replace the version last seen.

The other modules go through `storage`, which falls back on a protocol of claims if a store cannot do this.
"""

import logging
import os
import secrets
from collections.abc import Collection
from typing import Any

from pipeline.errors import RunFailed

_log = logging.getLogger(__name__)
_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
Version = Any  # of a file, as the store names it; equal only for the same write


class Replaced(RunFailed):
    """Somebody else has written the file."""


def create(path: str, text: str) -> Version | bool | None:
    """Create a file: its version, or False if it exists; None if this store cannot create exclusively.

    Raises OSError.
    """
    store, key = _place(path)
    if store is None:
        return None
    from obstore import exceptions

    try:
        return store.put(key, text.encode(), mode="create")
    except exceptions.AlreadyExistsError:
        return _ours(store, key, text) or False  # a request may be sent again after its answer was lost
    except exceptions.BaseError as e:
        raise OSError(f"{path}: {type(e).__name__}") from None


def replace(path: str, text: str, version: Version, sent: Collection[str] = ()) -> Version:
    """Write a file that has this version; returns the new one. Raises Replaced, OSError.

    sent: texts of earlier calls that raised OSError, and may have been written all the same.
    """
    store, key = _place(path)
    from obstore import exceptions

    try:
        return store.put(key, text.encode(), mode=_told(version))
    except (exceptions.PreconditionError, exceptions.NotFoundError):
        if (mine := _ours(store, key, text)) is not None:
            return mine
        for former in sent:
            if (mine := _ours(store, key, former)) is not None:
                return replace(path, text, mine)
        raise Replaced(f"{path}: somebody else has written it") from None
    except exceptions.BaseError as e:
        raise OSError(f"{path}: {type(e).__name__}") from None


def _ours(store: Any, key: str, text: str) -> Version | None:
    """The version of a file if its content is this text, which nobody else writes. Raises OSError."""
    from obstore import exceptions

    try:
        found = store.get(key)
        same = bytes(found.bytes()) == text.encode()
    except (FileNotFoundError, exceptions.NotFoundError):
        return None
    except exceptions.BaseError as e:
        raise OSError(f"{key}: {type(e).__name__}") from None
    return found.meta if same else None


def _told(version: Version) -> dict:
    """A version as obstore takes it: without what the store does not name."""
    return {name: version[name] for name in ("e_tag", "version") if version[name] is not None}


def _place(path: str) -> tuple[Any, str]:
    """The store of a path, and the path within it; None as the store if it cannot write on a condition."""
    scheme, _, rest = path.partition("://")
    bucket, _, key = rest.partition("/")
    # Options of pyarrow, which obstore does not know, and keys that the two read differently.
    if scheme not in _SCHEMES or not key or "//" in rest or any(mark in rest for mark in "?%#"):
        return None, key
    if path.startswith(tuple(_by_claims)):
        return None, key
    return _store(f"{scheme}://{bucket}", key.rpartition("/")[0]), key


def possible(path: str) -> bool:
    """Whether this process can write a file on a condition. A store that has failed is tried once more."""
    if _place(path)[0] is None:
        _stores.pop("/".join(path.split("/", 3)[:3]), None)
    return _place(path)[0] is not None


def leave_to_claims(directory: str) -> None:
    """Write nothing in a directory on a condition, in this process: others cannot."""
    _by_claims.add(f"{directory.rstrip('/')}/")


_stores: dict[str, Any] = {}  # by bucket
_by_claims: set[str] = set()  # directories, each with a slash at its end


def _store(bucket: str, directory: str) -> Any:
    if bucket not in _stores:
        _stores[bucket] = _opened(bucket, directory)
    return _stores[bucket]


def _opened(bucket: str, directory: str) -> Any:
    try:
        import obstore
        from obstore.store import from_url
    except ImportError:
        return None
    http = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://")
    try:
        store = from_url(bucket, client_options={"allow_http": True} if http else {})
        return store if _honors_conditions(store, directory) else None
    except (obstore.exceptions.BaseError, NotImplementedError, ValueError) as e:
        # It may be that only pyarrow finds the keys.
        _log.warning("writes on a condition are off for %s: %s", bucket, type(e).__name__)
        return None


def _honors_conditions(store: Any, directory: str) -> bool:
    """Whether a store refuses to write what exists: there are servers that ignore the condition."""
    from obstore import exceptions

    key = f"{directory}/.probe-{secrets.token_hex(8)}".lstrip("/")
    first = store.put(key, b"1", mode="create")
    try:
        for mode in ("create", {"e_tag": '"00000000000000000000000000000000"'}):
            try:
                store.put(key, b"2", mode=mode)
            except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
                continue
            return False
        return first["e_tag"] is not None
    finally:
        store.delete(key)
