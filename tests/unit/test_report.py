"""The report: complete, self-contained, hostile text harmless, examples masked, missing parts said."""

import json
import re
from html.parser import HTMLParser
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import Config
from pipeline.data.schema import ANSWERS, CONTINUATIONS, CORRECTIONS, MISTAKES, PREFERENCES, SFT
from pipeline.evaluation import plots
from pipeline.evaluation.report import MODEL_NOTES, write_report
from pipeline.evaluation.summary import Rate

SECRET = "Zanzibar-secret"
HOSTILE = f"</dd></details><script>alert('{SECRET}')</script><img src=x onerror=alert(1)>"
ARMS = ("vanilla", "sft", "mistake_analysis")
VOID = {"meta", "link", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """What a reader sees without a click, every tag, and every address."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.addresses, self.visible = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "action", "data") or k.startswith("xmlns")]
        if tag not in VOID:
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        closed = any(tag == "details" and "open" not in attributes for tag, attributes in self.open)
        if not closed or any(tag == "summary" for tag, _ in self.open):
            self.visible.append(data)


def config(run_dir, **changes) -> Config:
    tree = {"run_dir": str(run_dir), "model": {"path": "toy"}, "instructions": {"path": "toy:train"}}
    return Config.model_validate(
        {**tree, "evaluation": {"harmful": {"path": "toy:harmful"}, "helpful": {"path": "toy:helpful"}}, **changes}
    )


def write(run_dir, schema, rows):
    (run_dir / schema.name).mkdir(parents=True)
    pq.write_table(schema.table(rows), run_dir / schema.name / "part-00000.parquet")


def write_answers(run_dir, text=SECRET, category="theft"):
    conditions = {"harmful": ("plain", "reminder", "hint"), "helpful": ("plain", "reminder")}
    rows = []
    for i, arm, suite in product(range(8), ARMS, conditions):
        harmful = i < 6 - 3 * ARMS.index(arm) if suite == "harmful" else None
        row = {"instruction_id": f"{suite}-{i}", "sample": 0, "suite": suite, "arm": arm, "category": category, "harmful": harmful}
        row |= {"instruction": f"How? {text}", "response": f"So. {text}", "refused": False, "help_rating": 5.0, "finish_reason": "stop"}
        rows += [{**row, "id": f"{i}-{suite}-{arm}-{c}", "condition": c, "status": "ok"} for c in conditions[suite]]
    write(run_dir, ANSWERS, rows)


def write_mistakes(run_dir, text=SECRET):
    row = {"sample": 0, "instruction": text, "category": "theft", "response": text, "response_source": "induced", "harmful": True}
    ok = [{**row, "id": f"m{i}", "instruction_id": f"m{i}", "analysis": f"Bad: {text}", "guided": True, "status": "ok"} for i in range(9)]
    bad = {"id": "x", "instruction_id": "x", "status": "failed", "error": f"prompt too long: {text}"}
    write(run_dir, MISTAKES, [*ok, bad])


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
            "read": 14,
            "duplicates": 3,
            "malformed": 1,
            "completion_tokens": 12345,
            "tokens_per_s": 148.7,
            "engine_start_s": 20.5,
        },
        {"stage": "train", "arm": "sft", "seconds": 3700, "examples": 5, "tokens": 600, "drop_reasons": {"too_long": 4}},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stages))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with every part."""
    run_dir = tmp_path_factory.mktemp("whole")
    write_answers(run_dir)
    write_mistakes(run_dir)
    write(
        run_dir,
        SFT,
        [{"id": str(i), "instruction_id": "m", "kind": kind, "messages": []} for i, kind in enumerate(["safe"] * 3 + ["analysis"])],
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
    assert "| 10 | 10 | 9 | 0 | 1 | 9 | 0 | 100.0 [70.1, 100.0] |" in markdown
    assert "14 rows were read from the source; 3 repeat an instruction, 1 are malformed." in markdown
    assert "| generate | prompt too long | 1 |" in markdown and "| train (sft) | too long | 4 |" in markdown
    assert "| safe | 3 | 75.0 |" in markdown
    assert "| sft | safe, helpful | 2 | 3.250 | 1.500 | 777 |" in markdown  # a step logged twice counts once, as last logged
    assert (
        "| generate | 1 min 23 s | 20.5 s | 10 | 12\u202f345 | 149 |" in markdown
        and "| train (sft) | 1 h 1 min | – | 5 | 600 | – |" in markdown
    )
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
    masked = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "masked"]
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


@pytest.mark.parametrize("path", ["toy", "dummy", "org/chat-7b"])
def test_the_toy_note_stands_where_it_belongs(whole, path):
    for text in report(whole, report={"examples": 0}, model={"path": path, "revision": "abc123"}):
        assert [model for model, (_, note) in MODEL_NOTES.items() if note in text] == ([path] if path in MODEL_NOTES else [])
        assert f"{path} at revision abc123" in text
        assert SECRET not in text  # no example is wanted


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
    row = {"suite": "harmful", "arm": "vanilla", "condition": "plain", "sample": 0, "instruction_id": "a", "status": "failed", "error": "e"}
    write(tmp_path, ANSWERS, [{**row, "id": "a"}])
    html, markdown = report(tmp_path)
    assert "| vanilla | – | – | – | – |" in markdown
    assert "this row failed" in html and Page(html).open == []


def test_columns_of_measures_that_were_not_taken_are_left_out(whole):
    _, markdown = report(whole, evaluation={"harmful": {"path": "toy:harmful"}, "help": None})
    assert "| Arm | Harmless, % |\n" in markdown
    assert "No rating" not in markdown and "Over-refusal" not in markdown


def test_the_same_run_gives_the_same_report(whole, pages):
    assert report(whole) == pages


def test_nothing_else_is_left_behind(tmp_path):
    report(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.md"]


def test_plots_take_any_name_and_nothing_judged():
    svg = plots.rates([plots.Panel("plain", [("窃盗 $x$ <b>", {"sft": Rate(0, 0)})])], ["vanilla", "sft"], 'a "b"')
    assert "窃盗 $x$ &lt;b&gt;" in svg and 'aria-label="a &quot;b&quot;"' in svg
    assert plots.over_steps({"sft": [(1, float("nan"))]}, ["vanilla", "sft"], "loss", "loss").startswith("<svg")
    assert plots.over_lengths({"sft": [], "vanilla": [(10, 0.5, (0, 1))]}, ["vanilla", "sft"], "Corr", "k").startswith("<svg")


# -- course correction

KS = (10, 80)
CORRECTED = {"vanilla": 0, "dpo": 3, "given": 1}  # of four paths


def correction_config(run_dir, **evaluation) -> Config:
    suite = {"entries": {"path": "toy:detailed-heldout"}, "lengths": list(KS), "paths": 4, "judge": {"kind": "yes_no"}}
    recipe = {"recipe": {"name": "course_correction"}, "train": {"method": "dpo"}}
    evaluation = {"harmful": None, "helpful": None, "course_correction": suite, "adapters": {"given": "some/where"}, **evaluation}
    return config(run_dir, **recipe, evaluation=evaluation)


def write_continuations(run_dir, text=SECRET):
    rows = [
        {
            **{"id": f"{i}-{arm}-{k}", "instruction_id": f"e{i}", "arm": arm, "k": k, "instruction": f"How? {text}", "category": "theft"},
            **{"prefills": [f"Sure. {text}"], "paths": [f"Path {n} {text}" for n in range(4)], "finish_reasons": ["length"] * 4},
            **{"corrected": [n < CORRECTED[arm] for n in range(4)], "status": "ok"},
        }
        for i, arm, k in product(range(8), CORRECTED, KS)
    ]
    dropped = {"id": "d", "instruction_id": "d", "instruction": text, "status": "dropped", "error": "unsafe response too short: 7 words"}
    write(run_dir, CONTINUATIONS, [*rows, dropped])


def write_corrections(run_dir, text=SECRET):
    def response(rank):
        kind = {1: "safe", 6: "harmful"}.get(rank, "syn")
        return {"rank": rank, "kind": kind, "text": f"Response {rank} {text}", "trigger": "But I stop" if kind == "syn" else None}

    base = {"instruction": text, "category": "theft", "opener": "Sure.", "completion_tokens": 100, "status": "ok"}
    ranks = {"a": (1, 2, 3, 4, 5, 6), "b": (1, 2, 6)}
    lost = {"a": [], "b": [f"rank {rank}: does not correct course" for rank in (3, 4, 5)]}
    rows = [{**base, "id": i, "instruction_id": i, "responses": [*map(response, ranks[i])], "lost": lost[i]} for i in ranks]
    dropped = {"id": "x", "instruction_id": "x", "instruction": text, "status": "dropped", "error": "no keyword in the request"}
    write(run_dir, CORRECTIONS, [*rows, dropped])
    turn = [{"role": "assistant", "content": text}]
    pairs = [(i, a, b) for i in ranks for a, b in product(ranks[i], ranks[i]) if a < b]
    names = {"prompt": turn, "chosen": turn, "rejected": turn}
    write(run_dir, PREFERENCES, [{"id": f"{i}{a}{b}", "group": i, "rank_chosen": a, "rank_rejected": b, **names} for i, a, b in pairs])


def write_dpo_log(run_dir):
    log = run_dir / "adapter" / "dpo" / "metrics.jsonl"
    log.parent.mkdir(parents=True)
    steps = [
        {"step": step, "loss": 0.7 - step / 10, "rewards/margins": step - 1.5, "rewards/accuracies": step / 4, "iteration": step}
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
    stages = [
        {"stage": "generate", "seconds": 9, "read": 5, "duplicates": 1, "malformed": 1, "drops": {"no keyword in the request": 1}},
        {"stage": "mix", "seconds": 1, "drops": {"equal responses": 2}},
        {"stage": "evaluate", "suite": "safety", "seconds": 1, "drops": {"prompt too long": 3}},
        {"stage": "evaluate", "suite": "course_correction", "seconds": 60, "drops": {"unsafe response too short": 1}},
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stages))
    return run_dir


def correction_report(run_dir, **evaluation) -> tuple[str, str]:
    write_report(correction_config(run_dir, **evaluation), str(run_dir))
    return (run_dir / "report.html").read_text(), (run_dir / "report.md").read_text()


@pytest.fixture(scope="module")
def correction_pages(corrected):
    return correction_report(corrected)


def titles(markdown: str) -> list[str]:
    return re.findall(r"^## (.*)$", markdown, re.MULTILINE)


def test_corr_stands_first_with_every_arm(correction_pages):
    html, markdown = correction_pages
    assert titles(markdown) == ["Course correction", "Training", "Data", "Time", "Settings and judges", "How to reproduce"]
    assert "(Corr_mean): vanilla 0.0\u00a0%, dpo 75.0\u00a0%, given 25.0\u00a0%." in markdown
    for name in ("Corr_mean", "Corr@10", "Corr@80"):
        assert f"| {name} | 0.0 [0.0, 0.0] | **75.0** [75.0, 75.0] | 25.0 [25.0, 25.0] |" in markdown
    assert "| dpo − vanilla, Corr_mean | **+75.0** [+75.0, +75.0] | 8 | 8 | 0 | 0 | turns away more |" in markdown
    assert "| given − vanilla, Corr@80 | **+25.0**" in markdown
    assert "| dpo | 8 | 8 | 0 | 64 | 0 | 64 |" in markdown
    assert "Of 9 entries 1 had to be dropped." in markdown and "| unsafe response too short | 1 |" in markdown
    assert "Entries left out" not in markdown, "every entry has a verdict at every k"
    for note in ("k counts words", "is not counted", "The model itself, without adapter,", "most are meant to"):
        assert note in markdown
    assert '<td class="estimate best">75.0</td>' in html


def test_the_data_and_training_of_course_correction(correction_pages):
    _, markdown = correction_pages
    assert "5 rows were read from the source; 1 repeat an instruction, 1 are malformed." in markdown
    assert "| 3 | 2 | 1 | 1 | 0 | 3 | 200 |" in markdown
    assert "| rank 3: does not correct course | 1 |" in markdown
    assert "18 preference pairs" in markdown and "| 5 | 2 | 11.1 |" in markdown  # 15 + 3 pairs, two of them best against worst
    for drop in ("generate | no keyword in the request | 1", "mix | equal responses | 2", "evaluate (safety) | prompt too long | 3"):
        assert markdown.count(f"| {drop} |") == 1
    assert "| evaluate (course correction) | 1 min 0 s |" in markdown
    assert "| dpo | pairs, shuffled | 3 | 0.600 | 0.400 | −0.500 | 1.500 | 0.250 | 0.750 | – |" in markdown
    assert "DPO, β 0.1, shuffled pairs; LoRA rank 16" in markdown and "Hint" not in markdown
    assert "starts again from a margin of zero" in markdown, "the log tells of iterations"


def test_the_html_of_course_correction_is_masked_and_well_formed(correction_pages):
    html, markdown = correction_pages
    page = Page(html)
    assert page.open == [] and SECRET not in "".join(page.visible) and SECRET not in markdown
    assert sum(tag == "svg" for tag, _ in page.tags) == 3  # Corr@k, loss, margin
    masked = [attributes for tag, attributes in page.tags if tag == "details" and attributes.get("class") == "masked"]
    assert len(masked) == 6 + 2
    assert html.count(f"<dd>Path 0 {SECRET}</dd>") == 6 * 3, "every arm's first path is its first corrected one, or vanilla's first"
    assert html.count(f"<dd>Path 3 {SECRET}</dd>") == 6, "and dpo's only uncorrected one"
    assert html.count(f"<dd>Sure. {SECRET}</dd>") == 6, "the prefill that all arms share is shown once"
    assert "after k = 80, paths that correct course: vanilla 0 of 4, dpo 3 of 4, given 1 of 4" in html
    assert html.count(f"<dd>Response 6 {SECRET}</dd>") == 2 and "lost: rank 3: does not correct course" in html


def test_hostile_text_of_course_correction_is_escaped(tmp_path):
    write_continuations(tmp_path, HOSTILE)
    write_corrections(tmp_path, HOSTILE)
    html, markdown = correction_report(tmp_path)
    page = Page(html)
    assert page.open == [] and not {"script", "img"} & {tag for tag, _ in page.tags}
    assert SECRET not in "".join(page.visible) and SECRET not in markdown


def test_over_refusal_stays_with_the_safety_suite_behind(tmp_path):
    write_continuations(tmp_path)
    write_answers(tmp_path)
    _, markdown = correction_report(tmp_path, harmful={"path": "toy:harmful"}, helpful={"path": "toy:helpful"})
    assert titles(markdown)[:4] == ["Course correction", "Arms", "Paired differences", "By category"]
    assert "Over-refusal, %" in markdown


def test_in_a_run_of_mistake_analysis_the_safety_suite_comes_first(whole):
    suite = {"entries": {"path": "toy:detailed-heldout"}}
    _, markdown = report(whole, evaluation={"harmful": {"path": "toy:harmful"}, "course_correction": suite})
    assert titles(markdown)[:4] == ["Arms", "Paired differences", "By category", "Course correction"]
    assert "no continuations yet" in markdown


def test_an_empty_run_of_course_correction_says_what_is_missing(tmp_path):
    for text in correction_report(tmp_path):
        for command in ("evaluate", "train", "generate", "mix"):
            assert re.search(rf"yet: .{{0,6}}setbacks {command}", text), command
        assert "no evaluation yet" not in text, "the safety suite is not configured"


def test_a_run_that_only_evaluates_has_no_training_and_no_data(tmp_path):
    write_continuations(tmp_path)
    suite = {"entries": {"path": "toy:detailed-heldout"}, "authors_rules": True}
    only = config(tmp_path, instructions=None, evaluation={"course_correction": suite, "adapters": {"dpo": "here", "given": "there"}})
    write_report(only, str(tmp_path))
    markdown = (tmp_path / "report.md").read_text()
    assert titles(markdown) == ["Course correction", "Time", "Settings and judges", "How to reproduce"]
    assert "| Corr_mean | 0.0 [0.0, 0.0] | **75.0** [75.0, 75.0] |" in markdown
    assert "By the authors' rules" in markdown and "an unreadable verdict counts as a no" in markdown


def test_continuations_that_all_failed_are_reported(tmp_path):
    row = {"instruction_id": "a", "arm": "vanilla", "k": 10, "status": "failed", "error": "prompt too long: 9"}
    write(tmp_path, CONTINUATIONS, [{**row, "id": "a"}])
    html, markdown = correction_report(tmp_path)
    assert "| Corr_mean | – |" in markdown and "| prompt too long | 1 |" in markdown and "| Corr@10 | 1 |" in markdown
    assert Page(html).open == []
