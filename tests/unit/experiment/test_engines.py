"""Which engines a run starts, and for whom."""

import pytest

from pipeline.errors import UserError

SERVER = {"kind": "openai", "url": "http://localhost:1/v1", "model": "m", "api_key_env": None}


def test_a_methods_engine_generates_and_the_runs_engine_evaluates(run, specs):
    run(recipe={"engine": SERVER})
    assert [(label, spec.engine.kind) for label, spec in specs] == [
        ("generate", "openai"),
        ("evaluate", "vllm"),
    ]


def test_methods_share_a_start_where_engine_and_model_are_the_same(run, specs):
    source = {"path": "toy:detailed-train", "limit": 3}
    mistakes = {"name": "mistake_analysis", "instructions": source}
    corrections = {"name": "course_correction", "instructions": source}
    server = {"engine": {**SERVER, "prefill": True}}
    for own, other, starts in (
        ({}, {}, 1),
        (server, {}, 2),
        (server, server, 1),
        (server, {"engine": {**SERVER, "prefill": True, "model": "other"}}, 2),
        ({"engine": {"kind": "vllm"}}, {}, 1),
    ):
        specs.clear()
        run(
            "generate",
            overwrite=True,
            instructions=None,
            methods={"a": {**mistakes, **own}, "b": {**corrections, **other}},
        )
        assert len(specs) == starts, (own, other)


def test_data_of_another_engine_is_refused_and_of_another_number_of_clients_is_not(run, specs):
    run("generate", recipe={"engine": SERVER})
    run("generate", recipe={"engine": {**SERVER, "actors": 4, "concurrency": 2, "timeout_s": 9}})
    assert len(specs) == 1
    with pytest.raises(UserError, match=r"model\.endpoint\.model: \"m\" in the run directory"):
        run("generate", recipe={"engine": {**SERVER, "model": "other"}})
    with pytest.raises(UserError, match=r"model\.endpoint"):
        run("generate")
    with pytest.raises(UserError, match=r"model\.dummy"):
        run("generate", engine={"kind": "dummy"})


def test_a_server_evaluates_the_base_model(run, specs):
    run("evaluate", instructions=None, engine=SERVER)
    assert [(label, spec.engine.kind, spec.adapters) for label, spec in specs] == [("evaluate", "openai", ())]
    with pytest.raises(UserError, match=r"model\.endpoint"):
        run("evaluate", instructions=None)


def test_a_rehearsal_generates_mixes_and_reports_without_the_model(run, calls):
    """Adapters are not read either: a machine without them can rehearse."""
    aligned = {"model": "good", "adapter": "/none"}
    good = {"path": "/on/another/machine", "engine": {"kind": "dummy"}}
    source = {"path": "toy:detailed-train", "limit": 3}
    run(
        "generate",
        "mix",
        instructions=None,
        model={"path": "/models/of/another/machine"},
        engine={"kind": "dummy", "actors": 2},
        train={"method": "dpo"},
        models={"good": good},
        methods={"c": {"name": "course_correction", "instructions": source, "aligned": aligned}},
    )
    assert calls == ["generate"]
