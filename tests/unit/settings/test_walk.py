"""The typed walk over a configuration: what it finds, and under which names."""

import pytest

from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.judges import Judge
from pipeline.preflight import check
from pipeline.settings.base import Endpoint, Model, NameKind, PathKind, Source
from pipeline.settings.walk import paths, sections
from tests import scripted

SERVER = {"url": "http://127.0.0.1:1/v1", "model": "m"}


@pytest.fixture
def config(tmp_path):
    return scripted.config(
        tmp_path / "run",
        recipe={
            "name": "course_correction",
            "aligned": {"model": "good", "adapter": "adapters/aligned"},
            "check": {"kind": "yes_no", "model": "server"},
            "prompts": "mine.yaml",
        },
        models={"good": {"path": "org/aligned"}, "server": {"engine": {"kind": "openai", **SERVER}}},
        train={"method": "dpo", "start": {"adapter": "adapters/start"}},
        evaluation={
            "harmful": {"path": "toy:harmful-heldout"},
            "help": {"kind": "rating", "prompts": "rating.yaml"},
            "adapters": {"other": "adapters/other"},
        },
    )


def test_sections_are_found_by_their_type_wherever_they_stand(config):
    assert sections(config, Source).keys() == {"methods.corrections.instructions", "suites.safety.harmful"}
    assert sections(config, Model).keys() == {"model", "models.good", "models.server"}
    assert sections(config, Endpoint).keys() == {"models.server.engine"}
    assert sections(config, Engine).keys() == {"engine", "models.good.engine", "models.server.engine"}
    assert paths(config, NameKind.MODEL) == {
        "methods.corrections.aligned.model": "good",
        "methods.corrections.judge.model": "server",
    }
    assert {field: judge.kind for field, judge in sections(config, Judge).items()} == {
        "methods.corrections.judge": "yes_no",
        "suites.safety.harmless": "refusal",
        "suites.safety.help": "rating",
    }


def test_paths_are_found_by_what_they_lead_to(config):
    assert paths(config, PathKind.PROMPTS) == {
        "methods.corrections.prompts": "mine.yaml",
        "suites.safety.help.prompts": "rating.yaml",
    }
    assert paths(config, PathKind.ADAPTER) == {
        "methods.corrections.aligned.adapter": "adapters/aligned",
        "train.start.adapter": "adapters/start",
        "arms.dpo.train.start.adapter": "adapters/start",
        "adapters.other": "adapters/other",
    }


def test_the_toy_judge_is_refused_for_another_model(tmp_path):
    """Each judge that the walk finds is checked."""
    other = scripted.config(
        tmp_path / "run",
        model={"path": "org/model"},
        recipe={"name": "course_correction", "check": {"kind": "toy"}},
        train={"method": "dpo"},
    )
    with pytest.raises(
        UserError,
        match=(
            r"methods\.corrections\.judge\.kind = toy knows the toy model's sentences only: set it to phrases"
            r" or yes_no"
        ),
    ):
        check(other, set())
