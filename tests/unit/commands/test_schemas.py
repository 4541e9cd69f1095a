"""The JSON schema of configurations: it takes what people write, and says what is wrong."""

import json
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline import cli
from pipeline.commands import schemas
from pipeline.config import load
from pipeline.settings.file import dump
from tests import scripted

SHIPPED = sorted((schemas.DOCS.parent / "configs").glob("*.yaml"))
NAME = "# yaml-language-server: $schema="


@pytest.fixture(scope="module")
def schema():
    found = json.loads(schemas.CONFIGURATION.read_text())
    jsonschema.Draft202012Validator.check_schema(found)
    return jsonschema.Draft202012Validator(found)


def test_configurations_are_shipped():
    assert len(SHIPPED) >= 5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_configuration_names_the_schema_and_fits_it(schema, path):
    first, _, rest = path.read_text().partition("\n")
    assert first.startswith(NAME)
    assert (path.parent / first.removeprefix(NAME)).resolve() == schemas.CONFIGURATION
    schema.validate(yaml.safe_load(rest))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_written_out_configuration_fits_it_too(schema, path):
    """With every default, as in RUN/config.yaml."""
    schema.validate(yaml.safe_load(dump(load(path))))


WRONG = {
    "seed": {"seed": -1},
    "epoks": {"train": {"epoks": 3}},
    "kind": {"engine": {"kind": "magic"}},
    "names": {"methods": {"Bad Name": {"name": "mistake_analysis", "instructions": {"path": "a"}}}},
    "method": {"methods": {"m": {"instructions": {"path": "a"}}}},
    "run_dir": {"run_dir": None},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG)
def test_a_wrong_value_is_found(schema, changes):
    tree = scripted.tree("run")
    schema.validate(tree)
    assert not schema.is_valid({**tree, **changes})


RIGHT = {
    "an arm with what differs only": {"arms": {"sft": {"kinds": ["safe"], "train": {"lora": {"rank": 4}}}}},
    "an arm with nothing": {"arms": {"sft": {}}},
    "an engine without a kind": {"engine": {"actors": [1, 3]}},
    "one stop": {"suites": {"safety": {"harmful": {"path": "a"}, "answer": {"stop": "###"}}}},
    "no section": {"suites": {"safety": None, "c2_eval": None}},
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_what_people_write_is_accepted(schema, changes):
    schema.validate({**scripted.tree("run"), **changes})


def test_every_field_says_what_it_is(schema):
    """Editors show the description at the cursor."""
    sections = schema.schema["$defs"]
    assert [
        f"{name}.{field}"
        for name, section in sections.items()
        for field, value in section.get("properties", {}).items()
        if "description" not in value
    ] == []


@pytest.mark.parametrize(("options", "title"), [([], "run_dir"), (["--results"], "numbers")])
def test_the_command_prints_them(monkeypatch, capsys, options, title):
    monkeypatch.setattr(sys, "argv", ["setbacks", "schema", *options])
    with pytest.raises(SystemExit):
        cli.main()
    assert title in json.loads(capsys.readouterr().out)["properties"]


def test_the_schemas_stand_in_docs():
    assert Path("docs/configuration.schema.json").name == schemas.CONFIGURATION.name
    assert schemas.CONFIGURATION.parent.name == "docs"
