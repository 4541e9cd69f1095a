"""The data set cards: every data set has one that says what it holds, how it was made and how it is used."""

import re

import pytest
import yaml

from pipeline.data import storage
from pipeline.data.card import write_card
from pipeline.data.store import Store
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.origin import origin
from pipeline.schema import PREFERENCES, SFT
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted

SUITE = {"entries": {"path": "toy:detailed-heldout"}, "paths": 7}
CORRECTS = {
    "instructions": {"path": "toy:detailed-train"},
    "recipe": {
        "name": "course_correction",
        "cuts": 3,
        "aligned": {"model": "good", "adapter": "its/adapter"},
    },
    "models": {"good": {"path": "org/aligned"}},
    "train": {"method": "dpo"},
    "evaluation": {"course_correction": SUITE},
}


def card(tmp_path, schema, rows=(), figures=None, **changes) -> str:
    store = Store(str(tmp_path), schema.name, schema)
    store.open({"seed": 1})
    store.write_rows(rows)
    write_card(store, origin(scripted.config(tmp_path, **changes), schema), {"judge": "abc"}, figures or {})
    return storage.read_text(storage.join(store.path, "README.md"))


def header(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


@pytest.mark.parametrize(
    "schema",
    [MISTAKES, SFT, ANSWERS, CORRECTIONS, PREFERENCES, CONTINUATIONS],
    ids=lambda schema: schema.name,
)
def test_every_data_set_has_a_card_with_a_column_a_line(tmp_path, schema):
    corrects = schema in (CORRECTIONS, PREFERENCES, CONTINUATIONS)
    text = card(tmp_path, schema, **(CORRECTS if corrects else {}))
    assert "Content warning" in text and header(text)["pretty_name"] in text.split("---")[2]
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == schema.names
    assert ("course-correction" in header(text)["tags"]) == (corrects and schema != PREFERENCES)
    assert header(text)["task_categories"] == ["text-generation"]


def test_corrections_name_the_model_that_wrote_them_and_count_what_was_dropped(tmp_path):
    rows = [
        {"id": "a", "status": "ok", "lost": []},
        {"id": "b", "status": "dropped", "error": "unsafe response too short: 7 words"},
    ]
    text = card(tmp_path, CORRECTIONS, rows, **CORRECTS)
    assert (
        "with the model `org/aligned` with adapter `its/adapter`, seed 0, from `toy:detailed-train`." in text
    )
    assert "* 1 dropped\n" in text and "* dropped or failed, unsafe response too short: 1" in text
    assert "* cuts: `3`" in text and "trigger_end" in text


def test_preferences_say_how_trl_loads_them_and_what_was_left_out(tmp_path):
    text = card(tmp_path, PREFERENCES, figures={"drops": {"equal responses": 1234}}, **CORRECTS)
    assert {"preference", "dpo"} <= set(header(text)["tags"])
    assert "* left out, equal responses: 1,234" in text
    assert 'load_dataset("path/of/this/directory", split="train")' in text and "DPOTrainer(" in text


def test_evaluations_name_their_own_sources_and_settings(tmp_path):
    both = {
        **CORRECTS,
        "evaluation": {"course_correction": SUITE, "harmful": {"path": "toy:harmful-heldout"}},
    }
    text = card(tmp_path, CONTINUATIONS, **both)
    assert "with the model `toy`, seed 0, from `toy:detailed-heldout`." in text and "* paths: `7`" in text
    text = card(tmp_path, ANSWERS, **both)
    assert "from `toy:harmful-heldout`." in text and "detailed-heldout" not in text


def test_a_run_without_instructions_has_cards_too(tmp_path):
    text = card(tmp_path, CONTINUATIONS, instructions=None, evaluation={"course_correction": SUITE})
    assert "from `toy:detailed-heldout`." in text


def test_a_dummys_card_says_that_it_is_no_model(tmp_path):
    assert "the model `dummy`, which is no model: its texts are made of random words" in card(
        tmp_path, MISTAKES, engine={"kind": "dummy"}
    )


SERVER = {"kind": "openai", "url": "http://a.host/v1", "model": "served"}


def test_a_card_names_the_model_of_the_server_that_wrote_the_texts(tmp_path):
    told = "with the model `served` of an OpenAI-compatible server, seed"
    text = card(tmp_path / "a", MISTAKES, recipe={"engine": SERVER})
    assert told in text and "`toy`" not in text and "a.host" not in text
    assert told in card(tmp_path / "b", SFT, recipe={"engine": SERVER})
    assert "with the model `toy`, seed" in card(tmp_path / "c", ANSWERS, recipe={"engine": SERVER})


def test_a_set_of_several_engines_names_all_of_them(tmp_path):
    source = {"path": "toy:detailed-train"}
    methods = {
        "a": {"name": "critique_revise", "instructions": source, "engine": SERVER},
        "b": {
            "name": "course_correction",
            "instructions": source,
            "aligned": {"model": "good", "adapter": "its/adapter"},
        },
    }
    changes = {
        "instructions": None,
        "train": {"method": "dpo"},
        "arms": {"dpo": {"kinds": ["revision", "correction"]}},
    }
    models = {"good": {"path": "org/aligned"}}
    text = card(tmp_path, PREFERENCES, methods=methods, models=models, **changes)
    both = "`served` of an OpenAI-compatible server and `org/aligned` with adapter `its/adapter`"
    assert f"with the model {both}, seed" in text
