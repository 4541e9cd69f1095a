"""`plan` counts the tokens of judges and other named models, and the hours of their engines."""

import io

import pytest
from rich.console import Console

from pipeline.commands.plan import show_plan
from pipeline.config import Config

GUARD = {"path": "toy", "dtype": "float32", "engine": {"actors": 2}}
HARMFUL = {"path": "toy:harmful-heldout", "limit": 5}
RATING = {"kind": "rating", "model": "guard", "draw": {"max_tokens": 100}}
OWN = {"kind": "rating", "draw": {"max_tokens": 100}}


def planned(tmp_path, tokens_per_s: float = 100.0, **parts) -> list[str]:
    given = {
        "run_dir": str(tmp_path / "run"),
        "model": {"path": "toy", "dtype": "float32"},
        "models": {"guard": GUARD},
        "arms": {},
        **parts,
    }
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(Config.model_validate(given), tokens_per_s, console)
    return [line.strip() for line in console.export_text().splitlines()]


def new_tokens(lines: list[str], part: str) -> int:
    [line] = [line for line in lines if line.startswith(f"{part}: ")]
    return int(line.partition("at most ")[2].split()[0].replace(",", ""))


SUITES = {
    "safety": ("harmless", {"harmful": HARMFUL, "conditions": ["plain", "reminder"], "help": None}),
    "jailbreak": ("harmless", {"goals": HARMFUL, "attacks": ["none", "rot13"], "samples": 2}),
    "borderline": ("judge", {"prompts": HARMFUL, "samples": 3}),
    "c2_eval": (
        "judge",
        {"entries": {"path": "toy:detailed-heldout", "limit": 5}, "lengths": [3, 5], "paths": 4},
    ),
}
ASKING = {"borderline": "compliance", "c2_eval": "yes_no"}
VERDICTS = {"safety": 2, "jailbreak": 2 * (2 + 1), "borderline": 3, "c2_eval": 2 * 4}  # per row


@pytest.mark.parametrize("name", SUITES)
def test_the_verdicts_of_a_named_judge_are_counted_as_those_of_the_models_own(tmp_path, name):
    field, suite = SUITES[name]
    judge = {**RATING, "kind": ASKING.get(name, "rating")}
    own = {key: value for key, value in judge.items() if key != "model"}
    named = planned(tmp_path, suites={name: {**suite, field: judge}})
    alone = planned(tmp_path, suites={name: {**suite, field: own}})
    verdicts = new_tokens(named, f"evaluate {name} by guard")
    assert verdicts == 5 * VERDICTS[name] * 100
    assert new_tokens(named, f"evaluate {name}") + verdicts == new_tokens(alone, f"evaluate {name}")


@pytest.mark.parametrize("name", SUITES)
def test_more_judges_are_counted_each(tmp_path, name):
    _, suite = SUITES[name]
    judge = {**RATING, "kind": ASKING.get(name, "rating")}
    own = {key: value for key, value in judge.items() if key != "model"}
    lines = planned(tmp_path, suites={name: {**suite, "more_judges": {"big": judge, "own": own}}})
    assert new_tokens(lines, f"rejudge {name} by guard") == 5 * VERDICTS[name] * 100
    assert new_tokens(lines, f"rejudge {name}") == 5 * VERDICTS[name] * 100


def test_the_hours_are_those_of_the_judges_engines(tmp_path):
    suite = {**SUITES["safety"][1], "harmless": RATING, "answer": {"max_tokens": 360}}
    lines = planned(tmp_path, 1.0, suites={"safety": suite})
    [own] = [line for line in lines if line.endswith("for evaluate safety")]
    [guard] = [line for line in lines if line.endswith("for evaluate safety by guard")]
    assert "at most 1.00 h" in own, "5 rows × 2 conditions × 360 tokens at 1 token/s"
    assert "at most 0.14 h" in guard, "5 × 2 × 100 tokens, two actors"


def test_a_methods_judge_is_counted(tmp_path):
    method = {
        "name": "mistake_analysis",
        "instructions": {"path": "toy:harmful-train", "limit": 4},
        "verify": RATING,
        "gates": None,
        "mix": {"helpful": None},
    }
    lines = planned(tmp_path, methods={"m": method})
    assert new_tokens(lines, "generate m by guard") == 4 * 100


def test_an_aligned_model_that_generates_is_counted_with_its_engine(tmp_path):
    method = {
        "name": "course_correction",
        "instructions": {"path": "toy:detailed-train", "limit": 2},
        "aligned": {"model": "guard"},
    }
    lines = planned(tmp_path, 1.0, methods={"c": method}, train={"method": "dpo"})
    most = new_tokens(lines, "generate c")
    [hours] = [line for line in lines if "tokens/s per engine" in line]
    assert f"at most {most / 2 / 3600:.2f} h" in hours, "two actors"
