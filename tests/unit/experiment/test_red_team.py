"""Runs of red-teaming with a scripted model: what it writes is read by a next run, and nothing is trained."""

import pyarrow.parquet as pq
import pytest

from pipeline import experiment
from pipeline.commands.plan import show_plan
from pipeline.config import Config
from pipeline.errors import RunFailed, UserError
from pipeline.run import Run
from pipeline.sources import instructions
from tests import scripted
from tests.unit.methods.test_red_team import SMALL, Scripted

METHOD = {"name": "red_team", "leaves": {"per_hazard": 0}, "genres": ["blog"], "queries": 3}


@pytest.fixture
def teamed(tmp_path, calls, monkeypatch):
    """Runs stages with the method and others beside it; returns the lines told."""
    (tmp_path / "taxonomy.yaml").write_text(SMALL)
    monkeypatch.setattr("tests.unit.experiment.conftest.ScriptedChat", lambda **answers: Scripted(**answers))

    def run(*stages, arms=None, beside=None, suites=None, run_dir="run", **changes):
        told = []
        method = {**METHOD, "taxonomy": str(tmp_path / "taxonomy.yaml"), **changes}
        tree = {
            "run_dir": str(tmp_path / run_dir),
            "model": {"path": "org/model"},
            "methods": {"red": method, **(beside or {})},
            "suites": suites or {},
        }
        config = Config.model_validate(tree | ({"arms": arms} if arms is not None else {}))
        experiment.run(config, stages or None, machinery=calls.machinery, log=told.append)
        return told

    return run


def rows(place) -> list[dict]:
    return [row for file in place.glob("*.parquet") for row in pq.read_table(file).to_pylist()]


def test_a_run_of_red_teaming_alone_generates_and_mixes_and_reports(teamed, calls, tmp_path):
    told = teamed()
    assert calls == ["generate"], "and no engine or trainer after that"
    assert told[0].startswith("generate: 4 rows (4 ok) → ")
    assert told[1] == f"mix: 36 rows → {tmp_path}/run/requests"
    assert told[2] == (
        f"mix: nothing is trained on requests; {tmp_path}/run/requests can be the path of another run's"
        " instructions"
    )
    assert told[3].startswith("report: ")
    assert teamed() == told and calls == ["generate"]


def test_the_next_run_reads_the_requests(teamed, run, tmp_path):
    teamed(run_dir="first")
    place = {"path": str(tmp_path / "first" / "requests")}
    read = list(
        instructions.well_formed(scripted.config(instructions=place).methods["mistakes"].instructions)
    )
    assert len(read) == 36 and all(row["category"].count("/") == 2 for row in read)
    assert {row["id"] for row in read} == {row["id"] for row in rows(tmp_path / "first" / "requests")}
    told = run("generate", instructions=place)
    assert [line for line in told if line.startswith("generate: 36 rows (36 ok)")]


def test_the_requests_are_goals_of_a_suite_and_their_failures_the_next_round(teamed, calls, tmp_path):
    teamed()
    requests = {"path": str(tmp_path / "run" / "requests")}
    suites = {"safety": {"harmful": requests, "harmless": {"kind": "refusal"}, "conditions": ["plain"]}}
    tree = {
        "run_dir": str(tmp_path / "asked"),
        "model": {"path": "org/model"},
        "methods": {},
        "suites": suites,
    }
    experiment.run(Config.model_validate(tree), ["evaluate"], machinery=calls.machinery, log=print)
    answers = rows(tmp_path / "asked" / "evaluation")
    assert len(answers) == 36 and all(row["harmful"] for row in answers), "the scripted model says sure"
    focus = {"answers": str(tmp_path / "asked" / "evaluation"), "texts": 18}
    told = teamed("generate", "mix", run_dir="again", focus=focus, leaves={})
    assert told[0].startswith("generate: 4 rows (4 ok)")
    written = rows(tmp_path / "again" / "red_team")
    assert sum(leaf["texts"] for row in written for leaf in row["leaves"]) == 18
    assert all(leaf["texts"] in (1, 2) for row in written for leaf in row["leaves"])


def test_train_says_that_there_is_nothing_to_train(teamed, calls):
    with pytest.raises(
        UserError, match=r"^train has nothing to do: nothing is trained on requests; give .*/run/requ"
    ):
        teamed("train")
    assert calls == []


def test_an_arm_without_a_method_that_makes_examples_is_refused():
    tree = {"run_dir": "r", "model": {"path": "toy"}, "methods": {"red": METHOD}, "arms": {"sft": {}}}
    with pytest.raises(
        ValueError, match=r"arms.sft: nothing is trained on requests, and the methods make nothing"
    ):
        Config.model_validate(tree)


def test_without_arms_of_a_method_that_makes_examples_train_asks_for_arms(run):
    with pytest.raises(UserError, match="arms is missing: train has no arm to train on sft; give arms"):
        run("train", arms={})


def test_requests_are_made_beside_the_training_sets_of_arms(teamed, calls, tmp_path):
    mistakes = {"name": "mistake_analysis", "instructions": {"path": "toy:harmful-train", "limit": 4}}
    mistakes["mix"] = {"helpful": {"path": "toy:helpful-train"}}
    told = teamed("generate", "mix", beside={"mistakes": mistakes})
    assert len([line for line in told if line.startswith("mix: ") and " rows → " in line]) == 2
    assert rows(tmp_path / "run" / "requests") and rows(tmp_path / "run" / "sft")


def test_no_kept_query_ends_the_run_with_the_reason(teamed):
    with pytest.raises(RunFailed, match="generate: all 4 rows dropped, most with: no query was kept"):
        teamed(words=[59, 60])


def test_a_wrong_taxonomy_or_round_is_refused_before_an_engine_starts(teamed, calls, tmp_path):
    with pytest.raises(UserError, match=r"taxonomy = .*none.yaml: no such file"):
        teamed(taxonomy=str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"methods.red: focus.answers = .*holds no finished answers"):
        teamed(focus={"answers": str(tmp_path / "none"), "texts": 3}, leaves={})
    assert calls == []


def test_the_data_sets_have_cards_that_claim_no_source(teamed, tmp_path):
    teamed("generate", "mix")
    for name in ("red_team", "requests"):
        card = (tmp_path / "run" / name / "README.md").read_text()
        assert "seed 0." in card and "from ." not in card
    assert "left out" not in card


def test_plan_shows_the_prompts_and_an_upper_bound(teamed, tmp_path, capsys):
    method = {**METHOD, "taxonomy": "toy"}
    tree = {
        "run_dir": str(tmp_path / "r"),
        "model": {"path": "toy", "dtype": "float32"},
        "methods": {"red": method},
    }
    show_plan(Config.model_validate(tree))
    told = capsys.readouterr().out
    assert "Write a blog post" in told and "10 rows" in told


def test_another_method_and_the_requests_have_fingerprints_of_their_own(teamed, tmp_path):
    teamed("generate", "mix")
    config = Config.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": "org/model"},
            "methods": {"red": {**METHOD, "taxonomy": str(tmp_path / "taxonomy.yaml"), "queries": 4}},
        }
    )
    with pytest.raises(UserError, match=r"red_team.queries: 3 in the run directory, 4 in this config"):
        run = Run(config)
        run.generated["red"].check(run.fingerprints["red_team"])
