"""Environment variables of the user that would end a run late, found before it starts."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from pipeline.errors import UserError
from pipeline.runtime import imports
from pipeline.settings.shown import first_line, shown

# Ray appends this to its temporary directory, and Linux allows a socket's path 107 bytes.
_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
_MOST_BYTES = 107


def check_temporary_directory() -> None:
    """Check that a local Ray can put its sockets and logs into its temporary directory. Raises UserError.

    Ray creates the directory if it is missing.
    """
    variable = next((name for name in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(name)), None)
    place = os.environ[variable] if variable else "/tmp"
    field = f"{variable} = {place}" if variable else place
    remedy = "set RAY_TMPDIR to a short path of a directory that can be written, such as /tmp"
    if len(os.fsencode(place.rstrip("/") + _SOCKET)) > _MOST_BYTES:
        most = _MOST_BYTES - len(_SOCKET)
        raise UserError(
            f"{field}: too long for Ray's sockets, whose paths begin with it ({most} bytes); {remedy}"
        )
    if not os.path.isabs(place):
        raise UserError(f"{field}: not an absolute path, which Ray needs; {remedy}")
    found = Path(place)
    while not os.path.lexists(found):
        found = found.parent
    if not found.is_dir():
        raise UserError(f"{field}: {found} is not a directory; {remedy}")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(f"{field}: {found} is not writable; {remedy}")


def check_threads() -> None:
    """Check that accelerate accepts OMP_NUM_THREADS as a number of threads. Raises UserError."""
    value = os.environ.get("OMP_NUM_THREADS")
    if value and not (value.strip().isascii() and value.strip().isdecimal() and int(value)):
        raise UserError(
            f"OMP_NUM_THREADS = {value}: not a number of threads; unset it or write one, such as 4"
        )


def check_vllm_variables() -> None:
    """Check that vLLM accepts its environment variables; else no engine would start. Raises UserError.

    Imports vLLM, which takes seconds, only if one of them is set.
    """
    names = [name for name in os.environ if name.startswith("VLLM_")]
    if not names:
        return
    level = os.environ.get("VLLM_LOGGING_LEVEL", "INFO")
    if level.upper() not in logging.getLevelNamesMapping():
        raise UserError(
            f"VLLM_LOGGING_LEVEL = {level}: not a level of Python's logging; unset it, or write WARNING"
        )
    with imports.quick():
        from vllm import envs
    for name in names:
        try:
            getattr(envs, name, None)  # vLLM ignores names that it does not know
        except (ValueError, TypeError) as e:
            raise UserError(
                f"{name}: vLLM does not accept its value ({first_line(e)}); unset it or correct it"
            ) from None


def check_imports() -> None:
    """Check that torch and Ray accept the variables that they read when they are imported.

    torch raises an exception for a wrong TORCH_LOGS, and Ray's process dies of one of its settings (RAY_ and
    a small letter) that is no number. A child process tries to import them, which takes seconds, only if
    there is such a variable. Raises UserError.
    """
    logs = [name for name in os.environ if name == "TORCH_LOGS"]
    # Ray accepts a whole number for every setting.
    settings = [
        name for name, value in os.environ.items() if _RAY_SETTING.match(name) and not _WHOLE.fullmatch(value)
    ]
    for library, names in (("torch", logs), ("ray", sorted(settings))):
        if not names or _can_import(library, _hashable(names)):
            continue
        alone = [name for name in names if not _can_import(library, _hashable([name]))]
        told = ", ".join(f"{name} = {shown(os.environ[name], 40)}" for name in alone or names)
        raise UserError(f"{told}: {library} cannot be imported with this value; unset it or correct it")


_RAY_SETTING = re.compile(r"RAY_[a-z]")
_WHOLE = re.compile(r"\d{1,9}", re.ASCII)


def _hashable(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, os.environ[name]) for name in names)


@cache
def _can_import(library: str, variables: tuple[tuple[str, str], ...]) -> bool:
    """Whether a child process whose only variables in question are these can import a library."""
    others = {
        name: value
        for name, value in os.environ.items()
        if name != "TORCH_LOGS" and not _RAY_SETTING.match(name)
    }
    environment: Mapping[str, str] = {**others, **dict(variables)}
    child = subprocess.run(
        [sys.executable, "-c", f"import {library}"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return child.returncode == 0


def of_accelerate() -> list[str]:
    """Names of the variables by which accelerate would train in another way than the configuration says.

    `accelerate launch` sets them for everything that runs below it. The device is Ray Train's to set.
    """
    found = {name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))}
    return sorted(found - {"ACCELERATE_TORCH_DEVICE"})


def forget_accelerate() -> None:
    """Remove these variables from this process, which is a training worker's."""
    for name in of_accelerate():
        del os.environ[name]


def unused_accelerate() -> list[str]:
    """A notice if there are such variables."""
    if not (names := of_accelerate()):
        return []
    return [f"{', '.join(names)}: not used, training takes its settings from the configuration alone"]
