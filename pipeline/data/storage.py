"""Small files on local disk, NFS or an object store: one set of calls for all, through `pyarrow.fs`.

A path is what a user writes: `runs/a`, `/mnt/runs/a`, `s3://bucket/runs/a`. Writes are atomic: a reader sees
the complete old file or the complete new one.
"""

import errno
import hashlib
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.data import conditional
from pipeline.errors import RunFailed, UserError

CLAIM_S = 15.0  # a claim that is this old belongs to a dead process
CLAIM_POLL_S = 0.3
_GCS_RETRY_S = 60
CONDITIONS, CLAIMS = "conditions", "claims"  # how files are created in an object store
INSTALL = "use `pip install 'setbacks[object-stores]'`"
_REMOVALS, _REMOVAL_S = 10, 0.3  # tries to delete a directory, and the time between them


def is_local(path: str) -> bool:
    """Whether a path is on a mounted file system, not in an object store."""
    return "://" not in path


def absolute(path: str) -> str:
    """A path that means the same in every process of the cluster."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def join(path: str, *parts: str) -> str:
    """A path below another one."""
    return "/".join([path.rstrip("/"), *parts])


def name(path: str) -> str:
    """The last part of a path."""
    return path.rstrip("/").rpartition("/")[2]


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path and the path within it. Raises UserError for an unknown scheme."""
    if is_local(path):
        return pafs.LocalFileSystem(), absolute(path)
    if path.startswith(("gs://", "gcs://")) and "?" not in path:
        path = f"{path}?retry_limit_seconds={_GCS_RETRY_S}"  # Arrow's own limit is a quarter of an hour
    try:
        return pafs.FileSystem.from_uri(path)
    except (ValueError, OSError):  # not one of Arrow's own: hf://, az:// … come through fsspec
        import fsspec

        try:
            fs, inner = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError, OSError) as e:
            told, *_ = str(e).split("\n", 1)
            raise UserError(f"{path}: cannot be opened ({told})") from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), inner


def exists(path: str) -> bool:
    """Whether there is a file or directory at a path."""
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pafs.FileType.NotFound


def read_bytes(path: str) -> bytes:
    """Raises FileNotFoundError if the file does not exist."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as f:
        return f.read()


def read_text(path: str) -> str:
    """Raises FileNotFoundError if the file does not exist."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str, content: bytes | pa.Buffer) -> None:
    """Write a file atomically. Raises OSError (disk full, no permission …) and then leaves nothing behind."""
    fs, inner = filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    if not isinstance(fs, pafs.LocalFileSystem):  # an object becomes visible when its upload is complete
        with fs.open_output_stream(inner) as f:
            f.write(content)
        return
    # Two processes or threads may write the same file at once, so each uses its own temporary file.
    temporary = f"{inner}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, inner)
    except BaseException as e:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(e, OSError):
            e.filename, e.filename2 = inner, None  # the caller does not know the temporary file
        raise


def write_text(path: str, text: str) -> None:
    """Write a text file atomically, in UTF-8. Raises OSError as `write_bytes` does."""
    write_bytes(path, text.encode())


class Owned:
    """A file that this process has created, and that others only take away from it."""

    def __init__(self, path: str, version: conditional.Version | None = None):
        self.path, self._version = path, version
        self._sent: list[str] = []  # texts that may have been written, although their writing failed

    def write(self, text: str) -> None:
        """Write the file atomically. Raises OSError, and Replaced if somebody else has written it, on storage
        that can tell (object stores, through obstore)."""
        if self._version is None:
            write_text(self.path, text)
        else:
            try:
                self._version = conditional.replace(self.path, text, self._version, self._sent)
            except OSError:
                self._sent.append(text)
                raise
            self._sent.clear()


def create(path: str, text: str) -> Owned | None:
    """Create a file atomically; None if it exists. Of several simultaneous callers, exactly one gets it.

    Raises OSError.
    """
    if not is_local(path):
        version = conditional.create(path, text)
        if version is not None:
            return Owned(path, version) if version is not False else None
    return Owned(path) if _create(path, text) else None


def agree(run_dir: str) -> None:
    """Make every attempt on a run directory in an object store create files in the same way.

    A process that writes on a condition and one that makes claims would not see each other. The first attempt
    records what it can, by claims, which all can make. Raises UserError if this process cannot write on a
    condition, and the first one could; OSError.
    """
    if is_local(run_dir):
        return
    record = join(run_dir, ".state", "created-by")
    if not exists(record):
        _create_by_claim(record, CONDITIONS if conditional.possible(record) else CLAIMS)
    if read_text(record) != CONDITIONS:
        conditional.leave_to_claims(run_dir)
    elif not conditional.possible(record):
        lacks = find_spec("obstore") is None
        why = "obstore is not installed" if lacks else "the store has refused one, or its keys were not found"
        raise UserError(
            f"run_dir = {run_dir}: its first attempt wrote on conditions, and this process cannot ({why});"
            f" {INSTALL if lacks else 'run it again, with the keys and the network of the first'}, or choose"
            " another run_dir"
        )


def _create(path: str, text: str) -> bool:
    if not is_local(path):
        return _create_by_claim(path, text)
    own = f"{absolute(path)}.{secrets.token_hex(8)}"
    write_text(own, text)
    try:
        os.link(own, absolute(path))  # fails if the file exists, also on NFS; readers never see half of it
        return True
    except FileExistsError:
        return False
    except OSError:
        return _create_by_claim(path, text)  # a mount without hard links, such as a mounted bucket
    finally:
        with suppress(OSError):
            os.unlink(own)


def _create_by_claim(path: str, text: str) -> bool:
    """`create` without exclusive creation, if a listing shows all earlier writes (object stores).

    1. A process writes a claim next to the file, then lists all claims: of any two processes, at least one
       sees the other.
    2. A process that sees a smaller claim withdraws its own and waits.
    3. A process that sees only larger claims waits until they are gone.
    4. A process that sees no other claim creates the file, and all others find it.

    A claim older than CLAIM_S counts as dead. If its writer was only delayed that long just before it created
    the file, two processes create it; the one whose text was overwritten notices when it reads the file
    again.
    """
    directory, name = path.rsplit("/", 1)
    since: dict[str, float] = {}  # when another process's claim was first seen
    mine = None
    try:
        while True:
            if mine is None:
                mine = join(directory, f"{name}.claim-{secrets.token_hex(8)}")
                write_text(mine, "claimed")
            there = sizes(directory)
            if name in there:
                return False
            now = time.monotonic()
            claims = [join(directory, claim) for claim in there if claim.startswith(f"{name}.claim-")]
            living = [
                claim for claim in claims if claim == mine or now - since.setdefault(claim, now) < CLAIM_S
            ]
            if living == [mine]:
                write_text(path, text)
                return True
            if not living:
                mine = None  # withdrawn for a claim whose writer has died since
                continue
            if mine in living and mine != min(living):
                remove(mine)
            time.sleep(CLAIM_POLL_S)
    finally:
        if mine is not None:
            remove(mine)


def digest(path: str) -> str:
    """A hash of a file's bytes."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as f:
        hash = hashlib.blake2b(digest_size=16)
        while chunk := f.read(2**20):
            hash.update(chunk)
        return hash.hexdigest()


def sizes(path: str) -> dict[str, int]:
    """Name and bytes of the files directly in a directory; empty if it does not exist."""
    return {f.base_name: f.size for f in _listed(path) if f.type == pafs.FileType.File}


def files(path: str, suffix: str = "") -> list[str]:
    """The files directly in a directory, sorted, as paths of its file system; empty if it does not exist."""
    return sorted(f.path for f in _listed(path) if f.type == pafs.FileType.File and f.path.endswith(suffix))


def directories(path: str) -> list[str]:
    """Names of the directories directly in a directory, sorted; empty if it does not exist."""
    return sorted(f.base_name for f in _listed(path) if f.type == pafs.FileType.Directory)


def _listed(path: str) -> list[pafs.FileInfo]:
    fs, inner = filesystem(path)
    selector = pafs.FileSelector(inner, allow_not_found=True)
    try:
        return fs.get_file_info(selector)
    except FileNotFoundError:
        # Arrow lists, finds nothing, then checks that the directory exists. If the directory was created in
        # between, Arrow raises this error.
        return fs.get_file_info(selector)


def copy(source: str, target: str) -> str:
    """Copy a directory and its content, from any storage to any; returns `target`. Raises OSError."""
    (source_fs, source_inner), (fs, inner) = filesystem(source), filesystem(target)
    fs.create_dir(inner, recursive=True)
    pafs.copy_files(source_inner, inner, source_filesystem=source_fs, destination_filesystem=fs)
    return target


def remove(path: str) -> None:
    """Delete a file or a directory and its content; a missing path is no error.

    Raises OSError. A process that is about to end may still write into the directory, such as Ray Train's
    controller beside its checkpoints: a directory that did not stay empty is deleted again.
    """
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        for left in reversed(range(_REMOVALS)):
            try:
                return fs.delete_dir(inner)
            except FileNotFoundError:
                return None
            except OSError as e:
                if not left or e.errno != errno.ENOTEMPTY:
                    raise
            time.sleep(_REMOVAL_S)
    elif kind == pafs.FileType.File:
        fs.delete_file(inner)


def move(source: str, target: str) -> None:
    """Rename a file or directory within one file system (on an object store: copy, then delete).

    A file is synced to disk before the rename, so a power failure never leaves a name with partial content.
    """
    fs, inner = filesystem(source)
    _, target_inner = filesystem(target)
    fs.create_dir(target_inner.rsplit("/", 1)[0], recursive=True)
    if is_local(source) and os.path.isfile(inner):
        with open(inner, "rb") as f:
            os.fsync(f.fileno())
    fs.move(inner, target_inner)


def free_bytes(path: str) -> int | None:
    """Free space on the disk of `path`, which need not exist; None if unknown (object stores)."""
    if not is_local(path):
        return None
    place = Path(absolute(path))
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def room_for(path: str) -> Iterator[None]:
    """Wraps writes to `path`: a full disk becomes a readable RunFailed."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunFailed(f"{path}: the disk is full; free some space and rerun the command to resume") from e
