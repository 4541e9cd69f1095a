"""Small files on local disk, NFS or an object store: one set of calls for all, through `pyarrow.fs`.

A path is what a user writes: `runs/a`, `/mnt/runs/a`, `s3://bucket/runs/a`. Writes are atomic: a reader sees the old file or the
new one, whole.
"""

import errno
import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.errors import RunFailed, UserError


def is_local(path: str) -> bool:
    return "://" not in path


def absolute(path: str) -> str:
    """A path that means the same in every process of the cluster."""
    return os.path.abspath(os.path.expanduser(path)) if is_local(path) else path.rstrip("/")


def join(path: str, *parts: str) -> str:
    return "/".join([path.rstrip("/"), *parts])


def filesystem(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path and the path within it. Raises UserError for a scheme nobody knows."""
    if is_local(path):
        return pafs.LocalFileSystem(), absolute(path)
    try:
        return pafs.FileSystem.from_uri(path)
    except (ValueError, OSError):  # not one of Arrow's own: hf://, az:// … come through fsspec
        import fsspec

        try:
            fs, inner = fsspec.core.url_to_fs(path)
        except (ValueError, ImportError) as e:
            raise UserError(f"{path}: cannot be opened ({e})") from None
        return pafs.PyFileSystem(pafs.FSSpecHandler(fs)), inner


def exists(path: str) -> bool:
    fs, inner = filesystem(path)
    return fs.get_file_info(inner).type != pafs.FileType.NotFound


def read_bytes(path: str) -> bytes:
    """Raises FileNotFoundError where there is none."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as f:
        return f.read()


def read_text(path: str) -> str:
    """Raises FileNotFoundError where there is none."""
    return read_bytes(path).decode("utf-8")


def write_bytes(path: str, content: bytes | pa.Buffer) -> None:
    """Write a file whole or not at all. Raises OSError (disk full, no permission …) with nothing left behind."""
    fs, inner = filesystem(path)
    fs.create_dir(inner.rsplit("/", 1)[0], recursive=True)
    if not is_local(path):  # an object becomes visible when its upload is complete
        with fs.open_output_stream(inner) as f:
            f.write(content)
        return
    # Two processes, or two threads of one, may write the same file at once: each has a temporary file of its own.
    temporary = f"{inner}.{os.getpid()}-{threading.get_ident()}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, inner)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def write_text(path: str, text: str) -> None:
    write_bytes(path, text.encode())


def digest(path: str) -> str:
    """A hash of a file's bytes."""
    fs, inner = filesystem(path)
    with fs.open_input_stream(inner) as f:
        hash = hashlib.blake2b(digest_size=16)
        while chunk := f.read(2**20):
            hash.update(chunk)
        return hash.hexdigest()


def sizes(path: str) -> dict[str, int]:
    """Name and bytes of the files directly in a directory; empty where it does not exist."""
    fs, inner = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return {f.base_name: f.size for f in found if f.type == pafs.FileType.File}


def files(path: str, suffix: str = "") -> list[str]:
    """The files directly in a directory, sorted, as paths of its file system; empty where it does not exist."""
    fs, inner = filesystem(path)
    found = fs.get_file_info(pafs.FileSelector(inner, allow_not_found=True))
    return sorted(f.path for f in found if f.type == pafs.FileType.File and f.path.endswith(suffix))


def remove(path: str) -> None:
    """Delete a file or a directory with all it holds; nothing happens where there is none."""
    fs, inner = filesystem(path)
    kind = fs.get_file_info(inner).type
    if kind == pafs.FileType.Directory:
        fs.delete_dir(inner)
    elif kind == pafs.FileType.File:
        fs.delete_file(inner)


def move(source: str, target: str) -> None:
    """Rename a file or directory within one file system (on an object store: copy, then delete).

    What a file holds is on its disk before, so that after a power failure no name stands for less than was written.
    """
    fs, inner = filesystem(source)
    _, target_inner = filesystem(target)
    fs.create_dir(target_inner.rsplit("/", 1)[0], recursive=True)
    if is_local(source) and os.path.isfile(inner):
        with open(inner, "rb") as f:
            os.fsync(f.fileno())
    fs.move(inner, target_inner)


def free_bytes(path: str) -> int | None:
    """Free space where `path` is or will be; None where that cannot be known (object stores)."""
    if not is_local(path):
        return None
    place = Path(absolute(path))
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@contextmanager
def room_for(path: str) -> Iterator[None]:
    """Around the writing of `path`: a full disk becomes a sentence for whoever can make room. Raises RunFailed."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunFailed(f"{path}: the disk is full; make room there, and the same command goes on from what is committed") from e
