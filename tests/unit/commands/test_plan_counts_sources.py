"""`plan` counts the work of every source of a suite, and of judges whose rows cannot be read from here."""

import pytest
from rich.console import Console

from pipeline.commands.plan import show_plan
from pipeline.config import Config

ASKED = {"path": "toy:harmful-heldout", "limit": 5}
BENIGN = {"path": "toy:helpful-heldout", "limit": 3}
SERVER = {"engine": {"kind": "openai", "url": "http://judge:1/v1", "model": "m", "api_key_env": None}}
RATING = {"kind": "rating", "draw": {"max_tokens": 10}}


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The parts of the work of a plan: stage, name, what is counted, tokens."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def planned(**parts) -> list[tuple]:
        import json
        from contextlib import redirect_stdout
        from io import StringIO

        given = {"run_dir": str(tmp_path / "run"), "model": {"path": "toy"}, "models": {"strong": SERVER}}
        out = StringIO()
        with redirect_stdout(out):
            show_plan(Config.model_validate(given | parts), console=Console(quiet=True), as_json=True)
        return [tuple(part.values()) for part in json.loads(out.getvalue())["work"]]

    return planned


def test_benign_instructions_are_counted_beside_harmful_ones(work):
    suite = {
        "harmful": ASKED,
        "helpful": BENIGN,
        "conditions": ["plain", "reminder", "hint"],
        "answer": {"max_tokens": 100},
        "harmless": RATING,
        "help": {"draw": {"max_tokens": 1}},
    }
    harmful, benign = work(suites={"safety": suite})
    assert harmful[3] == 5 * 3 * (100 + 10 + 1)
    assert benign[2] == "3 rows of helpful × 2 conditions × 1 sample × (100 + 1) tokens × 1 arm"
    assert benign[3] == 3 * 2 * (100 + 1), "not under the hint, and no verdict on harm"


def test_a_server_rates_benign_answers_for_help_only(work):
    suite = {
        "harmful": ASKED,
        "helpful": BENIGN,
        "conditions": ["plain"],
        "harmless": {**RATING, "model": "strong"},
        "help": {"model": "strong", "draw": {"max_tokens": 1}},
    }
    by_server = [part for part in work(suites={"safety": suite}) if part[3] in (5 * 11, 3 * 1)]
    assert [part[2] for part in by_server] == [
        "5 rows × 1 condition × 1 arm",
        "3 rows of helpful × 1 condition × 1 arm",
    ]


def test_benign_instructions_that_are_never_asked_are_not_counted(work):
    assert len(work(suites={"safety": {"harmful": ASKED, "helpful": BENIGN, "conditions": ["hint"]}})) == 1


def test_the_unsafe_half_of_borderline_prompts_is_counted(work):
    suite = {"prompts": BENIGN, "unsafe": ASKED, "samples": 2, "answer": {"max_tokens": 7}}
    assert [part[3] for part in work(suites={"borderline": suite})] == [3 * 2 * 7, 5 * 2 * 7]


@pytest.fixture
def no_hub(monkeypatch):
    """No time is lost on a hub that does not answer."""
    for module in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
        monkeypatch.setattr(module, True)


def test_a_judge_is_counted_although_the_source_is_out_of_reach(work, no_hub):
    method = {
        "name": "mistake_analysis",
        "instructions": {"path": "hub:nobody/nothing", "limit": 4},
        "verify": {**RATING, "model": "strong"},
        "induce": {"max_tokens": 2},
        "analyse": {"max_tokens": 3},
    }
    own, judge = work(methods={"mistakes": method})
    assert own[3] == 4 * (2 + 3) and judge[3] == 4 * 10


def test_borderline_categories_of_a_hub_out_of_reach_stop_no_plan(work, no_hub):
    suite = {"prompts": {"path": "hub:nobody/nothing"}, "unsafe_categories": ["contrast_*"]}
    assert work(suites={"borderline": suite}) == [("evaluate", "borderline", None, None)]
