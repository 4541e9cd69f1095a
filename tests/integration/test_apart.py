"""A function in a process of its own, on a real Ray."""

import os
from functools import partial
from pathlib import Path

import pytest

from pipeline.errors import RunFailed
from pipeline.runtime import apart
from pipeline.runtime.session import ray_session

pytestmark = pytest.mark.timeout(300)


def writes(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fails() -> None:
    raise RunFailed("the harness gave no result")


def dies() -> None:
    os._exit(3)


def test_a_function_runs_elsewhere_and_its_failures_are_one_sentence(tmp_path):
    with ray_session(str(tmp_path)):
        apart.call(partial(writes, tmp_path / "a"))
        apart.call(partial(writes, tmp_path / "b"))
        pids = {(tmp_path / name).read_text() for name in "ab"}
        assert len(pids) == 2 and str(os.getpid()) not in pids, "each call has a process that ends with it"
        with pytest.raises(RunFailed, match=r"^the harness gave no result$"):
            apart.call(fails)
        with pytest.raises(RunFailed, match="a process of its own has died"):
            apart.call(dies)
