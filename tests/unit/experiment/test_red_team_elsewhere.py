"""Red-teaming, whose rows are no instructions, in preview, manifest and fingerprints."""

import io
import json

import pytest
from rich.console import Console

from pipeline import experiment
from pipeline.commands.manifest import manifest
from pipeline.commands.plan import show_plan
from pipeline.config import Config
from pipeline.data.store import Store
from pipeline.errors import UserError
from pipeline.preview import few, preview
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.methods.test_red_team import SMALL, Scripted

METHOD = {"name": "red_team", "leaves": {"per_hazard": 0}, "genres": ["blog"], "queries": 3}


@pytest.fixture
def red_team(tmp_path, monkeypatch):
    """A configuration with the method; changes are the method's."""
    (tmp_path / "taxonomy.yaml").write_text(SMALL)
    monkeypatch.setattr("tests.unit.experiment.conftest.ScriptedChat", lambda **answers: Scripted(**answers))

    def configured(run_dir=None, **changes) -> Config:
        method = {**METHOD, "taxonomy": str(tmp_path / "taxonomy.yaml"), **changes}
        return Config.model_validate(
            {
                "run_dir": run_dir or str(tmp_path / "run"),
                "model": {"path": "org/model"},
                "methods": {"red": method},
            }
        )

    return configured


def answered(place, harmful: dict[str, bool]) -> str:
    """A former run's finished answers; harmful: by category."""
    store = Store(str(place), ANSWERS.name, ANSWERS)
    store.open({})
    names = ANSWERS.arrow.names
    store.write_rows(
        {
            **dict.fromkeys(names),
            **{"id": f"r{n}", "arm": "vanilla", "condition": "plain", "category": category, "harmful": is_so},
        }
        for n, (category, is_so) in enumerate(harmful.items())
    )
    return store.path


def test_a_preview_is_of_a_few_hazards(red_team, calls, tmp_path):
    console = Console(file=io.StringIO(), width=150, highlight=False)
    preview(red_team(), 2, False, console, lambda line: None, calls.machinery)
    assert "red_team: 2 rows" in console.file.getvalue()
    assert not (tmp_path / "run").exists() and list(calls) == ["generate"]


def test_a_preview_of_a_next_round_has_the_texts_of_its_hazards_alone(red_team, tmp_path):
    harmful = {"crimes/theft/a car": True, "crimes/fraud/a ticket": True, "mischief/noise/a drum": True}
    focus = {"answers": answered(tmp_path / "former", harmful), "texts": 9}
    method = few(red_team(leaves={}, focus=focus), 2).methods["red"]
    assert method.hazards == ["crimes/theft", "crimes/fraud"] and method.focus.texts == 6
    assert few(red_team(), 2).methods["red"].hazards == ["crimes/theft", "crimes/fraud"]


def test_pods_have_to_see_the_taxonomy_and_the_answers_of_a_former_run(red_team, tmp_path):
    shared = "/mnt/setbacks/runs"
    with pytest.raises(UserError, match=r"^methods.red.taxonomy = .*: pods share only the volume"):
        manifest(red_team(f"{shared}/red"))
    focus = {"answers": "runs/former/evaluation", "texts": 9}
    with pytest.raises(UserError, match=r"^methods.red.focus.answers = runs/former/evaluation: pods share"):
        manifest(red_team(f"{shared}/red", taxonomy="toy", leaves={}, focus=focus))
    focus["answers"] = f"{shared}/former/evaluation"
    for taxonomy in ("toy", None, "/mnt/setbacks/taxonomy.yaml"):
        assert "RayJob" in manifest(red_team(f"{shared}/red", taxonomy=taxonomy, leaves={}, focus=focus))


def test_other_answers_at_the_same_path_make_the_requests_anew(red_team, calls, tmp_path):
    def generated(harmful) -> dict:
        focus = {"answers": answered(tmp_path / "former", harmful), "texts": 6}
        config = red_team(leaves={}, focus=focus)
        experiment.run(config, ["generate"], machinery=calls.machinery, log=lambda line: None)
        return Store(str(tmp_path / "run"), "red_team", ANSWERS).fingerprint["made_from"]

    first = generated({"crimes/theft/a car": True})
    assert first.keys() == {"focus.answers"} and list(calls) == ["generate"]
    assert generated({"crimes/theft/a car": True}) == first and list(calls) == ["generate"]
    second = generated({"crimes/theft/a car": False, "mischief/noise/a drum": True})
    assert second != first and list(calls) == ["generate", "generate"]


def test_plan_counts_what_another_model_judges(red_team, capsys):
    tree = red_team(taxonomy="toy").model_dump(mode="json", exclude_unset=True)
    tree |= {"model": {"path": "toy", "dtype": "float32"}}

    def most(**on_topic) -> dict[str, int]:
        server = {
            "engine": {"kind": "openai", "url": "http://127.0.0.1:1/v1", "model": "m", "api_key_env": None}
        }
        changed = {"red": {**tree["methods"]["red"], "on_topic": on_topic}}
        show_plan(
            Config.model_validate({**tree, "methods": changed, "models": {"strong": server}}), as_json=True
        )
        work = json.loads(capsys.readouterr().out)["work"]
        return {part["name"] + str(number): part["most_new_tokens"] for number, part in enumerate(work)}

    alone, beside = most(), most(model="strong")
    assert list(alone) == ["red0"] and list(beside) == ["red0", "red1"]
    assert sum(beside.values()) == alone["red0"] and beside["red1"] > 0


def test_what_is_wrong_names_the_method(red_team, calls):
    for changes, told in (
        ({"genres": ["poem"]}, r"^methods.red: genres: poem is not a genre"),
        ({"hazards": ["war"]}, r"^methods.red: hazards: war is not in the taxonomy"),
    ):
        with pytest.raises(UserError, match=told):
            experiment.run(red_team(**changes), ["generate"], machinery=calls.machinery)
    focus = {"answers": "s3://key:secret@bucket/evaluation", "texts": 3}
    with pytest.raises(UserError, match=r"^methods.red.focus.answers: contains a password") as e:
        experiment.run(red_team(leaves={}, focus=focus), ["generate"], machinery=calls.machinery)
    assert "secret" not in str(e.value)
    assert list(calls) == []
