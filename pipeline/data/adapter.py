"""A LoRA adapter as two files on any storage; PEFT and vLLM load them, from a local copy if need be."""

import json
import os

import pyarrow.fs as pafs

from pipeline.data import storage

FILES = ("adapter_config.json", "adapter_model.safetensors")
MOST_RANK = 512  # of an adapter that vLLM loads (the largest of its `MaxLoRARanks`)


def copy(source: str, target: str) -> None:
    """Copy an adapter's two files, adapter_config.json last: if it exists, `target` is complete.

    Raises OSError.
    """
    fs, inner = storage.filesystem(target)
    fs.create_dir(inner, recursive=True)
    source_fs, source_inner = storage.filesystem(source)
    pafs.copy_files(
        f"{source_inner}/{FILES[1]}",
        f"{inner}/{FILES[1]}",
        source_filesystem=source_fs,
        destination_filesystem=fs,
    )
    storage.write_text(storage.join(target, FILES[0]), storage.read_text(storage.join(source, FILES[0])))


def is_whole(adapter: str) -> bool:
    return storage.exists(storage.join(adapter, FILES[0]))


def fetch(adapter: str, scratch: str) -> str:
    """A local directory of the adapter: its own if that is local, else a copy under `scratch`.

    Raises OSError.
    """
    if storage.is_local(adapter):
        return adapter
    local = os.path.join(scratch, f"{len(os.listdir(scratch))}-{adapter.rsplit('/', 1)[1]}")
    copy(adapter, local)
    return local


def shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header (8 bytes of length, then JSON).

    Raises OSError; ValueError if the file is not a safetensors file.
    """
    fs, inner = storage.filesystem(file)
    with fs.open_input_file(inner) as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length < f.size():
            raise ValueError("no safetensors header")
        header = json.loads(f.read(length))
    return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
