"""The report: complete, self-contained, hostile text harmless, examples masked, missing parts said."""

import json
import re
from pathlib import Path

import pytest

from pipeline.commands.report import TOY_NOTE, write_report
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.report import plots
from pipeline.report.summary import Rate
from pipeline.schema import SFT
from pipeline.sources.counts import Accounts
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import (
    ARMS,
    HOSTILE,
    SECRET,
    Page,
    config,
    no_figures,
    titles,
    write,
    write_answers,
)


def write_mistakes(run_dir, text=SECRET):
    row = {
        "sample": 0,
        "instruction": text,
        "category": "theft",
        "response": text,
        "response_source": "induced",
        "harmful": True,
    }
    ok = [
        {
            **row,
            "id": f"m{i}",
            "instruction_id": f"m{i}",
            "analysis": f"Bad: {text}",
            "guided": True,
            "status": "ok",
        }
        for i in range(9)
    ]
    bad = {"id": "x", "instruction_id": "x", "status": "failed", "error": f"prompt too long: {text}"}
    write(run_dir, MISTAKES, [*ok, bad])


READ = Accounts()
vars(READ.of("methods.mistakes.instructions")).update(
    read=14,
    ok=10,
    duplicates=3,
    malformed=1,
    reasons={"prompt is empty": 1},
    unused=["id", "[x|y"],
    source="a.csv",
)


def write_logs(run_dir):
    for arm in ARMS[1:]:
        log = run_dir / "adapter" / arm / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        steps = [
            {"step": 1, "loss": 9.0},
            {"step": 2, "loss": 8.0},
            {"step": 1, "loss": 3.25},
            {"step": 2, "loss": 1.5, "tokens_per_s": 777},
        ]
        log.write_text("".join(json.dumps(s) + "\n" for s in steps) + '{"train_runtime": 3}\n')
    stages = [
        {"stage": "generate", "seconds": 1.0},
        {
            "stage": "generate",
            "seconds": 83.0,
            "rows": 10,
            "sources": READ.facts(),
            "completion_tokens": 12345,
            "tokens_per_s": 148.7,
            "engine_start_s": 20.5,
        },
        {
            "stage": "train",
            "arm": "sft",
            "seconds": 3700,
            "examples": 5,
            "tokens": 600,
            "drop_reasons": {"too_long": 4},
        },
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stages))


@pytest.fixture
def figureless(monkeypatch):
    no_figures(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every part."""
    run_dir = tmp_path_factory.mktemp("whole")
    write_answers(run_dir)
    write_mistakes(run_dir)
    write(
        run_dir,
        SFT,
        [
            {"id": str(i), "instruction_id": "m", "kind": kind, "messages": []}
            for i, kind in enumerate(["safe"] * 3 + ["analysis"])
        ],
    )
    write_logs(run_dir)
    return run_dir


def report(run_dir, **changes) -> tuple[str, str]:
    html, markdown = write_report(config(run_dir, **changes), str(run_dir))
    assert (html, markdown) == (f"{run_dir}/report.html", f"{run_dir}/report.md")
    return Path(html).read_text(), Path(markdown).read_text()


@pytest.fixture(scope="module")
def pages(whole):
    return report(whole)


def test_the_numbers_are_there(pages):
    html, markdown = pages
    assert "| vanilla | 25.0 [7.1, 59.1] |" in markdown  # 2 of 8
    assert "| sft | 62.5 [30.6, 86.3] |" in markdown  # 5 of 8
    assert "| mistake_analysis | **100.0** [67.6, 100.0] |" in markdown
    assert "| mistake_analysis − vanilla | **+75.0**" in markdown and "| sft − vanilla | +37.5" in markdown
    assert "| 10 | 10 | 9 | 0 | 0 | 1 | 9 | 0 | 0 | 100.0 [70.1, 100.0] |" in markdown
    assert (
        "generate: methods.mistakes.instructions = a.csv: 14 rows read, 10 used, 3 repeat an instruction, 1"
        " malformed (prompt is empty: 1); columns not used: \\[x\\|y, id." in markdown
    )
    assert "| generate | prompt too long | 1 |" in markdown and "| train (sft) | too long | 4 |" in markdown
    assert "| safe | 3 | 75.0 |" in markdown
    assert (
        "| sft | safe, helpful | 2 | 3.250 | 1.500 | 777 |" in markdown
    )  # a step logged twice counts once, as last logged
    assert (
        "| generate | 1 min 23 s | 20.5 s | 10 | 12\u202f345 | 149 |" in markdown
        and "| train (sft) | 1 h 1 min | – | 5 | 600 | – |" in markdown
    )
    assert "shared their engines" not in markdown, "no suites were evaluated together"
    for figure in ("62.5", "[30.6, 86.3]", "+75.0", "1 min 23 s", '<td class="estimate best">100.0</td>'):
        assert figure in html


def test_html_is_self_contained_and_well_formed(pages):
    html, _ = pages
    page = Page(html)
    assert page.open == []
    assert all(address.startswith("#") for address in page.addresses)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    assert not re.search(r"@import|url\((?!#)|https?://", html)
    assert sum(tag == "svg" for tag, _ in page.tags) == 3
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {a[1:] for a in page.addresses} <= set(ids)


def test_examples_are_masked_and_there(pages):
    html, _ = pages
    page = Page(html)
    assert SECRET not in "".join(page.visible)
    masked = [
        attributes
        for tag, attributes in page.tags
        if tag == "details" and attributes.get("class") == "masked"
    ]
    assert len(masked) == 12 and not any("open" in attributes for attributes in masked)
    assert html.count(f"<dd>So. {SECRET}</dd>") == 6 * 6  # six instructions, three arms, plain and reminder
    assert html.count(f"<dd>Bad: {SECRET}</dd>") == 6
    assert re.search(r"@media print \{.*\.masked > :not\(summary\) \{ display: none; \}", html, re.DOTALL)


def test_markdown_holds_no_text_of_a_model_or_source(pages):
    assert SECRET not in pages[1]


def test_hostile_text_is_escaped(tmp_path):
    write_answers(tmp_path, HOSTILE, category="<script>alert(2)</script> $x$ | `y`")
    write_mistakes(tmp_path, HOSTILE)
    html, markdown = report(tmp_path)
    page = Page(html)
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "&lt;script&gt;alert(&#39;" in html and SECRET not in "".join(page.visible)
    assert "<script" not in markdown and "alert(2)&lt;/script> $x$ \\| `y`" in markdown


@pytest.mark.usefixtures("figureless")
@pytest.mark.parametrize("path", ["toy", "org/chat-7b"])
def test_the_toy_note_stands_where_it_belongs(whole, path):
    for text in report(whole, report={"examples": 0}, model={"path": path, "revision": "abc123"}):
        assert (TOY_NOTE[1] in text) == (path == "toy")
        assert f"{path} at revision abc123" in text
        assert SECRET not in text  # no example is wanted


@pytest.mark.usefixtures("figureless")
def test_texts_without_a_model_are_told_and_the_unread_model_is_not_credited(whole):
    for text in report(whole, engine={"kind": "dummy"}):
        assert "No model" in text and "Texts of this run were written by dummy, which is no model" in text
        assert TOY_NOTE[1] not in text and "Results for model toy" not in text
    for text in report(whole, recipe={"engine": {"kind": "dummy"}}):
        assert "Texts of this run were written by dummy, which is no model" in text


@pytest.mark.usefixtures("figureless")
def test_a_server_is_told_as_what_wrote_the_texts(whole):
    server = {"kind": "openai", "url": "http://a.host/v1", "model": "served"}
    _, markdown = report(whole, recipe={"engine": server})
    assert "| Engine | vllm |" in markdown
    assert "| Engine of mistakes | openai, `served` of an OpenAI-compatible server |" in markdown
    _, markdown = report(whole, engine=server, arms={})
    assert "Results for model **served of an OpenAI-compatible server**" in markdown


def test_an_empty_run_says_what_is_missing(tmp_path):
    for text in report(tmp_path):
        for command in ("evaluate", "train", "generate", "mix"):
            assert re.search(rf"yet: .{{0,6}}setbacks {command}", text), command


def test_mistakes_alone_are_reported(tmp_path):
    write_mistakes(tmp_path)
    html, markdown = report(tmp_path)
    assert "100.0 [70.1, 100.0]" in markdown and "no evaluation yet" in markdown
    assert html.count('<details class="masked">') == 6


def test_an_evaluation_in_which_everything_failed(tmp_path):
    row = {
        "suite": "harmful",
        "arm": "vanilla",
        "condition": "plain",
        "sample": 0,
        "instruction_id": "a",
        "status": "failed",
        "error": "e",
    }
    write(tmp_path, ANSWERS, [{**row, "id": "a"}])
    html, markdown = report(tmp_path)
    assert "| vanilla | – | unmeasured | – | – | – |" in markdown
    assert "this row failed" in html and Page(html).open == []


@pytest.mark.usefixtures("figureless")
def test_columns_of_measures_that_were_not_taken_are_left_out(whole):
    _, markdown = report(whole, evaluation={"harmful": {"path": "toy:harmful"}, "help": None})
    assert "| Arm | Harmless, % | Corrected, % |\n" in markdown
    assert "No rating" not in markdown and "Over-refusal" not in markdown


@pytest.mark.usefixtures("figureless")
def test_in_a_run_of_mistake_analysis_the_safety_suite_comes_first(whole):
    suite = {"entries": {"path": "toy:detailed-heldout"}}
    _, markdown = report(whole, evaluation={"harmful": {"path": "toy:harmful"}, "course_correction": suite})
    assert titles(markdown)[:4] == ["Arms", "Paired differences", "By category", "Course correction"]
    assert "no continuations yet" in markdown


def test_the_same_run_gives_the_same_report(whole, pages):
    assert report(whole) == pages


def test_nothing_else_is_left_behind(tmp_path):
    report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md", "results.json"]


def test_plots_take_any_name_and_nothing_judged():
    svg = plots.rates(
        [plots.Panel("plain", [("窃盗 $x$ <b>", {"sft": Rate(0, 0)})])], ["vanilla", "sft"], 'a "b"'
    )
    assert "窃盗 $x$ &lt;b&gt;" in svg and 'aria-label="a &quot;b&quot;"' in svg
    assert plots.over_steps({"sft": [(1, float("nan"))]}, ["vanilla", "sft"], "loss", "loss").startswith(
        "<svg"
    )
    assert plots.over_lengths(
        {"sft": [], "vanilla": [(10, 0.5, (0, 1))]}, ["vanilla", "sft"], "Corr", "k"
    ).startswith("<svg")
