"""Durability: arms are trained further for N steps and evaluated as arms; step 0 is the arm itself."""

import json

import pytest

from pipeline import fingerprints
from pipeline.commands import report
from pipeline.config import Config
from pipeline.report.arms import Arms
from pipeline.run import Run
from pipeline.suites.safety.schema import ANSWERS
from pipeline.training import examples
from pipeline.training.durability import DURABILITY
from tests import scripted
from tests.unit.experiment.runs import metrics

FURTHER = {"data": {"path": "toy:helpful-train", "limit": 6}, "steps": [0, 5, 10], "arms": ["vanilla", "sft"]}
NAMES = ["vanilla_after_5", "vanilla_after_10", "sft_after_5", "sft_after_10"]


def config(tmp_path="unused", **changes) -> Config:
    return scripted.config(tmp_path, mix={"helpful": {"path": "toy:helpful-train"}}, **changes)


def test_arms_are_trained_further_after_all_arms_and_evaluated_with_them(run, calls, tmp_path):
    told = run(durability=FURTHER)
    trained = [call for call in calls if call.startswith("train ")]
    assert trained == ["train sft", "train mistake_analysis", *(f"train {name}" for name in NAMES)]
    [evaluated] = [line for line in told if line.startswith("evaluate: ")]
    assert evaluated.startswith(f"evaluate: {2 * 3 * 7} rows"), "2 instructions, 3 conditions, 7 arms"
    assert any(line.startswith("mix: 6 rows → ") and line.endswith("/durability") for line in told)
    assert not any("nothing is trained on" in line for line in told)
    assert metrics(tmp_path).count("train") == 6 and calls[-1] == "evaluate"
    before = list(calls)
    assert run(durability=FURTHER) and calls == before, "nothing is done again"


def test_the_training_set_holds_the_source_s_responses_as_targets(run, tmp_path):
    run("generate", "mix", durability=FURTHER)
    found = Run(config(tmp_path / "run", durability=FURTHER)).further_set
    rows = list(found.dataset.rows())
    assert len(rows) == 6 and {row["kind"] for row in rows} == {"durability"}
    assert all([turn["role"] for turn in row["messages"]] == ["user", "assistant"] for row in rows)
    card = (tmp_path / "run" / "durability" / "README.md").read_text()
    assert "toy:helpful-train" in card and "its texts are the source's" in card


def test_another_arm_anew_makes_those_that_begin_from_it_anew(run, calls, tmp_path):
    run(durability=FURTHER)
    mark = json.loads((tmp_path / "run/.state/adapter/sft_after_5/fingerprint.json").read_text())
    assert set(mark["made_from"]) == {"durability", "start"}
    assert (
        mark["durability"]
        == {
            "begins_from": "sft",
            "steps": 5,
            "train": mark["durability"]["train"],
        }
        and not {"start", "epochs"} & mark["durability"]["train"].keys()
    )
    mark = json.loads((tmp_path / "run/.state/adapter/vanilla_after_5/fingerprint.json").read_text())
    assert set(mark["made_from"]) == {"durability"}, "a fresh adapter begins from nothing"


def test_finished_outputs_of_a_run_do_not_know_durability():
    before, after = (fingerprints.fingerprints(config(**more)) for more in ({}, {"durability": FURTHER}))
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {DURABILITY.name, *(f"adapter/{name}" for name in NAMES)}


def test_all_arms_and_the_base_model_are_the_default():
    found = config(durability={"data": FURTHER["data"], "steps": [0, 3]}).further
    assert list(found) == ["vanilla_after_3", "sft_after_3", "mistake_analysis_after_3"]
    assert config(durability={"data": FURTHER["data"], "steps": [0]}).further == {}


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"arms": ["other"]}, "durability.arms: other is not an arm of this run; known are vanilla, sft"),
        ({"steps": [5, 0]}, r"must rise and not repeat, not \[5, 0\]"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, told):
    with pytest.raises(ValueError, match=told):
        config(durability=FURTHER | changes)


def answer(arm: str, number: int, harmful: bool) -> dict:
    return {
        "id": f"{arm}-{number}", "instruction_id": f"i{number}", "sample": 0, "suite": "harmful",
        "condition": "plain", "arm": arm, "harmful": harmful, "refused": False, "status": "ok",
        "finish_reason": "stop",
    }  # fmt: skip


def test_step_0_of_the_curve_is_the_arm_itself():
    """sft is harmless in 3 of 4 answers, after 5 steps in 2, after 10 in 1."""
    given = config(durability=FURTHER | {"arms": ["sft"]})
    harmless = {"vanilla": 1, "sft": 3, "sft_after_5": 2, "sft_after_10": 1}
    table = ANSWERS.table([answer(arm, n, n >= of) for arm, of in harmless.items() for n in range(4)])
    suite = given.suites.safety
    own = suite.harmless_rates(table)["sft"]
    [section] = report._durability(given, suite, table, report._arms(given))
    [row] = [cells for _, rows in section.tables[0].groups for cells in rows]
    assert [cell.text for cell in row] == ["sft", "75.0", "50.0", "25.0"]
    assert (own.successes, own.trials) == (3, 4) and row[1].interval
    assert "Step 0 is the arm itself" in section.text[0] and len(section.figures) == 1
    assert "(safety, condition plain, judged by refusal)" in section.text[0]
    assert report._durability(config(), suite, table, Arms([])) == []


def test_a_training_takes_exactly_so_many_steps(tmp_path):
    """Whatever its examples would take in an epoch."""
    from pipeline import preflight
    from pipeline.training.arm import Places, Training
    from tests import tiny

    place = tiny.save(tmp_path / "model")
    given = config(tmp_path / "run", model={"path": place, "dtype": "float32"}, durability=FURTHER)
    rows = [row | {"kind": "durability"} for row in tiny.rows(40)]
    dataset = tiny.write(tmp_path / "data", rows)
    specs = preflight.further_specs(given, place, {})
    arms = [
        (specs[name], Places(dataset, str(tmp_path / name), str(tmp_path / "state" / name)))
        for name in ("vanilla_after_5", "vanilla_after_10")
    ]
    prepared = Training(arms, str(tmp_path / "checkpoints"))._arms
    for name, wanted in (("vanilla_after_5", 5), ("vanilla_after_10", 10)):
        [job] = prepared[name].jobs
        assert prepared[name].own_steps == wanted, "no sentence says that its steps were made equal"
        assert examples.steps(job.run.items, job.train.epochs, job.train.batch_size) == wanted
        assert job.train.schedule == "constant" and job.train.learning_rate == 1e-4


def test_workers_that_cannot_share_its_batch_are_refused(tmp_path):
    tree = scripted.tree(
        tmp_path / "run",
        train={"workers": 3, "batch_size": 48},
        durability={"data": {"path": "toy:helpful-train"}, "steps": [0, 4], "batch_size": 16},
    )
    with pytest.raises(ValueError, match="durability, with the workers of train: batch_size = 16 cannot"):
        Config.model_validate(tree)
