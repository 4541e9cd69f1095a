"""What all unit tests have in common: one thread, and a processor of which nothing is to be said; fixtures of
more than one file."""

import gc
import os
from functools import cache
from pathlib import Path

import pytest

# transformers writes its logs to what sys.stderr is when it is first imported. Within a test that may be a
# stream of the test's own, which is closed by the time when another test makes transformers speak.
import transformers  # noqa: F401
import typer

from pipeline.data.store import Store
from pipeline.methods.mistake_analysis.schema import MISTAKES
from tests import tiny
from tests.unit.commands import reports

# Two threads wait for each other longer than they work on a few thousand weights or a line of text, above all
# on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


# A process builds its commands once. Here one runs hundreds of them.
typer.main.get_command = cache(typer.main.get_command)


@pytest.fixture(autouse=True)
def _a_machine_of_which_nothing_is_to_be_said(monkeypatch):
    """Else what a command prints depended on the processor, and how long a test takes on the disk: no test
    here pulls a plug."""
    monkeypatch.setattr("pipeline.preflight.fit.cpu_has_bf16", lambda: True)
    monkeypatch.setattr(os, "fsync", lambda _file: None)


@pytest.fixture(scope="module", autouse=True)
def _what_a_file_leaves_is_left_alone():
    """What tests have imported stays: the collector need not look at it again and again."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture
def no_figures(monkeypatch):
    reports.no_figures(monkeypatch)


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"), "mistakes", MISTAKES)


@pytest.fixture
def marker(tmp_path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture(scope="module")
def clean_model(tmp_path_factory) -> Path:
    return Path(tiny.save(tmp_path_factory.mktemp("safety") / "model"))
