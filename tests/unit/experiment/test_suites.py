"""Course correction and its suite go the same way, each suite on its own."""

from dataclasses import replace

import pytest

from pipeline import experiment, models
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.run import Run
from tests import scripted
from tests.unit.experiment.runs import CORRECTION, metrics, suites_recorded

pytestmark = pytest.mark.usefixtures("no_figures")


def test_course_correction_goes_the_same_way(correct, calls, tmp_path):
    told = correct()
    assert calls == ["generate", "train dpo", "evaluate"], "both suites in one pool"
    assert told[0].startswith("generate: 3 rows (3 ok) → ") and told[0].endswith("/corrections")
    assert told[1].startswith("mix: 45 rows → ") and told[1].endswith("/preferences")
    assert told[3].startswith("evaluate: 4 rows (4 ok) → ")  # 2 instructions x 2 arms
    [evaluated] = [line for line in told if line.startswith("evaluate: 8 rows")]
    assert evaluated.startswith("evaluate: 8 rows (8 ok) → ") and evaluated.endswith(
        "/continuations"
    )  # 2 entries x 2 arms x 2 lengths
    assert correct() == told and len(calls) == 3
    assert metrics(tmp_path) == ["generate", "mix", "train", "evaluate", "evaluate"]


def test_each_suite_is_whole_and_recorded_as_soon_as_it_is_done(correct, calls, tmp_path, monkeypatch):
    """The run dies in the second suite; the same command goes on with that one alone."""
    said = []

    def dies(jobs, *arguments, **options):
        running = calls.machinery.engines(jobs, *arguments, **options)
        yield next(running)
        raise RunFailed("the second suite's engine died")

    def making(*outputs):
        said.append(outputs)

    monkeypatch.setattr("pipeline.runtime.attempt.making", making)
    correct("generate", "mix", "train")
    with pytest.raises(RunFailed, match="the second suite's engine died"):
        correct("evaluate", machinery=replace(calls.machinery, engines=dies))
    assert said[-1] == ("evaluation", "continuations"), "both are being made at once"
    run = Run(scripted.config(tmp_path / "run", **CORRECTION))
    assert run.suites["safety"].complete and run.suites["c2_eval"].work(), "both lists come first"
    assert run.suites["c2_eval"].complete is None
    assert (tmp_path / "run/evaluation/README.md").exists() and suites_recorded(tmp_path) == ["safety"]
    told = correct("evaluate")
    assert [line.rsplit("/", 1)[1] for line in told] == ["evaluation", "continuations"]
    assert said[-1] == ("continuations",)
    assert suites_recorded(tmp_path) == ["safety", "c2_eval"]
    assert correct("evaluate") == told and calls[-2:] == ["evaluate", "evaluate"] and len(calls) == 4


def test_a_suite_with_failed_rows_is_run_again_without_the_other(correct, calls, tmp_path, monkeypatch):
    from pipeline.suites.c2_eval.recipe import ContinuationRecipe

    async def fails(self, row, chat):
        raise RowFailed("prompt too long: 9 tokens")

    with monkeypatch.context() as patched:
        patched.setattr(ContinuationRecipe, "__call__", fails)
        with pytest.raises(RunFailed, match="evaluate: all 8 rows failed"):
            correct()
    told = correct("evaluate", retry_failed=True)
    assert told[0] == "evaluate: rerunning 8 failed rows"
    counted = [line.split(" → ")[0] for line in told[1:]]
    assert counted == ["evaluate: 4 rows (4 ok)", "evaluate: 8 rows (8 ok)"]
    assert suites_recorded(tmp_path) == ["safety", "c2_eval", "c2_eval"]


def test_one_suite_is_evaluated_alone(correct, calls, tmp_path):
    correct("generate", "mix", "train")
    config = scripted.config(tmp_path / "run", **CORRECTION)
    experiment.run(
        config, ["evaluate"], suites=["c2_eval"], log=lambda _line: None, machinery=calls.machinery
    )
    assert calls[-1] == "evaluate" and not (tmp_path / "run" / "evaluation").exists()
    with pytest.raises(UserError, match="--suite jailbreak: the configuration has no such suite"):
        experiment.run(config, suites=["jailbreak"])
    with pytest.raises(UserError, match=r"--suite nope: .* no such suite; it has safety, c2_eval$"):
        experiment.run(config, suites=["nope"])


def test_another_way_of_sampling_paths_is_refused(correct):
    correct()
    suite = {**CORRECTION["evaluation"]["course_correction"], "draw": {"max_tokens": 8}}
    changed = {**CORRECTION["evaluation"], "course_correction": suite}
    with pytest.raises(UserError, match=r"continuations was made with another configuration .*draw"):
        correct(evaluation=changed)


def test_a_configuration_that_only_evaluates(run, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    settings = {
        "instructions": None,
        "evaluation": {"course_correction": CORRECTION["evaluation"]["course_correction"]},
    }
    config = scripted.config(tmp_path / "only", **settings)
    told = []
    experiment.run(config, log=told.append, machinery=calls.machinery)
    assert calls == ["evaluate"] and told[0].startswith("evaluate: 4 rows (4 ok)")
    with pytest.raises(UserError, match="methods is missing: generate needs one"):
        experiment.run(config, ["generate"])
