"""`plan` says whether models stand side by side or take turns, as a run on the same nodes would."""

import io

import pytest
from rich.console import Console

from pipeline import placement
from pipeline.commands.plan import show_plan
from pipeline.config import Config
from pipeline.placement import Node

GPU = {"num_gpus": 1}


def planned(tmp_path, monkeypatch, node: Node, engine: dict, guard: dict) -> str:
    monkeypatch.setattr(placement, "this_machine", lambda: [node])
    made = Config.model_validate(
        {
            "run_dir": str(tmp_path / "run"),
            "model": {"path": "org/base"},
            "engine": engine,
            "models": {"guard": {"path": "org/guard", "engine": guard}},
            "suites": {
                "safety": {
                    "harmful": {"path": "toy:harmful-heldout", "limit": 2},
                    "harmless": {"kind": "llama_guard", "model": "guard"},
                    "more_judges": {"again": {"kind": "rating", "model": "guard"}},
                }
            },
        }
    )
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(made, None, console)
    return console.export_text()


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_plan_says_whether_models_stand_side_by_side(tmp_path, monkeypatch, gpus):
    text = planned(tmp_path, monkeypatch, Node("", "here", 8, gpus), GPU, GPU)
    beside, turn = "beside the engines above, since there is room for both", "a pass of its own, after the"
    [evaluate, rejudge] = [line for line in text.splitlines() if "models.guard: " in line]
    assert ((turn, beside)[gpus - 1]) in evaluate
    assert turn in rejudge, "its rows ask one model"


def test_engines_on_cpus_take_turns_on_one_machine(tmp_path, monkeypatch):
    assert "a pass of its own" in planned(tmp_path, monkeypatch, Node("", "here", 64, 0), {}, {})
