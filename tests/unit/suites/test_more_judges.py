"""More judges of the answers of every suite: `rejudge` writes their verdicts, asks for no answer, and the report
has a column for each and their agreement."""

from collections import Counter

import pytest

from pipeline.config import Config
from pipeline.run import Run
from tests import scripted
from tests.unit.inference.test_passes import BASE, GUARD, LOCAL, cluster, run

pytestmark = pytest.mark.usefixtures("no_figures")

__all__ = ["cluster"]  # a fixture

DETAILED = {"path": "toy:detailed-heldout", "limit": 3}
SUITES = {
    "borderline": {
        "prompts": {"path": "toy:helpful-heldout", "limit": 3},
        "unsafe": {"path": "toy:harmful-heldout", "limit": 2},
        "more_judges": {"asked": {"kind": "compliance", "model": "guard"}, "phrases": {"kind": "phrases"}},
    },
    "jailbreak": {
        "goals": {"path": "toy:harmful-heldout", "limit": 3},
        "benign": {"path": "toy:helpful-heldout", "limit": 2},
        "attacks": ["none", "rot13", "prefill"],
        "harmless": {"kind": "refusal"},
        "more_judges": {
            "asked": {"kind": "yes_no_harmful", "model": "guard"},
            "phrases": {"kind": "refusal"},
        },
    },
    "c2_eval": {
        "entries": DETAILED,
        "lengths": [3, 5],
        "paths": 2,
        "more_judges": {"asked": {"kind": "yes_no", "model": "guard"}, "phrases": {"kind": "phrases"}},
    },
}
COLUMN = {"borderline": "compliance", "jailbreak": "harmful", "c2_eval": "corrects"}
DATA = {"borderline": "borderline", "jailbreak": "attacks", "c2_eval": "continuations"}
SAYS = {"borderline": "partial", "jailbreak": "Yes.", "c2_eval": "Yes."}
SAID = {"borderline": "partial", "jailbreak": True, "c2_eval": True}
TITLE = {"borderline": "Borderline prompts", "jailbreak": "Jailbreaks", "c2_eval": "Course correction"}


def config(place, name: str, **changes) -> Config:
    return scripted.config(
        place,
        model={"path": BASE},
        engine={"rows_per_commit": 4},
        models=LOCAL,
        instructions=None,
        suites={name: {**SUITES[name], **changes}},
    )


def answers_and_verdicts(made: Config, name: str) -> tuple[list[dict], dict[str, list[dict]]]:
    found = Run(made)
    [answers] = found.suites.values()
    verdicts = {judge: list(store.dataset.rows()) for (_, judge), store in found.verdicts.items()}
    assert {store.name for store in found.verdicts.values()} == {
        f"verdicts_{DATA[name]}_{judge}" for judge in verdicts
    }
    return list(answers.dataset.rows()), verdicts


@pytest.fixture
def judged(cluster, tmp_path, request):
    """A suite that was evaluated, then judged by more judges: its name, configuration and requests."""
    name = request.param
    made = config(tmp_path / "run", name)
    cluster.base.answer = lambda text: (
        "I cannot help you with that." if len(text) % 2 else "Sure, first do it."
    )
    run(cluster, config(tmp_path / "run", name, more_judges={}), "evaluate")
    asked, before = (
        len(cluster.base.asked),
        (tmp_path / "run/.state" / DATA[name] / "complete.json").read_bytes(),
    )
    cluster.starts.clear()
    cluster.guard.answer = lambda _text: SAYS[name]
    run(cluster, made, "rejudge", "report")
    assert len(cluster.base.asked) == asked and BASE not in cluster.starts, "no answer is asked for"
    assert (tmp_path / "run/.state" / DATA[name] / "complete.json").read_bytes() == before
    assert GUARD in cluster.starts
    return name, made


@pytest.mark.parametrize("judged", SUITES, indirect=True)
def test_every_answer_is_judged_once_by_every_judge(judged, cluster):
    name, made = judged
    answers, verdicts = answers_and_verdicts(made, name)
    wanted = [row["id"] for row in answers if row.get("suite", "harmful") == "harmful"]
    if name == "c2_eval":
        wanted = [f"{row['id']}-{i}" for row in answers for i in range(len(row["paths"]))]
    for rows in verdicts.values():
        assert [row["answer_id"] for row in rows] == wanted and len(wanted) >= 5
    assert {row[COLUMN[name]] for row in verdicts["asked"]} == {SAID[name]}
    assert {row["raw"] for row in verdicts["asked"]} >= {SAYS[name]}


@pytest.mark.parametrize("judged", SUITES, indirect=True)
def test_a_judge_of_the_same_kind_says_what_the_suites_own_one_has_said(judged):
    """Readings, prefills, triggers and empty answers are handed to both alike."""
    name, made = judged
    answers, verdicts = answers_and_verdicts(made, name)
    column = "corrected" if name == "c2_eval" else COLUMN[name]
    own = [row[column] for row in answers if row.get("suite", "harmful") == "harmful"]
    own = [verdict for row in own for verdict in row] if name == "c2_eval" else own
    assert [row[COLUMN[name]] for row in verdicts["phrases"]] == own
    assert len(Counter(own)) == 2, "the answers differ"


@pytest.mark.parametrize("judged", SUITES, indirect=True)
def test_the_report_has_a_rate_per_judge_and_their_agreement(judged, tmp_path):
    name, _ = judged
    markdown = (tmp_path / "run" / "report.md").read_text()
    section = markdown.split(f"## {TITLE[name]}: judges")[1].split("\n## ")[0]
    kind = "refusal" if name == "jailbreak" else "phrases"
    rates = [line.split(" | ") for line in section.splitlines() if line.startswith("| vanilla")]
    assert {cells[1] for cells in rates} == {f"{kind} (headline)", "asked", "phrases"}
    assert all(int(cells[2].rstrip(" |")) > 0 for cells in rates), "each rate stands beside its answers"
    [line] = [line for line in section.splitlines() if line.startswith(f"| {kind} (headline) | phrases")]
    assert "100.0" in line, "equal judges agree"


def test_a_judge_that_has_not_judged_yet_is_named(cluster, tmp_path):
    run(cluster, config(tmp_path / "run", "jailbreak"), "evaluate", "report")
    assert "No verdicts yet: asked, phrases; `setbacks rejudge` writes them." in (
        tmp_path / "run" / "report.md"
    ).read_text().replace("\\", "")


def test_more_judges_change_no_fingerprint_of_the_answers(tmp_path):
    from pipeline.fingerprints import fingerprints

    for name in SUITES:
        with_judges, without = (
            fingerprints(config(tmp_path, name, **changes)) for changes in ({}, {"more_judges": {}})
        )
        assert with_judges[DATA[name]] == without[DATA[name]]


def test_judges_whose_verdicts_would_have_the_same_place_are_refused(tmp_path):
    judge = {"kind": "refusal"}
    suites = {
        "jailbreak": {**SUITES["jailbreak"], "more_judges": {"x": judge}},
        "safety": {"harmful": {"path": "toy:harmful-heldout"}, "more_judges": {"attacks_x": judge}},
    }
    with pytest.raises(ValueError, match="both make verdicts_attacks_x: give one of them another name"):
        scripted.config(tmp_path, instructions=None, suites=suites)
