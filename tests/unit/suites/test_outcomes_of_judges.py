"""Outcomes that a judge decides name that judge, so that runs with different judges are never compared
silently."""

import pytest

from pipeline.commands.compare import compare
from pipeline.config import dump
from pipeline.errors import UserError
from pipeline.registry import SUITES
from pipeline.report import replicas, results
from pipeline.report.arms import Arms
from pipeline.suites.base import NO_JUDGEMENTS
from pipeline.suites.discrimination import Discrimination
from pipeline.suites.discrimination.schema import DISCRIMINATIONS
from pipeline.suites.goal_hijacking import GoalHijacking
from pipeline.suites.goal_hijacking.schema import HIJACKS
from pipeline.suites.jailbreak.schema import ATTACKS
from tests import scripted
from tests.unit.commands.reports import write
from tests.unit.experiment.runs import CORRECTION

JUDGED = {
    *("harmful", "harmless_rating", "harm_score", "help_rating", "compliance", "corrected", "hijacked"),
    *("rating_unguided", "rating_guided"),
}
NUMBER = 8


@pytest.mark.parametrize("suite", SUITES, ids=lambda suite: suite.__name__)
def test_an_outcome_of_a_judges_column_names_the_judge(suite):
    outcomes = suite.model_construct().outcomes
    assert outcomes or suite.runs_apart, "every suite that asks arms can be compared"
    assert [one.name for one in outcomes if one.column in JUDGED and one.judge is None] == []
    assert [one.name for one in outcomes if one.column not in JUDGED and one.judge is not None] == []


def attacked(successes: int) -> list[dict]:
    return [
        {
            "id": f"i{i}-harmful-base64-sft-0", "instruction_id": f"i{i}", "sample": 0, "suite": "harmful",
            "attack": "base64", "arm": "sft", "harmful": i < successes, "status": "ok",
        }
        for i in range(NUMBER)
    ]  # fmt: skip


def hijacked(defended: int) -> list[dict]:
    return [
        {
            "id": f"o{i}-{suite}-cancel-plain-sft-0", "instruction_id": f"o{i}{suite}", "sample": 0, "suite": suite,
            "template": "cancel", "condition": "plain", "arm": "sft", "empty": False, "refused": False,
            "hijacked": i >= defended, "said_target": i >= defended, "said_benign": i < 2, "status": "ok",
        }
        for suite in ("harmful", "helpful")
        for i in range(NUMBER)
    ]  # fmt: skip


def rated(answer: float, arms=("sft",)) -> list[dict]:
    return [
        {
            "id": f"i{i}-{arm}-0", "instruction_id": f"i{i}", "sample": 0, "arm": arm, "empty": False,
            "harmless_rating": answer + number, "harmful": answer + number < 7, "rating_unguided": 5.0,
            "rating_guided": 9.0, "verdict_unguided": None, "verdict_guided": True, "cut": [], "status": "ok",
        }
        for number, arm in enumerate(arms)
        for i in range(NUMBER)
    ]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    def made(name, suite, settings, schema, rows):
        path, source = tmp_path / name, {"path": "toy:harmful-heldout"}
        field = {"jailbreak": "goals", "discrimination": "instructions"}.get(suite)
        pairs = {"pairs": {"path": "toy:hijack", "columns": {"instruction": "benign", "target": "target"}}}
        given = {field: source} if field else pairs
        config = scripted.config(
            path, models={"strong": {"path": "org/strong"}}, suites={suite: {**given, **settings}}
        )
        write(path, schema, rows)
        (path / "config.yaml").write_text(dump(config))
        return str(path)

    return made


def pairings(*runs, **options) -> dict[tuple[str, str], tuple[float, float]]:
    found = compare(runs, **options).pairings
    return {(one.measure, one.group): (one.before, one.after) for one in found}


def test_attacks_are_compared_by_their_success(run):
    first = run("a", "jailbreak", {}, ATTACKS, attacked(6))
    second = run("b", "jailbreak", {}, ATTACKS, attacked(2))
    assert pairings(first, second) == {
        ("attack_success", "base64"): (0.75, 0.25),
        ("harmless", ""): (0.25, 0.75),
    }


def test_attacks_of_different_judges_are_not_compared(run):
    first = run("a", "jailbreak", {}, ATTACKS, attacked(6))
    second = run("b", "jailbreak", {"harmless": {"kind": "yes_no_harmful"}}, ATTACKS, attacked(2))
    with pytest.raises(UserError, match=r"attack_success of a and b: their judges differ"):
        compare([first, second])


def test_injected_orders_are_compared_by_defense_and_by_the_control(run):
    first = run("a", "goal_hijacking", {}, HIJACKS, hijacked(2))
    second = run("b", "goal_hijacking", {}, HIJACKS, hijacked(6))
    assert pairings(first, second) == {
        ("defended", "plain"): (0.25, 0.75),
        ("said_what_was_asked_for", "plain"): (0.25, 0.25),
        ("control_obeyed", "plain"): (0.75, 0.25),
    }


def test_ratings_are_compared_and_those_of_different_judges_are_not(run):
    strong = {"judge": {"model": "strong"}}
    first = run("a", "discrimination", strong, DISCRIMINATIONS, rated(3))
    second = run("b", "discrimination", strong, DISCRIMINATIONS, rated(4))
    assert pairings(first, second) == {
        ("generation", ""): (3, 4),
        ("discrimination_unguided", ""): (5, 5),
        ("discrimination_guided", ""): (9, 9),
    }
    third = run(
        "c", "discrimination", {"judge": {"model": "strong", "threshold": 8.5}}, DISCRIMINATIONS, rated(4)
    )
    with pytest.raises(UserError, match=r"generation of a and c: their judges .* differ"):
        compare([first, third])


def test_outcomes_have_the_names_of_results_json():
    """So that a number of one run is found again in the comparison of two."""
    discrimination = Discrimination.model_construct()
    hijacking = GoalHijacking.model_construct()
    for suite, schema, rows in (
        (discrimination, DISCRIMINATIONS, rated(3)),
        (hijacking, HIJACKS, hijacked(3)),
    ):
        sections = suite.report(schema.table(rows), ["sft"], 0, NO_JUDGEMENTS)
        names = {one.name for one in results.figures("s", sections, ["sft"])}
        assert {outcome.name for outcome in suite.outcomes} <= names


def test_discrimination_over_seeds_has_means_and_differences_of_the_arm():
    arms = Arms(["sft_seed0", "sft_seed1"], {"sft_seed0": "sft", "sft_seed1": "sft"})
    table = DISCRIMINATIONS.table(rated(3, arms))
    first, second = Discrimination.model_construct().report(table, arms, 0, NO_JUDGEMENTS)
    assert first.text[0].startswith("Mean ratings: answers sft 3.50 (mean of 2 seeds, range 1.00); analyses")
    assert first.text[1].endswith("judge's: guided sft 100.0\u00a0% (mean of 2 seeds, range 0.0).")
    [merged, every] = replicas.by_arm(second, arms).tables
    told = [(row[0].text, row[1].text, row[2].text) for row in merged.groups[0][1]]
    assert told == [
        ("sft (2 seeds)", "guided − generation", "+5.50"),
        ("sft (2 seeds)", "unguided − generation", "+1.50"),
        ("sft (2 seeds)", "guided − unguided", "+4.00"),
    ]
    assert len(every.groups[0][1]) == 6
    found = results.figures("d", [replicas.by_arm(second, arms)], {"sft", *arms})
    assert {one.arm for one in found if one.name == "difference"} == {"sft", *arms}


def test_adapters_after_stages_are_compared_too(tmp_path):
    from pipeline.suites.c2_eval.schema import CONTINUATIONS

    def made(name, every_stage, yes):
        suite = {**CORRECTION["evaluation"]["course_correction"], "every_stage": every_stage}
        config = scripted.config(
            tmp_path / name,
            **CORRECTION
            | {
                "arms": {"dpo": {"train": {"method": "dpo", "curriculum": "staged"}}},
                "evaluation": {**CORRECTION["evaluation"], "course_correction": suite},
            },
        )
        rows = [
            {
                "id": f"i{i}-{arm}-10", "instruction_id": f"i{i}", "arm": arm, "k": 10, "status": "ok",
                "corrected": [i < yes],
            }
            for arm in ("dpo", *(["dpo_stage1"] if every_stage else []))
            for i in range(NUMBER)
        ]  # fmt: skip
        write(tmp_path / name, CONTINUATIONS, rows)
        (tmp_path / name / "config.yaml").write_text(dump(config))
        return str(tmp_path / name)

    first, second = made("a", True, 2), made("b", True, 6)
    found = compare([first, second]).pairings
    assert [one.arm for one in found] == ["dpo_stage1", "dpo"]
    assert [one.arm for one in compare([first, second], ["dpo_stage1"]).pairings] == ["dpo_stage1"]
    assert "dpo_stage1 is an arm of a only" in compare([first, made("c", False, 6)]).told
