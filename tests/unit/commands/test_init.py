"""`setbacks init`: what it writes is a configuration that `plan` accepts, for every method."""

import errno
import io
import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from rich.console import Console

from pipeline.commands import schemas
from pipeline.commands.init import PROPOSED, init
from pipeline.commands.plan import show_plan
from pipeline.config import load
from pipeline.errors import UserError
from pipeline.registry import METHODS


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a configuration in an empty directory; returns its path, and what was said."""
    monkeypatch.chdir(tmp_path)

    def written(path="mine.yaml", **given):
        said: list[str] = []
        options = {
            "model": "toy",
            "source": "toy:detailed-train",
            "method": None,
            "held_out": None,
            "gpus": 0,
        }
        ask = given.pop("ask", None)
        init(path, **{**options, **given}, ask=ask, log=said.append)
        return path, said

    return written


@pytest.mark.parametrize("gpus", [0, 4])
@pytest.mark.parametrize("method", PROPOSED)
def test_plan_accepts_it(written, method, gpus):
    path, said = written(model="org/on-the-hub", method=method, gpus=gpus)
    config = load(path)
    show_plan(config, console=Console(file=io.StringIO()))
    assert [one.name for one in config.methods.values()] == [method]
    assert (config.engine.actors, config.engine.gpus) == ((4, 1) if gpus else (1, 0))
    assert all(arm.train.use_gpu == bool(gpus) for arm in config.arms.values())
    assert all(arm.train.accepts == METHODS[method].training_sets[0] for arm in config.arms.values())
    assert config.suites.items() and all(
        suite.counted.path == "toy:detailed-heldout" for suite in config.suites.items().values()
    )
    assert said == ["mine.yaml: written; next: setbacks plan mine.yaml"]


@pytest.mark.parametrize("method", PROPOSED)
def test_it_has_comments_short_lines_and_fits_the_schema(written, method):
    path, _ = written(method=method)
    text = Path(path).read_text()
    schema = json.loads(schemas.configuration())
    jsonschema.Draft202012Validator(schema).validate(yaml.safe_load(text))
    assert text.count("#") > 10
    assert max(map(len, text.splitlines()[1:])) <= 110  # the first line may have a long path
    first = text.splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=") and first.endswith(
        "configuration.schema.json"
    )


def test_a_hub_data_set_is_evaluated_on_its_other_split(written):
    path, _ = written(model="org/model-7b", source="hub:org/red-team", gpus=8)
    config = load(path)
    suite = next(iter(config.suites.items().values()))
    assert (suite.counted.path, suite.counted.split) == ("hub:org/red-team", "test")
    assert config.model.path == "org/model-7b"


def test_nothing_is_evaluated_on_what_is_trained_on(written):
    path, said = written(source="data/red team: {all}.jsonl")
    config = load(path)
    assert not config.suites.items()
    assert next(iter(config.methods.values())).instructions.path == "data/red team: {all}.jsonl"
    assert said[-1].endswith("--held-out names instructions that are not trained on")


def test_what_no_option_says_is_asked(written):
    asked = {}
    answers = {"Model": "org/m", "Red-team": "a.jsonl", "Method": list(METHODS)[1], "Instructions": "b.jsonl"}

    def ask(question, default):
        asked[question] = default
        return next((answer for key, answer in answers.items() if question.startswith(key)), default)

    path, _ = written(model=None, source=None, gpus=None, ask=ask)
    config = load(path)
    assert len(asked) == 5
    assert config.model.path == "org/m"
    assert next(iter(config.methods.values())).name == list(METHODS)[1]
    assert next(iter(config.suites.items().values())).counted.path == "b.jsonl"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": None, "model": "org/m"}, "--source is missing"),
        ({"method": "magic"}, "--method magic: known are mistake_analysis"),
        ({"model": "bad\nname"}, "control character"),
        ({"path": "mine.yaml/below.yaml"}, "cannot be written"),
    ],
)
def test_a_mistake_writes_nothing(written, tmp_path, given, words):
    if "path" in given:
        (tmp_path / "mine.yaml").write_text("")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=words):
        written(**given)
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_that_exists_stays(written, tmp_path):
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        written()
    assert (tmp_path / "mine.yaml").read_text() == "mine"


def test_a_full_disk_leaves_no_empty_file(written, tmp_path, monkeypatch):
    def full(_file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        written()
    assert not [*tmp_path.iterdir()]


def test_an_answer_that_cannot_be_used_is_asked_for_again(written, tmp_path):
    answers = {
        "Method": ["nonsense", "mistake_analysis"],
        "Red-team": ["toy:nonsense", "toy:harmful-train"],
        "Instructions": ["toy:harmful-train", "toy:harmful-heldout"],
        "GPUs": ["-1", "0"],
    }

    def ask(question, _default):
        return answers[question.split()[0]].pop(0)

    path, said = written(model="toy", source=None, method=None, held_out=None, gpus=None, ask=ask)
    assert not any(answers.values())
    assert [line.partition(":")[0] for line in said[:4]] == [
        "--method nonsense",
        "--source = toy",
        "--held-out = toy",
        "--gpus = -1",
    ]
    assert load(path).suites.safety.harmful.path == "toy:harmful-heldout"
