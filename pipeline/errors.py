"""Errors that a user can fix. Each is one sentence: the field or file, the value found, and the remedy."""

import errno
import re

_REMEDIES = dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or name another place"
)
_REMEDIES |= dict.fromkeys(
    (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP),
    "name another place",
)
_REMEDIES |= dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or name another place")
# Of pyarrow, whose errors do not name the file apart.
_OF_STORE = re.compile(r"AWS Error|google::cloud|Azure")
_LONGEST = 300
_ADDED = re.compile(r"^\[Errno \d+\] |\.? Detail: .*$")


class UserError(Exception):
    """Wrong usage, configuration or input, found before any engine starts. Exit code 2."""


class OutOfReach(UserError):
    """Input on a server that did not answer. `plan` works without it, `run` does not."""


class RunFailed(Exception):
    """The run cannot continue (an engine does not start, a trainer gave up). Exit code 1."""


class RowFailed(Exception):
    """One row cannot be completed (over-long prompt, endpoint error after retries).

    The row is kept as failed; the run continues.
    """


class NoAnswer(RowFailed):
    """The model thought up to its last token, so it answered nothing."""


def of_place(e: OSError) -> str | None:
    """A sentence for a place that cannot be read or written; None if that is not the error."""
    if e.errno is None and _OF_STORE.search(str(e)):
        told = str(e).partition("\n")[0][:_LONGEST]
        return f"an object store cannot be used ({told}); check its address, the network and credentials"
    if e.errno not in _REMEDIES:
        return None
    told = f"{e.filename}: {e.strerror}" if e.filename else _ADDED.sub("", str(e))
    return f"{told}; {_REMEDIES[e.errno]}"
