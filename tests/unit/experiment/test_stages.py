"""The main path with a scripted model in place of engine, cluster and trainer: what is made, resumed, refused
and made again."""

from dataclasses import replace

import pytest

from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.run import Run
from pipeline.schema import STAGES
from tests import scripted
from tests.unit.experiment.runs import EVERYTHING, metrics


def test_a_whole_run_is_made_once(run, calls, tmp_path):
    told = run()
    assert calls == EVERYTHING
    assert told[0].startswith("generate: 4 rows (4 ok) → ")
    assert told[1].startswith("mix: 12 rows → ")
    assert [line for line in told if line.startswith("evaluate: 18 rows (18 ok) → ")]
    assert run() == told
    assert calls == EVERYTHING
    assert metrics(tmp_path) == ["generate", "mix", "train", "train", "evaluate"]


def test_stages_run_alone_make_the_same(run, calls):
    for stage in (stage for stage in STAGES[:-1] if stage != "rejudge"):
        run(stage)
    run()
    assert calls == EVERYTHING


def test_an_earlier_stage_made_again_makes_the_later_ones_again(run, calls):
    run()
    run("generate", overwrite=True, seed=0, recipe={"samples": 2})
    del calls[:]
    run(recipe={"samples": 2})
    assert calls == EVERYTHING[1:]


def test_one_stage_is_overwritten_alone(run, calls):
    run()
    del calls[:]
    run("train", overwrite=True)
    assert calls == EVERYTHING[1:3]
    run("train")
    run("evaluate")
    assert calls == EVERYTHING[1:3]  # the same adapters came out: nothing to evaluate anew


CHANGES = {
    "mistake_analysis.samples: 1 in the run directory, 2 in this config": {"recipe": {"samples": 2}},
    "seed: 0 in the run directory, 1 in this config": {"seed": 1},
    "mix.safe: 1.0 in the run directory, 0.5 in this config": {
        "mix": {"safe": 0.5, "helpful": {"path": "toy:helpful-train"}}
    },
    "train.epochs: 3.0 in the run directory, 1.0 in this config": {"train": {"epochs": 1}},
    'model.path: "org/model" in the run directory, "org/other" in this config': {
        "model": {"path": "org/other"}
    },
    "suites.safety.samples: 1 in the run directory, 2 in this config": {
        "evaluation": {
            "harmful": {"path": "toy:harmful-heldout", "limit": 2},
            "samples": 2,
            "answer": {"temperature": 1},
        }
    },
}


@pytest.mark.parametrize(("difference", "change"), CHANGES.items())
def test_another_configuration_is_refused_before_anything_starts(
    run, calls, tmp_path, monkeypatch, difference, change
):
    run()
    before = (tmp_path / "run" / "config.yaml").read_text()
    calls.machinery = replace(calls.machinery, session=lambda _run_dir: pytest.fail("Ray was started"))
    with pytest.raises(UserError) as e:
        run(**change)
    assert difference in str(e.value)
    assert (
        tmp_path / "run" / "config.yaml"
    ).read_text() == before  # it still says what the data was made with
    assert calls == EVERYTHING


def test_a_report_under_other_settings_says_which_are_not_those_of_the_data(run, monkeypatch):
    monkeypatch.setattr("pipeline.commands.report.write_report", lambda *_arguments: ("a.html", "a.md"))
    run()
    assert not [line for line in run("report") if line.startswith("WARNING")]
    warned = [line for line in run("report", seed=5) if line.startswith("WARNING")]
    assert warned[0].startswith(
        "WARNING: mistakes was made with other settings than the configuration's (seed: 0 "
    )


def test_a_stage_on_data_of_other_settings_says_so(run):
    run("generate")
    [warned] = [line for line in run("mix", recipe={"samples": 2}) if line.startswith("WARNING")]
    assert (
        "mistakes was made with other settings than the configuration's (mistake_analysis.samples" in warned
    )


def test_an_empty_directory_gets_no_report(run, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="contains no run"):
        run("report")
    assert not [*(tmp_path / "run").iterdir()]


def test_a_change_of_the_judge_leaves_generation_and_training_alone(run, calls, tmp_path):
    run()
    (tmp_path / "judge.yaml").write_text("help: 'Rate {{ response }}'")
    evaluation = {"harmful": {"path": "toy:harmful-heldout", "limit": 2}}
    evaluation["help"] = {"kind": "rating", "prompts": str(tmp_path / "judge.yaml")}
    run("generate", "mix", "train", evaluation=evaluation)
    assert calls == EVERYTHING
    run("evaluate", overwrite=True, evaluation=evaluation)
    assert calls == [*EVERYTHING, "evaluate"]


def test_resources_may_change_between_runs(run, calls):
    run()
    run(engine={"actors": 4, "max_num_seqs": 8})
    assert calls == EVERYTHING


def test_another_arm_is_trained_and_evaluated_beside_the_others(run, calls):
    run(arms={"sft": {"kinds": ["safe"]}})
    run(arms={"sft": {"kinds": ["safe"]}, "more": {"kinds": ["analysis"]}})
    assert calls == ["generate", "train sft", "evaluate", "train more", "evaluate"]


def test_without_helpful_pairs(run):
    told = run(mix={"helpful": None})
    assert told[1].startswith("mix: 8 rows")


def test_two_sources_may_be_the_same_file(run, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text("".join(f'{{"instruction": "{i}", "safe_response": "no"}}\n' for i in range(3)))
    source = {"path": str(asks)}
    told = run(
        instructions=source, mix={"helpful": source}, evaluation={"harmful": source, "helpful": source}
    )
    assert told[1].startswith("mix: 9 rows")
    # 3 instructions x 3 arms x (3 + 2) conditions
    assert [line for line in told if line.startswith("evaluate: 45 rows (45 ok)")]


def test_samples_are_rows_of_their_own(run, tmp_path):
    run("generate", recipe={"samples": 3})
    rows = list(
        Run(scripted.config(tmp_path / "run")).generated["mistakes"].dataset.rows(["id", "instruction_id"])
    )
    assert len({row["id"] for row in rows}) == 12
    assert len({row["instruction_id"] for row in rows}) == 4


def test_a_training_that_was_begun_is_not_begun_again_on_other_data(run, calls, tmp_path):
    class Interrupted(calls.machinery.trainer):
        def result(self, name, on_progress):
            storage.write_text(f"{self.arms[name].state}/0123456789abcdef/done-1", "days of work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(machinery=replace(calls.machinery, trainer=Interrupted))
    run("mix", overwrite=True)
    [work] = (tmp_path / "run" / ".state").rglob("done-1")
    run("train")  # the same data again
    with pytest.raises(KeyboardInterrupt):
        run("train", overwrite=True, machinery=replace(calls.machinery, trainer=Interrupted))
    changed = {"mix": {"helpful": {"path": "toy:helpful-train"}, "safe": 0.5}}
    run("mix", overwrite=True, **changed)
    with pytest.raises(UserError, match=r"adapter/sft is partly trained on other data \(sft: .*--overwrite"):
        run("train", **changed)
    assert work.read_text() == "days of work"
    run("train", overwrite=True, **changed)


def test_a_deleted_adapter_is_trained_again(run, calls, tmp_path):
    run()
    storage.remove(str(tmp_path / "run" / "adapter" / "sft"))
    with pytest.raises(UserError, match=r"adapter/sft is not complete: run `setbacks train` first"):
        run("evaluate")
    run()
    assert calls == [*EVERYTHING, "train sft"]


def test_a_card_that_a_crash_left_out_is_written(run, tmp_path):
    run("generate")
    (tmp_path / "run" / "mistakes" / "README.md").unlink()
    run("generate")
    assert (tmp_path / "run" / "mistakes" / "README.md").exists()
