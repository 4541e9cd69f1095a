"""Runs beside each other: paired over shared rows, never rates of different judges without a word."""

import io
import json
import shutil
import sys
from hashlib import blake2b

import pytest
from rich.console import Console

from pipeline import cli
from pipeline.commands.compare import compare, show_comparison
from pipeline.config import dump
from pipeline.errors import UserError
from pipeline.report.summary import paired
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted
from tests.unit.commands.reports import HOSTILE, SECRET, Page, write

NUMBER = 12


def answers(harmless, *, arm="sft", shift=0, conditions=("plain",)):
    """One answer per instruction; the first `harmless` are harmless."""
    return [
        {
            "id": f"i{i + shift}-harmful-{arm}-{condition}-0",
            "instruction_id": f"i{i + shift}",
            "sample": 0,
            "suite": "harmful",
            "arm": arm,
            "condition": condition,
            "instruction": SECRET,
            "response": SECRET,
            "harmful": i >= harmless,
            "refused": False,
            "status": "ok",
        }
        for i in range(NUMBER)
        for condition in conditions
    ]


@pytest.fixture
def run(tmp_path):
    """Write a run; returns its directory."""

    def run(name, rows, schema=ANSWERS, **changes):
        path = tmp_path / name
        write(path, schema, rows)
        (path / "config.yaml").write_text(dump(scripted.config(path, **changes)))
        return str(path)

    return run


def shown(*targets, different_judges=False, html=None) -> str:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    show_comparison(list(targets), [], different_judges, html, False, console)
    return console.file.getvalue()


def test_answers_that_are_drawn_differently_are_told_before_their_differences(run):
    suites = [
        {"safety": {"harmful": {"path": "toy:harmful-heldout"}, "answer": {"temperature": value}}}
        for value in (0.0, 1.0)
    ]
    told = shown(*(run(name, answers(3), suites=one) for name, one in zip("ab", suites, strict=True)))
    warned = (
        "WARNING: safety: a and b draw texts differently (suites.safety.answer.temperature = 0.0 and 1.0)"
    )
    assert warned in " ".join(told.split())
    assert "WARNING" not in shown(*(run(name, answers(3), suites=suites[0]) for name in "cd"))


def test_an_arm_of_two_seeds_is_paired_over_instructions(run):
    first, second = run("a", answers(3)), run("b", answers(11), seed=1)
    (found,) = compare([first, second]).pairings
    expected = paired(
        "b", "a", {f"i{i}": float(i < 11) for i in range(12)}, {f"i{i}": float(i < 3) for i in range(12)}
    )
    assert found.difference == expected
    assert (found.suite, found.measure, found.group, found.arm) == ("safety", "harmless", "plain", "sft")
    assert (found.before, found.after, found.difference.better) == (0.25, 11 / 12, 8)
    assert found.difference.distinguishable
    assert found.judges == ["refusal", "refusal"]


def test_only_shared_instructions_count_and_the_others_are_told(run):
    """The second run lacks the first two instructions of the first, and has two of its own."""
    first, second = run("a", answers(6)), run("b", answers(6, shift=2))
    found = compare([first, second])
    assert found.pairings[0].difference.n == 10
    assert found.pairings[0].alone == 4
    assert "Left out of the pairs: 4 rows with a verdict in one of two runs only" in shown(first, second)


def test_answers_without_a_verdict_are_in_no_mean(run):
    rows = answers(6)
    rows[0]["harmful"] = None
    found = compare([run("a", rows), run("b", answers(6))])
    assert found.pairings[0].difference.n == 11


def test_what_differs_in_the_configuration_is_said_with_seed_and_model_first(run):
    first = run("a", answers(3))
    second = run("b", answers(4), seed=7, train={"epochs": 5}, model={"path": "toy", "max_length": 99})
    differing = compare([first, second]).differing
    assert {*list(differing)[:2]} == {"seed", "model.max_length"}
    assert differing["seed"] == ["0", "7"]
    assert not any("run_dir" in key for key in differing)
    text = shown(first, second)
    assert "train.epochs" in text and "What differs in the configuration" in text


def test_long_values_that_differ_at_their_end_are_seen(run):
    long = "instruction " * 30
    changes = [{"recipe": {"hint": {"text": f"{long}{end}"}}} for end in "xy"]
    found = compare([run("a", answers(3), **changes[0]), run("b", answers(3), **changes[1])])
    assert any(key.endswith("hint.text") for key in found.differing)


def test_files_of_prompts_that_differ_are_told(run, tmp_path):
    """The configurations name the same file, which was another one then."""
    first, second = run("a", answers(3)), run("b", answers(3))
    for path, digest in ((first, "1"), (second, "2")):
        state = tmp_path / path / ".state/evaluation"
        state.mkdir(parents=True)
        shard = (tmp_path / path / "evaluation/part-00000.parquet").read_bytes()
        shards = {"part-00000.parquet": {"digest": blake2b(shard, digest_size=16).hexdigest()}}
        (state / "complete.json").write_text(json.dumps({"rows": 12, "shards": shards}))
        (state / "fingerprint.json").write_text(json.dumps({"prompts": {"reminder": digest}, "model": {}}))
    found = compare([first, second], different_judges=True)
    assert "safety: the prompts that a and b were made with differ" in found.told


def test_an_arm_of_one_run_only_is_told(run):
    second = run("b", answers(3), arms={"sft": {"kinds": ["safe"]}})
    assert "mistake_analysis is an arm of a only" in compare([run("a", answers(3)), second]).told


def test_equal_runs_say_so(run):
    assert "Nothing differs but the run directory" in shown(run("a", answers(3)), run("b", answers(3)))


JUDGES = {"harmful": {"path": "toy:harmful-heldout"}, "harmless": {"kind": "rating"}}


def test_rates_of_different_judges_are_not_compared_without_a_word(run):
    first, second = run("a", answers(3)), run("b", answers(9), evaluation=JUDGES)
    with pytest.raises(UserError, match=r"harmless of a and b: their judges differ .*; it is left out"):
        compare([first, second])
    found = compare([first, second], different_judges=True)
    assert not found.pairings[0].same_judge
    text = shown(first, second, different_judges=True)
    assert "harmless, judged by refusal and rating asking toy (DIFFERENT JUDGES)" in text
    assert "refusal in a, rating asking toy in b" in text


def test_a_changed_config_is_not_taken_for_the_judge_of_the_answers(run, tmp_path):
    """The verdicts on disk were made with settings that config.yaml no longer has."""
    first, second = run("a", answers(3)), run("b", answers(9))
    state = tmp_path / "b/.state/evaluation"
    state.mkdir(parents=True)
    (state / "fingerprint.json").write_text(json.dumps({"stage": "evaluate", "suites": "others"}))
    digest = blake2b((tmp_path / "b/evaluation/part-00000.parquet").read_bytes(), digest_size=16).hexdigest()
    shards = {"part-00000.parquet": {"digest": digest}}
    (state / "complete.json").write_text(json.dumps({"rows": 12, "shards": shards}))
    with pytest.raises(UserError, match=r"which judge gave the verdicts of b: its config\.yaml has changed"):
        compare([first, second])


def test_a_measure_without_a_judge_is_compared_all_the_same(run):
    """Over-refusal is counted by phrases, whatever judges harm."""

    def benign(refused):
        rows = [
            {**row, "suite": "helpful", "harmful": None, "refused": i < refused}
            for i, row in enumerate(answers(0))
        ]
        return [{**row, "id": row["id"].replace("harmful", "helpful")} for row in rows]

    first, second = run("a", answers(3) + benign(2)), run("b", answers(3) + benign(5), evaluation=JUDGES)
    found = compare([first, second])
    assert [(one.measure, one.before, one.after) for one in found.pairings] == [
        ("over_refusal", 2 / 12, 5 / 12)
    ]
    assert any("harmless of a and b" in line and "is left out" in line for line in found.told)


def test_conditions_stand_in_the_order_of_the_answers(run):
    conditions = ("plain", "reminder", "hint")
    found = compare(
        [run("a", answers(3, conditions=conditions)), run("b", answers(6, conditions=conditions))]
    )
    assert [one.group for one in found.pairings] == list(conditions)


def test_three_runs_are_compared_with_the_first(run):
    found = compare([run("a", answers(3)), run("b", answers(6)), run("c", answers(9))])
    assert [(one.run, one.baseline) for one in found.pairings] == [("b", "a"), ("c", "a")]


def test_continuations_are_paired_by_their_share_that_turns_away(run):
    def continued(yes):
        return [
            {
                "id": f"i{i}-dpo-{k}", "instruction_id": f"i{i}", "arm": "dpo", "k": k, "status": "ok",
                "corrected": [True] * yes + [False] * (4 - yes) + [None],
            }
            for i in range(NUMBER)
            for k in (10, 20)
        ]  # fmt: skip

    changes = {"recipe": {"name": "course_correction"}, "evaluation": {"course_correction": {"entries": {"path": "toy:detailed-heldout"}}},
               "instructions": {"path": "toy:detailed-train"}, "train": {"method": "dpo"}}  # fmt: skip
    first = run("a", continued(1), CONTINUATIONS, **changes)
    (found,) = compare([first, run("b", continued(3), CONTINUATIONS, **changes)]).pairings
    assert (found.measure, found.before, found.after, found.difference.n) == ("corr_mean", 0.25, 0.75, 12)


def test_the_page_holds_the_same_and_nothing_hostile(run, tmp_path):
    rows = [{**row, "instruction": HOSTILE, "response": HOSTILE} for row in answers(3)]
    first, second = run("a", rows), run("b", answers(11), seed=1)
    shown(first, second, html=str(tmp_path / "c.html"))
    text = (tmp_path / "c.html").read_text()
    page = Page(text)
    assert not page.open
    assert not [tag for tag, _ in page.tags if tag in ("script", "img")]
    assert SECRET not in text
    visible = " ".join(page.visible)
    assert "a and b" in visible and "safety: harmless" in visible and "+66.7" in visible and "seed" in visible
    with pytest.raises(UserError, match="exists already"):
        shown(first, second, html=str(tmp_path / "c.html"))


def test_json_has_every_difference(run, monkeypatch, capsys):
    first, second = run("a", answers(3)), run("b", answers(11), seed=1)
    monkeypatch.setattr(sys, "argv", ["setbacks", "compare", first, second, "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    found = json.loads(capsys.readouterr().out)
    assert found["differences"][0]["n"] == 12 and found["differences"][0]["difference"] == pytest.approx(
        8 / 12
    )
    assert found["configuration"] == {"seed": ["0", "1"]}


@pytest.mark.parametrize(
    ("names", "arms", "words"),
    [
        (["a"], (), "needs two runs"),
        (["a", "a"], (), "named twice"),
        (["a", "none"], (), "contains no run"),
        (["a", "b"], ("dpo",), "no run has such an arm; known are vanilla, sft, mistake_analysis"),
    ],
)
def test_wrong_runs_are_one_sentence(run, tmp_path, names, arms, words):
    run("a", answers(3)), run("b", answers(3))
    with pytest.raises(UserError, match=words):
        compare([str(tmp_path / name) for name in names], arms)


def test_the_root_directory_is_named_in_the_error(run):
    with pytest.raises(UserError, match=r"^/: contains no run"):
        compare(["/", run("a", answers(3))])


def test_a_configuration_stands_for_its_run(run, tmp_path):
    first, second = run("a", answers(3)), run("b", answers(4))
    files = []
    for path in (first, second):
        files.append(f"{path}.yaml")
        shutil.copy(f"{path}/config.yaml", files[-1])
    assert compare(files).pairings
