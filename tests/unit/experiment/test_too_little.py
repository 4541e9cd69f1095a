"""Runs of which too little comes out: failed rows, sources without what is needed, gates."""

import json

import pytest

from pipeline.errors import RowFailed, RunFailed, UserError
from tests.scripted import ScriptedChat
from tests.unit.experiment.runs import CORRECTION, EVERYTHING


def test_failed_rows_are_run_again_when_asked(run, calls, tmp_path):
    """A row without a reference response fails in the recipe; a malformed one has nothing to run again."""
    asks = tmp_path / "asks.jsonl"
    asks.write_text(
        '{"instruction": "a", "unsafe_response": "do"}\n{"instruction": "b"}\n{"instruction": ""}\n'
    )
    settings = {"instructions": {"path": str(asks)}, "recipe": {"mistake": "reference"}}
    told = [run("generate", retry_failed=retry, **settings) for retry in (False, False, True)]
    assert told[0][1:] == told[1] == told[2][2:] and told[2][1] == told[0][0]
    assert (
        "3 rows read, 2 used (1 with an unsafe response), 1 malformed (instruction is empty: 1)" in told[0][0]
    )
    assert told[0][1].startswith("generate: 3 rows (2 failed, 1 ok)")
    assert told[2][0] == "generate: rerunning 1 failed rows"
    assert calls == ["generate", "generate"]


def test_malformed_rows_alone_start_nothing(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a"}\n{"instruction": ""}\n')
    for retry in (False, True):
        run("generate", instructions={"path": str(asks)}, retry_failed=retry)
    assert calls == ["generate"]


def test_where_every_row_failed_no_later_stage_goes_on(run, tmp_path, monkeypatch):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    settings = {
        "instructions": {"path": str(asks)},
        "recipe": {"filter": True, "verify": {"kind": "refusal"}},
    }
    monkeypatch.setattr(ScriptedChat, "__call__", too_long)
    for _ in range(2):  # the second run finds the data set complete
        with pytest.raises(RunFailed, match="all 2 rows failed, most with: prompt too long"):
            run("generate", **settings)


LOST = "it is harmful " * 9


def faulty(monkeypatch, error: Exception | None = None) -> None:
    """Every analysis is a loop, or a call that fails, but that of the lucky request."""
    say = ScriptedChat.__call__

    async def answer(chat, messages, sampling, *, step, **options):
        if step == "analyse" and "lucky" not in messages[0]["content"]:
            chat = ScriptedChat(analyse=error or LOST)
        return await say(chat, messages, sampling, step=step, **options)

    monkeypatch.setattr(ScriptedChat, "__call__", answer)


def requests(tmp_path) -> dict:
    """Ten requests, one of them lucky."""
    asks = tmp_path / "asks.jsonl"
    rows = [{"instruction": f"forge {i}" if i else "a lucky one", "safe_response": "no"} for i in range(10)]
    asks.write_text("\n".join(map(json.dumps, rows)))
    return {"instructions": {"path": str(asks)}, "mix": {"helpful": None}}


def test_data_of_which_too_little_is_usable_is_told_loudly_and_not_trained_on(
    run, calls, tmp_path, monkeypatch
):
    faulty(monkeypatch)
    settings = requests(tmp_path)
    told = run("generate", **settings)
    few = f"only 1 of 10 rows (10.0%) of {tmp_path}/run/mistakes are usable"
    why = "most others are lost with: analyse: degenerate repetition (9)"
    assert told[-1] == f"WARNING: generate: {few}, {why}"
    with pytest.raises(
        UserError, match=r"methods\.mistakes\.min_usable = 0\.25: only 1 of 10 .*set it lower"
    ):
        run("mix", **settings)
    with pytest.raises(UserError, match=r"min_usable = 0\.25"):
        run(**settings)  # before an engine starts
    lower = {**settings, "recipe": {"min_usable": 0.1}}
    assert run("mix", **lower)[-1].startswith("mix: 11 rows")
    with pytest.raises(UserError, match=r"min_usable = 0\.25"):
        run("train", **settings)
    run(**lower)
    assert calls == EVERYTHING
    run(**settings)  # nothing is left to do


def test_a_whole_run_ends_in_mix_if_too_little_is_usable(run, calls, tmp_path, monkeypatch):
    faulty(monkeypatch)
    with pytest.raises(RunFailed, match=r"mix: methods\.mistakes\.min_usable = 0\.25: only 1 of 10 rows"):
        run(**requests(tmp_path))
    assert calls == ["generate"]


def test_rows_that_failed_can_be_run_again_although_too_few_are_usable(run, calls, tmp_path, monkeypatch):
    settings = requests(tmp_path)
    with monkeypatch.context() as patch:
        faulty(patch, RowFailed("prompt too long: 9 tokens"))
        assert run("generate", **settings)[-1].startswith("WARNING: generate: only 1 of 10 rows")
    run(retry_failed=True, **settings)
    assert calls == ["generate", *EVERYTHING]


def test_a_rehearsal_without_a_model_is_not_gated(run, tmp_path, monkeypatch):
    faulty(monkeypatch)
    settings = requests(tmp_path)
    assert run("generate", engine={"kind": "dummy"}, **settings)[0].startswith("generate: 10 rows (10 ok)")


async def too_long(*_arguments, **_options):
    raise RowFailed("prompt too long: 9 tokens")


def test_a_source_of_malformed_rows_alone_is_refused_before_anything_starts(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": ""}\n{"instruction": null}\n')
    with pytest.raises(UserError, match=r"of its first 2 rows can be used \(instruction is empty: 1, inst"):
        run(instructions={"path": str(asks)})
    assert calls == [] and not (tmp_path / "run").exists()


def test_nothing_to_train_on(run, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "without a safe response", "help": "Well."}\n')
    changes = {"instructions": {"path": str(bare)}, "mix": {"analysis": 0}}
    with pytest.raises(UserError, match="has a safe response"):
        run(**changes)


def test_a_kind_that_an_arm_is_trained_on_and_no_row_has_ends_the_stage(run, calls, tmp_path):
    """Found before anything starts if a source has no response at all, and in `mix` if the rows read have
    none."""
    helpful = tmp_path / "helpful.jsonl"
    helpful.write_text('{"instruction": "a", "said": "b"}\n' * 3)
    with pytest.raises(UserError, match=r"mix\.helpful: .*first 3 rows .*\(columns not used: said\)"):
        run(mix={"helpful": {"path": str(helpful)}})
    assert calls == []
    rows = [f'{{"instruction": "{i}", "safe_response": null, "said": "b"}}\n' for i in range(40)]
    helpful.write_text("".join(rows) + '{"instruction": "c", "safe_response": "d", "said": ""}\n')
    settings = {"mix": {"helpful": {"path": str(helpful), "limit": 41}, "helpful_ratio": 0.1}}
    with pytest.raises(RunFailed, match=r"no example of kind helpful, on which arms\.sft is trained") as e:
        run(**settings)
    assert "\n" not in str(e.value)
    run(**settings, arms={"only_safe": {"kinds": ["safe"]}})


def test_a_source_without_safe_responses_is_refused_before_generate_and_ends_mix(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a", "aid": "b"}\n')
    with pytest.raises(
        UserError, match=r"safe response; .*columns not used: aid\); or leave safe out of arms"
    ):
        run(instructions={"path": str(asks)})
    assert calls == []
    run("generate", instructions={"path": str(asks)})
    with pytest.raises(RunFailed, match=r"kind safe, .*instructions = .*columns not used: aid; name its col"):
        run("mix", instructions={"path": str(asks)})


def test_where_every_request_is_dropped_no_later_stage_goes_on(correct, calls):
    with pytest.raises(
        RunFailed,
        match="generate: all 3 rows dropped, most with: no keyword in the request; change the source",
    ):
        correct(recipe={**CORRECTION["recipe"], "keywords": ["xyz"]})
    assert calls == ["generate"]
