"""The report of course correction: complete, hostile text harmless, examples masked, missing parts said."""

import json
import re
from itertools import product

import pytest

from pipeline.commands.report import write_report
from pipeline.config import Config
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.schema import PREFERENCES
from pipeline.sources.counts import Accounts
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from tests.unit.commands.reports import (
    HOSTILE,
    SECRET,
    Page,
    config,
    no_figures,
    titles,
    write,
    write_answers,
)

KS = (10, 80)
CORRECTED = {"vanilla": 0, "dpo": 3, "given": 1}  # of four paths


def correction_config(run_dir, **evaluation) -> Config:
    suite = {
        "entries": {"path": "toy:detailed-heldout"},
        "lengths": list(KS),
        "paths": 4,
        "judge": {"kind": "yes_no"},
    }
    recipe = {"recipe": {"name": "course_correction"}, "train": {"method": "dpo"}}
    evaluation = {
        "harmful": None,
        "helpful": None,
        "course_correction": suite,
        "adapters": {"given": "some/where"},
        **evaluation,
    }
    return config(run_dir, **recipe, evaluation=evaluation)


def write_continuations(run_dir, text=SECRET):
    rows = [
        {
            **{
                "id": f"{i}-{arm}-{k}",
                "instruction_id": f"e{i}",
                "arm": arm,
                "k": k,
                "instruction": f"How? {text}",
                "category": "theft",
            },
            **{
                "prefills": [f"Sure. {text}"],
                "paths": [f"Path {n} {text}" for n in range(4)],
                "finish_reasons": ["length"] * 4,
            },
            **{"corrected": [n < CORRECTED[arm] for n in range(4)], "status": "ok"},
        }
        for i, arm, k in product(range(8), CORRECTED, KS)
    ]
    dropped = {
        "id": "d",
        "instruction_id": "d",
        "instruction": text,
        "status": "dropped",
        "error": "unsafe response too short: 7 words",
    }
    write(run_dir, CONTINUATIONS, [*rows, dropped])


def write_corrections(run_dir, text=SECRET):
    def response(rank):
        kind = {1: "safe", 6: "harmful"}.get(rank, "syn")
        return {
            "rank": rank,
            "kind": kind,
            "text": f"Response {rank} {text}",
            "trigger": "But I stop" if kind == "syn" else None,
        }

    base = {
        "instruction": text,
        "category": "theft",
        "opener": "Sure.",
        "completion_tokens": 100,
        "status": "ok",
    }
    ranks = {"a": (1, 2, 3, 4, 5, 6), "b": (1, 2, 6)}
    lost = {"a": [], "b": [f"rank {rank}: does not correct course" for rank in (3, 4, 5)]}
    rows = [
        {**base, "id": i, "instruction_id": i, "responses": [*map(response, ranks[i])], "lost": lost[i]}
        for i in ranks
    ]
    dropped = {
        "id": "x",
        "instruction_id": "x",
        "instruction": text,
        "status": "dropped",
        "error": "no keyword in the request",
    }
    write(run_dir, CORRECTIONS, [*rows, dropped])
    turn = [{"role": "assistant", "content": text}]
    pairs = [(i, a, b, "correction") for i in ranks for a, b in product(ranks[i], ranks[i]) if a < b]
    pairs.append(("c", 1, 2, "source"))  # of another method of the run: not counted
    names = {"prompt": turn, "chosen": turn, "rejected": turn}
    write(
        run_dir,
        PREFERENCES,
        [
            {"id": f"{i}{a}{b}", "group": i, "rank_chosen": a, "rank_rejected": b, "kind": kind, **names}
            for i, a, b, kind in pairs
        ],
    )


def write_dpo_log(run_dir):
    log = run_dir / "adapter" / "dpo" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    steps = [
        {
            "step": step,
            "loss": 0.7 - step / 10,
            "rewards/margins": step - 1.5,
            "rewards/accuracies": step / 4,
            "iteration": step,
        }
        for step in (1, 2, 3)
    ]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A run of course correction with every part but the safety suite."""
    run_dir = tmp_path_factory.mktemp("corrected")
    write_continuations(run_dir)
    write_corrections(run_dir)
    write_dpo_log(run_dir)
    read = Accounts()
    vars(read.of("instructions")).update(read=5, ok=3, duplicates=1, malformed=1, reasons={"x": 1})
    stages = [
        {
            "stage": "generate",
            "seconds": 9,
            "sources": read.facts(),
            "drops": {"no keyword in the request": 1},
        },
        {"stage": "mix", "seconds": 1, "drops": {"equal responses": 2}},
        {"stage": "evaluate", "suite": "safety", "seconds": 50, "drops": {"prompt too long": 3}},
        {
            "stage": "evaluate",
            "suite": "course_correction",
            "seconds": 60,
            "drops": {"unsafe response too short": 1},
        },
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stages))
    return run_dir


def correction_report(run_dir, **evaluation) -> tuple[str, str]:
    write_report(correction_config(run_dir, **evaluation), str(run_dir))
    return (run_dir / "report.html").read_text(), (run_dir / "report.md").read_text()


@pytest.fixture(scope="module")
def correction_pages(corrected):
    return correction_report(corrected)


def test_corr_stands_first_with_every_arm(correction_pages):
    html, markdown = correction_pages
    assert titles(markdown) == [
        "Course correction",
        "Training",
        "Data",
        "Sources",
        "Time",
        "Settings and judges",
        "How to reproduce",
    ]
    assert "(Corr_mean): vanilla 0.0\u00a0%, dpo 75.0\u00a0%, given 25.0\u00a0%." in markdown
    for name in ("Corr_mean", "Corr@10", "Corr@80"):
        assert f"| {name} | 0.0 [0.0, 0.0] | **75.0** [75.0, 75.0] | 25.0 [25.0, 25.0] |" in markdown
    assert (
        "| dpo − vanilla, Corr_mean | **+75.0** [+75.0, +75.0] | 8 | 8 | 0 | 0 | turns away more |"
        in markdown
    )
    assert "| given − vanilla, Corr@80 | **+25.0**" in markdown
    assert "| dpo | 8 | 8 | 0 | 64 | 0 | 64 |" in markdown
    assert "Dropped: 1 of 9 entries." in markdown and "| unsafe response too short | 1 |" in markdown
    assert "Entries left out" not in markdown, "every entry has a verdict at every k"
    for note in (
        "k counts words",
        "is not counted",
        "The model itself, without adapter,",
        "(expected for most)",
    ):
        assert note in markdown
    assert '<td class="estimate best">75.0</td>' in html


def test_the_data_and_training_of_course_correction(correction_pages):
    _, markdown = correction_pages
    assert "instructions = 5 rows read, 3 used, 1 repeats an instruction, 1 malformed (x: 1)." in markdown
    assert "| 3 | 2 | 1 | 1 | 0 | 3 | 200 |" in markdown
    assert "| rank 3: does not correct course | 1 |" in markdown
    assert (
        "18 preference pairs" in markdown and "| 5 | 2 | 11.1 |" in markdown
    )  # 15 + 3 pairs, two of them best against worst
    for drop in (
        "generate | no keyword in the request | 1",
        "mix | equal responses | 2",
        "evaluate (safety) | prompt too long | 3",
    ):
        assert markdown.count(f"| {drop} |") == 1
    assert "| evaluate (course correction) | 1 min 0 s | – |" in markdown
    assert "2 min 0 s in all stages" in markdown and "evaluated together shared their engines" in markdown
    assert "| dpo | pairs, shuffled | 3 | 0.600 | 0.400 | −0.500 | 1.500 | 0.250 | 0.750 | – |" in markdown
    assert "DPO, β 0.1, shuffled pairs; LoRA rank 16" in markdown and "Hint" not in markdown
    assert "the margin restarts at zero" in markdown, "the log tells of iterations"


def test_the_html_of_course_correction_is_masked_and_well_formed(correction_pages):
    html, markdown = correction_pages
    page = Page(html)
    assert page.open == [] and SECRET not in "".join(page.visible) and SECRET not in markdown
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # Corr@k, loss, margin
    masked = [
        attributes
        for tag, attributes in page.tags
        if tag == "details" and attributes.get("class") == "masked"
    ]
    assert len(masked) == 6 + 2
    assert html.count(f"<dd>Path 0 {SECRET}</dd>") == 6 * 3, (
        "every arm's first path is its first corrected one, or vanilla's first"
    )
    assert html.count(f"<dd>Path 3 {SECRET}</dd>") == 6, "and dpo's only uncorrected one"
    assert html.count(f"<dd>Sure. {SECRET}</dd>") == 6, "the prefill that all arms share is shown once"
    assert "after k = 80, paths that correct course: vanilla 0 of 4, dpo 3 of 4, given 1 of 4" in html
    assert (
        html.count(f"<dd>Response 6 {SECRET}</dd>") == 2 and "lost: rank 3: does not correct course" in html
    )


def test_hostile_text_of_course_correction_is_escaped(tmp_path):
    write_continuations(tmp_path, HOSTILE)
    write_corrections(tmp_path, HOSTILE)
    html, markdown = correction_report(tmp_path)
    page = Page(html)
    assert page.open == [] and not {"script", "img"} & {tag for tag, _ in page.tags}
    assert SECRET not in "".join(page.visible) and SECRET not in markdown


def test_over_refusal_stays_with_the_safety_suite_behind(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    write_continuations(tmp_path)
    write_answers(tmp_path)
    _, markdown = correction_report(
        tmp_path, harmful={"path": "toy:harmful"}, helpful={"path": "toy:helpful"}
    )
    assert titles(markdown)[:4] == ["Course correction", "Arms", "Paired differences", "By category"]
    assert "Over-refusal, %" in markdown


def test_an_empty_run_of_course_correction_says_what_is_missing(tmp_path):
    for text in correction_report(tmp_path):
        for command in ("evaluate", "train", "generate", "mix"):
            assert re.search(rf"yet: .{{0,6}}setbacks {command}", text), command
        assert "no evaluation yet" not in text, "the safety suite is not configured"


def test_a_run_that_only_evaluates_has_no_training_and_no_data(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    write_continuations(tmp_path)
    suite = {"entries": {"path": "toy:detailed-heldout"}, "authors_rules": True}
    only = config(
        tmp_path,
        instructions=None,
        evaluation={"course_correction": suite, "adapters": {"dpo": "here", "given": "there"}},
    )
    write_report(only, str(tmp_path))
    markdown = (tmp_path / "report.md").read_text()
    assert titles(markdown) == ["Course correction", "Time", "Settings and judges", "How to reproduce"]
    assert "| Corr_mean | 0.0 [0.0, 0.0] | **75.0** [75.0, 75.0] |" in markdown
    assert "By the authors' rules" in markdown and "an unreadable verdict counts as a no" in markdown


def test_continuations_that_all_failed_are_reported(tmp_path):
    row = {
        "instruction_id": "a",
        "arm": "vanilla",
        "k": 10,
        "status": "failed",
        "error": "prompt too long: 9",
    }
    write(tmp_path, CONTINUATIONS, [{**row, "id": "a"}])
    html, markdown = correction_report(tmp_path)
    assert (
        "| Corr_mean | – |" in markdown
        and "| prompt too long | 1 |" in markdown
        and "| Corr@10 | 1 |" in markdown
    )
    assert Page(html).open == []
