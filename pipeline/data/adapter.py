"""A LoRA adapter as two files on any storage; PEFT and vLLM load them, from a local copy if need be."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.data import storage

_PIECE = 2**20  # bytes read at once
# Types of matrices: how to read their bits, and the exponent of what is not finite.
_EXPONENTS = {
    "BF16": ("<u2", 0x7F80),
    "F16": ("<u2", 0x7C00),
    "F32": ("<u4", 0x7F800000),
    "F64": ("<u8", 0x7FF0000000000000),
}

FILES = ("adapter_config.json", "adapter_model.safetensors")
# The largest rank that vLLM 0.32 loads, of `vllm.config.lora.MaxLoRARanks`. Importing vLLM takes seconds.
MOST_RANK = 512


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


def stage_directory(adapter: str, number: int) -> str:
    """Where an adapter's directory keeps the adapter as it was after a stage of its training, from 1."""
    return storage.join(adapter, f"stage_{number}")


def is_whole(adapter: str) -> bool:
    """Whether a directory holds a complete adapter (see `copy`)."""
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


def settings(adapter: str) -> dict:
    """The content of adapter_config.json. Raises OSError; ValueError if it is no JSON object."""
    found = json.loads(storage.read_text(storage.join(adapter, FILES[0])))
    if not isinstance(found, dict):
        raise ValueError(f"{FILES[0]} holds no object")
    return found


def rank(settings: dict) -> int:
    """The largest rank of an adapter's matrices: modules may have ranks of their own (`rank_pattern`).

    Raises ValueError if a rank is no number above 0.
    """
    ranks = [settings.get("r"), *(settings.get("rank_pattern") or {}).values()]
    if not all(isinstance(one, int) and one > 0 for one in ranks):
        raise ValueError(f"{FILES[0]} holds a rank that is no number above 0")
    return max(ranks)


def changes_nothing(adapter: str) -> bool:
    """Whether all B matrices are zero, so that the adapter adds nothing. Reads up to the first other number.

    Raises OSError; ValueError if the file is not a safetensors file.
    """
    fs, inner = storage.filesystem(storage.join(adapter, FILES[1]))
    with fs.open_input_file(inner) as f:
        start, header = _header(f)
        for name, entry in header.items():
            if ".lora_B." in name or name.endswith("lora_embedding_B"):
                begin, end = entry["data_offsets"]
                for at in range(begin, end, _PIECE):
                    f.seek(start + at)
                    # in every number type, 0 has only zero bits, except the sign of −0
                    if f.read(min(_PIECE, end - at)).strip(b"\x00\x80"):
                        return False
    return True


def odd_number(adapter: str) -> str | None:
    """What is wrong with the type of a matrix, or with its first numbers; None if nothing is.

    A training that diverged leaves numbers that are not finite. Raises OSError; ValueError if the file is not
    a safetensors file.
    """
    fs, inner = storage.filesystem(storage.join(adapter, FILES[1]))
    with fs.open_input_file(inner) as f:
        start, header = _header(f)
        for name, entry in header.items():
            if entry["dtype"] not in _EXPONENTS:
                return f"{name} of type {entry['dtype']}"
            kind, exponent = _EXPONENTS[entry["dtype"]]
            begin, end = entry["data_offsets"]
            f.seek(start + begin)
            bits = np.frombuffer(f.read(min(_PIECE, end - begin)), kind)
            if ((bits & exponent) == exponent).any():
                return f"numbers in {name} that are not finite"
    return None


def shapes(file: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header (8 bytes of length, then JSON).

    Raises OSError; ValueError if the file is not a safetensors file.
    """
    fs, inner = storage.filesystem(file)
    with fs.open_input_file(inner) as f:
        _, header = _header(f)
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _header(file: pa.NativeFile) -> tuple[int, dict]:
    """The offset of the numbers, and the entries by name. Raises ValueError."""
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if not 2 <= length < file.size():
        pointer = " (a pointer of Git LFS: `git lfs pull` fetches the file)" if first == b"version " else ""
        raise ValueError(f"no safetensors header{pointer}")
    header = json.loads(file.read(length))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0) > file.size():
        raise ValueError("the file is cut off")
    return 8 + length, entries
