"""`--suite NAME` checks what the chosen suites need: judges of the others may be missing or broken."""

import pytest

from pipeline import preflight
from pipeline.errors import UserError
from pipeline.preflight.fit import others
from pipeline.run import Run
from tests import scripted
from tests.unit.inference.test_passes import BASE, cluster, run

__all__ = ["cluster"]  # a fixture

SERVER = {"engine": {"kind": "openai", "url": "http://h/v1", "model": "m", "api_key_env": "NO_SUCH_KEY"}}
MISSING = {"path": "/nowhere/guard"}


def config(tmp_path, guard: dict, judge: dict | None = None, **safety):
    return scripted.config(
        tmp_path / "run",
        model={"path": BASE},
        models={"guard": guard},
        instructions=None,
        suites={
            "safety": {
                "harmful": {"path": "toy:harmful-heldout", "limit": 2},
                "harmless": judge or {"kind": "rating", "model": "guard"},
                "help": None,
                **safety,
            },
            "borderline": {"prompts": {"path": "toy:helpful-heldout", "limit": 2}},
        },
    )


WRONG = {
    "key": (SERVER, {}, r"models\.guard\.engine\.api_key_env = NO_SUCH_KEY"),
    "model": (MISSING, {}, r"models\.guard\.path = /nowhere/guard"),
    "prompts": (MISSING, {"prompts": "/nowhere/prompts.yaml"}, r"/nowhere/prompts\.yaml"),
    "more judges": (
        SERVER,
        {"harmless": {"kind": "refusal"}, "more_judges": {"x": {"kind": "rating", "model": "guard"}}},
        r"models\.guard\.engine\.api_key_env = NO_SUCH_KEY",
    ),
}


@pytest.mark.parametrize(("guard", "safety", "told"), WRONG.values(), ids=WRONG)
def test_a_broken_judge_of_another_suite_hinders_no_suite(cluster, tmp_path, guard, safety, told):
    made = config(tmp_path, guard, **safety)
    stages = ["evaluate", "rejudge"]
    run(cluster, made, *stages, suites=["borderline"])
    assert len(list(Run(made, suites=["borderline"]).suites["borderline"].dataset.rows())) == 2
    with pytest.raises(UserError, match=told):
        run(cluster, made, *stages, suites=["safety"])
    with pytest.raises(UserError, match=told):
        run(cluster, made, *stages)


def test_models_of_other_suites_are_not_loaded_or_given_room(cluster, tmp_path, monkeypatch):
    seen = []

    def check(config, stages, suites, directory):
        seen.append(([one.field for one in others(config, stages)], suites))
        return []

    monkeypatch.setattr(preflight, "check_models", check)
    made = config(tmp_path, {"path": "org/guard"})
    run(cluster, made, "evaluate", suites=["borderline"])
    run(cluster, made, "evaluate", suites=["safety"])
    assert seen == [([], {"borderline"}), (["models.guard"], {"safety"})]


def test_the_run_directory_keeps_the_whole_configuration(cluster, tmp_path):
    from pipeline.config import load

    run(cluster, config(tmp_path, {"path": "org/guard"}), "evaluate", suites=["borderline"])
    assert set(load(tmp_path / "run" / "config.yaml").suites.items()) == {"safety", "borderline"}
