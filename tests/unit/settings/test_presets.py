"""Public sets by name: what a preset writes out, and what is said if it cannot be read."""

import re
from pathlib import Path

import pytest

from pipeline import fingerprints, preflight
from pipeline.config import Config, dump
from pipeline.errors import OutOfReach, UserError
from pipeline.settings import presets
from pipeline.settings.base import Source
from tests import scripted

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", presets.known())
def test_every_preset_is_a_source_with_licence_gating_and_rubric(name):
    source, about = Source(path=f"preset:{name}"), presets.known()[name]
    assert source.path == about["path"] and source.path.startswith("hub:")
    assert source.columns is not None and source.columns.instruction
    assert {"rows", "licence", "gated", "rubric"} < about.keys() and isinstance(about["gated"], bool)


def test_a_preset_fills_in_path_configuration_split_and_columns():
    source = Source.model_validate({"path": "preset:jailbreakbench", "limit": 5})
    assert (source.path, source.config, source.split) == (
        "hub:JailbreakBench/JBB-Behaviors",
        "behaviors",
        "harmful",
    )
    assert (source.columns.instruction, source.columns.category, source.limit) == ("Goal", "Category", 5)


def test_what_the_source_sets_itself_goes_before_the_preset():
    source = Source.model_validate({"path": "preset:xstest", "columns": {"instruction": "q"}, "split": "v2"})
    assert (source.columns.instruction, source.columns.category, source.split) == ("q", None, "v2")


def test_an_unknown_preset_is_one_sentence_with_the_known_ones():
    with pytest.raises(ValueError, match="there is no such preset; known are xstest, or_bench_hard"):
        Source(path="preset:xtest")


def config(tmp_path) -> Config:
    return scripted.config(
        tmp_path / "run",
        methods={},
        suites={
            "borderline": {"prompts": {"path": "preset:xstest"}, "unsafe_categories": ["contrast_*"]},
            "jailbreak": {"goals": {"path": "preset:harmbench"}, "benign": {"path": "preset:or_bench_hard"}},
        },
    )


def test_the_run_s_configuration_and_fingerprints_hold_what_is_read(tmp_path):
    given = config(tmp_path)
    assert "preset:" not in dump(given) and "hub:Paul/XSTest" in dump(given)
    section = fingerprints.fingerprints(given)["borderline"]["suites"]["borderline"]
    assert section["prompts"]["path"] == "hub:Paul/XSTest"
    assert Config.model_validate(given.model_dump(mode="json")) == given, "written out, it reads the same"


def test_without_a_network_preflight_says_one_sentence(tmp_path, monkeypatch):
    import datasets

    def unreachable(*_arguments, **_options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(OutOfReach) as e:
        preflight.check(config(tmp_path), {"evaluate"})
    assert str(e.value).startswith("suites.borderline.prompts: hub:Paul/XSTest: split train cannot be loaded")
    assert "\n" not in str(e.value)
    assert set(preflight.unreachable(config(tmp_path), {"evaluate"})) == {
        "suites.borderline.prompts",
        "suites.jailbreak.goals",
        "suites.jailbreak.benign",
    }


def test_a_gated_set_is_told_as_one(tmp_path, monkeypatch):
    import datasets

    class GatedRepoError(Exception):
        pass

    def gated(*_arguments, **_options):
        raise GatedRepoError("403")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    with pytest.raises(UserError, match="is gated; accept its terms on its page of the hub") as e:
        preflight.check(config(tmp_path), {"evaluate"})
    assert not isinstance(e.value, OutOfReach)


def test_the_documented_table_is_that_of_the_presets():
    page = (ROOT / "docs" / "sources.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("## Public sets by name")[2], re.M))
    assert list(rows) == list(presets.known())
    for name, about in presets.known().items():
        place, count, licence, gated, _ = rows[name].split(" | ")
        assert about["path"] in place or place.startswith("the same")
        assert count == (f"{about['rows']:,}" if about["rows"] else "see its page")
        assert licence == (about["licence"] or "see its page") and gated == (
            "yes" if about["gated"] else "no"
        )
