"""What all unit tests have in common: one thread, and a processor of which nothing is to be said; fixtures of
more than one file."""

import os
from pathlib import Path

import pytest

from pipeline.data.store import Store
from pipeline.methods.mistake_analysis.schema import MISTAKES
from tests import tiny

# Two threads wait for each other longer than they work on a few thousand weights, above all on a busy
# machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _a_cpu_with_bfloat16(monkeypatch):
    """Else what a command prints depended on the machine."""
    monkeypatch.setattr("pipeline.preflight.cpu_has_bf16", lambda: True)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"), "mistakes", MISTAKES)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("safety") / "model"))
