"""Copies of model directories on the node's own disk, for models on a network file system.

Every engine and every trainer that starts reads all weights. If $SETBACKS_NODE_CACHE names a directory on the
node's own disk, the first process of a node copies the files there, the others wait for it, and all of them
read the copy. For models of a hub there is HF_HOME, which may be on the node's own disk, too.

CACHE/models-UID/NAME-KEY/       a whole copy: it appears and disappears at once
CACHE/models-UID/NAME-KEY.part/  a copy that is being made or deleted, or was when its process died
CACHE/models-UID/NAME-KEY.lock   shared by the processes that use the copy; held alone by one that makes or
                                 deletes it

The key is a digest of the path and of the names, sizes and times of the files: another model at the same path
is another copy. A copy is deleted if another one needs its room and no process uses it, least recently used
first. Locks are the kernel's, so a process that dies leaves none.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

CACHE = "SETBACKS_NODE_CACHE"
SPARE = (
    0.15  # of the disk stays free: Kubernetes removes pods from nodes whose disk is fuller than 85 to 90 %
)
GIB = 2**30
_UNREAD = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.gguf", "*.onnx", "*.msgpack")
WAIT_S = 3600.0  # for a process that makes the copy
_POLL_S = 0.2
_locks: dict[Path, int] = {}  # of the copies that this process uses, until it ends


def read_from(model_dir: str, tell: Callable[[str], object]) -> str:
    """Where this process reads a model from: its copy on the node, or the directory or hub id itself.

    The latter without a cache, and if no copy can be made, such as on a full disk: `tell` gets the reason.
    """
    cache = os.environ.get(CACHE)
    if not cache or not os.path.isdir(model_dir):
        return model_dir
    try:
        return str(_copy_of(Path(os.path.abspath(model_dir)), _own(Path(cache))))
    except OSError as e:
        tell(f"{CACHE} = {cache}: the original of {model_dir} is read ({e.strerror or e})")
        return model_dir


def _own(cache: Path) -> Path:
    """This user's part of a cache: nobody else can put a model there. Raises OSError."""
    place = cache / f"models-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    if place.is_symlink() or (found := place.stat()).st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, f"{place} can be written by others")
    return place


def _copy_of(model: Path, cache: Path) -> Path:
    """The whole copy of a model, made if there is none. Raises OSError."""
    files = _files(model)
    place = cache / f"{model.name}-{_key(model, files)}"
    if place in _locks:
        if _is_whole(place, files):
            return place
        raise OSError(errno.ENOENT, f"files of {place}, which this process reads, are gone")
    lock, end = _opened(place), time.monotonic() + WAIT_S
    try:
        while True:
            if _taken(lock, fcntl.LOCK_SH):
                if _is_whole(place, files):
                    os.utime(place)
                    _locks.setdefault(place, lock)
                    return place
                # The share is given back in between: somebody else may make the copy, or delete it again.
                if _taken(lock, fcntl.LOCK_EX):
                    if not _is_whole(place, files):
                        _make(model, files, place)
                    continue
            # Neither lock is waited for alone: who has made the copy keeps a share of it to the end.
            if time.monotonic() > end:
                raise OSError(errno.ETIMEDOUT, f"{place} was locked for {WAIT_S / 60:.0f} minutes")
            time.sleep(_POLL_S)
    except BaseException:
        os.close(lock)
        raise


def _taken(lock: int, kind: int) -> bool:
    """Take a lock, or give back what was held of it if somebody else has it."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_UN)
        return False
    return True


def _is_whole(place: Path, files: dict[str, os.stat_result]) -> bool:
    """Whether a copy has all files, with their sizes: a cleaner of old files may have been at it."""
    try:
        return all((place / name).stat().st_size == about.st_size for name, about in files.items())
    except OSError:
        return False


def _make(model: Path, files: dict[str, os.stat_result], place: Path) -> None:
    """Copy the files. The caller holds the lock. Raises OSError, and then leaves no copy."""
    part = place.with_name(f"{place.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(place, ignore_errors=True)  # not whole
    _make_room(sum(about.st_size for about in files.values()), place.parent)
    try:
        for name in files:
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, part / name)
            _sync(part / name)
        if _key(model, _files(model)) != _key(model, files) or not _is_whole(part, files):
            raise OSError(errno.EIO, f"{model} changed while it was copied")
        part.rename(place)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _make_room(needed: int, cache: Path) -> None:
    """Delete copies that no process uses until there is room. Raises OSError if that is not enough."""
    copies = sorted((_used_last(place), _size(place), place) for place in cache.iterdir() if place.is_dir())
    total, _, free = shutil.disk_usage(cache)
    left = free - SPARE * total
    # If all copies together are too small, deleting them would cost others their copies in vain.
    if needed <= left + sum(size for _, size, _ in copies):
        for _, _, place in copies:
            if needed <= left:
                break
            _delete(place)
            left = shutil.disk_usage(cache).free - SPARE * total
    if needed > left:
        raise OSError(
            errno.ENOSPC,
            f"a copy takes {needed / GIB:.1f} GiB, and {max(0, left) / GIB:.1f} GiB of the disk may be used",
        )


def _used_last(place: Path) -> float:
    with suppress(FileNotFoundError):  # renamed or deleted in between
        return place.stat().st_mtime
    return 0.0


def _size(place: Path) -> int:
    size = 0
    for directory, _, names in os.walk(place):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(directory, name)).st_size
    return size


def _delete(place: Path) -> None:
    """Delete a copy, whole or not, unless a process uses or makes it."""
    lock = _opened(place.with_name(place.name.removesuffix(".part")))
    try:
        with suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part = place.with_name(f"{place.name.removesuffix('.part')}.part")
            if place != part:
                # Under its own name, what is left by a process that dies here would look like a copy.
                shutil.rmtree(part, ignore_errors=True)
                place.rename(part)
            shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(lock)


def _opened(place: Path) -> int:
    """A handle of a copy's lock; closing it gives the lock back."""
    return os.open(f"{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)


def _files(model: Path) -> dict[str, os.stat_result]:
    """The files of a model that engines or trainers may read, by their path in it. Raises OSError."""
    found: dict[str, os.stat_result] = {}
    for directory, below, names in os.walk(model, onerror=_raise):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in below:
            if os.path.islink(os.path.join(directory, name)):
                raise OSError(errno.ELOOP, f"{Path(directory, name)} is a link to a directory")
        for name in sorted(names):
            path = Path(directory, name)
            if not any(path.match(ending) for ending in _UNREAD):
                found[str(path.relative_to(model))] = path.stat()
    return found


def _raise(error: OSError) -> None:
    raise error


def _key(model: Path, files: dict[str, os.stat_result]) -> str:
    told = [str(model), *((name, about.st_size, about.st_mtime_ns) for name, about in files.items())]
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()


def _sync(path: Path) -> None:
    """Write a file to its disk, so that no power failure leaves a whole copy with half of a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
