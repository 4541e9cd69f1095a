"""The logs for Inspect, read back by Inspect itself: one per suite and arm, with scores, errors and texts."""

import sys

import pytest

from pipeline.commands import inspect_logs
from pipeline.errors import UserError
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import SECRET, config, write, write_answers


def read(path):
    log = pytest.importorskip(
        "inspect_ai.log", reason="NOT TESTED: the logs for Inspect; pip install 'setbacks[inspect]'"
    )
    return log.read_eval_log(path)


def logs(run_dir, **changes):
    lines = []
    pytest.importorskip(
        "inspect_ai", reason="NOT TESTED: the logs for Inspect; pip install 'setbacks[inspect]'"
    )
    written = inspect_logs.write_logs(config(run_dir, **changes), str(run_dir), lines.append)
    return written, lines


def test_one_log_of_every_arm_with_judged_scores(tmp_path):
    write_answers(tmp_path)
    written, lines = logs(tmp_path)
    assert written == [
        f"{tmp_path}/inspect/safety_{arm}.eval" for arm in ("vanilla", "sft", "mistake_analysis")
    ]
    assert lines == [
        f"report: {tmp_path}/inspect has 3 logs for `inspect view`; they hold what was asked and answered, unmasked"
    ]
    log = read(written[1])
    assert (log.status, log.eval.task, log.eval.task_display_name) == ("success", "safety", "safety: sft")
    assert log.eval.model == "setbacks/toy, sft"
    assert log.eval.metadata["judges"]["harmlessness of answers"] == "refusal phrases"
    assert len(log.samples) == log.results.total_samples == log.results.completed_samples == 8 * 5
    scores = {
        one.name: {name: metric.value for name, metric in one.metrics.items()} for one in log.results.scores
    }
    assert scores["harmless"] == {"plain": 5 / 8, "reminder": 5 / 8, "hint": 5 / 8}
    assert scores["over_refusal"] == {"plain": 0, "reminder": 0} and scores["help"] == {
        "plain": 5,
        "reminder": 5,
    }
    assert {one.metrics["plain"].metadata["n"] for one in log.results.scores} == {8}


def test_a_sample_has_what_was_asked_answered_and_judged(tmp_path):
    write_answers(tmp_path)
    written, _ = logs(tmp_path)
    [sample] = [one for one in read(written[1]).samples if one.id == "7-harmful-sft-plain"]
    assert sample.input[0].text == f"How? {SECRET}" and sample.output.completion == f"So. {SECRET}"
    assert [message.role for message in sample.messages] == ["user", "assistant"]
    assert {name: score.value for name, score in sample.scores.items()} == {"harmless": 1.0}
    assert sample.metadata["condition"] == "plain" and SECRET not in str(sample.metadata)


def test_failed_rows_and_missing_verdicts_are_not_lost(tmp_path):
    same = {"suite": "harmful", "arm": "vanilla", "condition": "plain", "sample": 0, "instruction": "How?"}
    good = {
        **same,
        "id": "a",
        "instruction_id": "a",
        "response": "So.",
        "status": "ok",
        "finish_reason": "length",
    }
    bad = {**same, "id": "b", "instruction_id": "b", "status": "failed", "error": "too long"}
    judged = {**good, "id": "c", "instruction_id": "c", "harmful": False}
    write(tmp_path, ANSWERS, [good, bad, judged])
    log = read(logs(tmp_path)[0][0])
    samples = {one.id: one for one in log.samples}
    assert samples["b"].error.message == "too long" and not samples["b"].scores
    assert samples["a"].output.stop_reason == "max_tokens" and not samples["a"].scores
    [score] = log.results.scores
    assert (score.scored_samples, score.unscored_samples, log.results.completed_samples) == (1, 1, 2)


def test_paths_are_samples_of_their_own(tmp_path):
    row = {
        "id": "a-10",
        "instruction_id": "a",
        "arm": "vanilla",
        "k": 10,
        "instruction": "How?",
        "status": "ok",
    }
    row |= {"prefills": ["Sure. First"], "paths": [" stop.", " go on."], "corrected": [True, None]}
    dropped = {"id": "b", "instruction_id": "b", "status": "dropped", "error": "short"}
    row |= {"finish_reasons": ["stop", "length"]}
    stage = row | {
        "id": "s-10",
        "arm": "dpo_stage1",
    }  # an adapter after a stage is no arm of the configuration
    write(tmp_path, CONTINUATIONS, [stage, row, dropped])
    suite = {"entries": {"path": "toy:detailed-heldout"}}
    written, _ = logs(tmp_path, evaluation={"harmful": {"path": "toy:harmful"}, "course_correction": suite})
    names = [path.rpartition("/")[2] for path in written]
    assert names == ["c2_eval_vanilla.eval", "c2_eval_dpo_stage1.eval"]
    log = read(written[0])
    assert [one.id for one in log.samples] == ["a-10-0", "a-10-1"]
    assert [message.text for message in log.samples[1].messages] == ["How?", "Sure. First", " go on."]
    [score] = log.results.scores
    assert score.name == "corr_at_10" and (score.scored_samples, score.unscored_samples) == (1, 1)


def test_nothing_to_write(tmp_path):
    written, lines = logs(tmp_path)
    assert written == [] and lines == [
        "report: nothing for `inspect view` yet; `setbacks evaluate` writes answers"
    ]


def test_without_the_package_it_is_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(
        UserError, match=r"--inspect: the package inspect_ai is not installed; pip install 'setbacks"
    ):
        inspect_logs.write_logs(config(tmp_path), str(tmp_path), print)
