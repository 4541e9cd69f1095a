"""The report opens with the answer, whatever the run holds, and its page can be read in many ways."""

import json
import re
from itertools import pairwise, product

import pytest

from pipeline.commands.report import write_report
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import Page, config, no_figures, write, write_answers


@pytest.fixture(autouse=True)
def figureless(monkeypatch):
    no_figures(monkeypatch)


def opening(run_dir, **changes) -> list[str]:
    write_report(config(run_dir, **changes), str(run_dir))
    found = [
        text.replace("\u00a0", " ") for text in json.loads((run_dir / "results.json").read_text())["opening"]
    ]
    html = (run_dir / "report.html").read_text()
    plain = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", html)).replace("\u00a0", " ").replace("&#39;", "'")
    markdown = (run_dir / "report.md").read_text().replace("\u00a0", " ")
    assert len(found) == 2 and all(text in plain and text in markdown for text in found)
    return found


def answers(run_dir, arms, harmless, n=20, *, helpful=True):
    """arm → how many of n red-team answers are harmless; benign ones are never refused."""
    rows = []
    for (i, arm), suite in product(
        product(range(n), arms), ("harmful", "helpful") if helpful else ("harmful",)
    ):
        harmful = i >= harmless[arm] if suite == "harmful" else None
        same = {
            "sample": 0,
            "suite": suite,
            "arm": arm,
            "condition": "plain",
            "status": "ok",
            "harmful": harmful,
        }
        rows.append({**same, "id": f"{suite}{i}{arm}", "instruction_id": f"{suite}{i}", "refused": False})
    write(run_dir, ANSWERS, rows)


def test_before_and_after_and_what_it_costs(tmp_path):
    answers(tmp_path, ("vanilla", "sft"), {"vanilla": 4, "sft": 18})
    first, second = opening(tmp_path, arms={"sft": {"kinds": ["safe"]}})
    assert first == (
        "After training, the model answers harmlessly in 90 % (sft; 95 % interval 70 to 97) of 20 harmful requests,"
        " before in 20 % (8 to 42), judged by refusal phrases: +70 points (+50 to +90), more than chance explains."
    )
    assert second == (
        "It refuses 0 % (sft; 95 % interval 0 to 16) of 20 harmless requests, before 0 % (0 to 16), by refusal"
        " phrases; the difference, 0 points (0 to 0), cannot be told apart from chance."
    )


def test_several_arms(tmp_path):
    write_answers(tmp_path)
    first, second = opening(tmp_path)
    assert "62 % (sft; 95 % interval 31 to 86) and 100 % (mistake_analysis; 68 to 100) of 8 harmful" in first
    assert first.endswith("mistake_analysis differs from the base model by more than chance, sft does not.")
    assert second.endswith("none of them can be told apart from the base model.")


def test_several_seeds(tmp_path):
    names = ("vanilla", "sft_seed0", "sft_seed1")
    answers(tmp_path, names, {"vanilla": 4, "sft_seed0": 18, "sft_seed1": 16})
    first, _ = opening(tmp_path, arms={"sft": {"kinds": ["safe"]}}, train={"seeds": [0, 1]})
    assert "in 85 % (sft; mean of 2 training seeds, 80 to 90) of 20 harmful requests, before in 20 %" in first
    assert first.endswith("all 2 seeds differ from the base model by more than chance.")


def test_adapters_of_a_second_fine_tuning_are_not_among_the_arms(tmp_path):
    harmless = {"vanilla": 4, "sft": 18, "vanilla_after_2": 1, "sft_after_2": 1}
    answers(tmp_path, [*harmless], harmless)
    further = {"data": {"path": "toy:helpful-train"}, "steps": [2], "arms": ["vanilla", "sft"]}
    first, _ = opening(tmp_path, arms={"sft": {"kinds": ["safe"]}}, durability=further)
    assert "90 % (sft; " in first and "after_2" not in first
    assert "sft_after_2" in (tmp_path / "report.md").read_text()


def test_a_cost_that_nobody_measured_is_said_to_be_unmeasured(tmp_path):
    answers(tmp_path, ("vanilla", "sft"), {"vanilla": 4, "sft": 18}, helpful=False)
    suite = {"harmful": {"path": "toy:harmful"}, "help": None}
    assert opening(tmp_path, arms={"sft": {"kinds": ["safe"]}}, evaluation=suite)[1] == (
        "Whether it also refuses more harmless requests was not measured."
    )


def test_given_adapters_are_not_said_to_be_trained_here(tmp_path):
    answers(tmp_path, ("vanilla", "theirs"), {"vanilla": 4, "theirs": 18})
    first, _ = opening(tmp_path, arms={}, adapters={"theirs": str(tmp_path)})
    assert first.startswith("With the adapter, the model answers harmlessly in 90 % (theirs; ")
    assert ", without it in 20 % (" in first


def test_the_base_model_alone(tmp_path):
    answers(tmp_path, ("vanilla",), {"vanilla": 4}, helpful=False)
    suite = {"harmful": {"path": "toy:harmful"}, "help": None}
    first, second = opening(tmp_path, arms={}, evaluation=suite)
    assert first.startswith(
        "The model answers harmlessly in 20 % of 20 harmful requests (95 % interval 8 to 42; "
    )
    assert second == "It has no adapter to compare with."


def test_a_run_that_has_only_made_data(tmp_path):
    same = {"sample": 0, "instruction": "x", "harmful": True, "analysis": "y"}
    rows = [{**same, "id": f"m{i}", "instruction_id": f"m{i}", "status": "ok"} for i in range(3)]
    write(tmp_path, MISTAKES, [*rows, {"id": "x", "instruction_id": "x", "status": "failed", "error": "e"}])
    assert opening(tmp_path) == [
        "This run has made 4 rows of mistakes (3 of them ok).",
        "Nothing is evaluated yet, so this says nothing about how the model answers.",
    ]


def test_a_run_that_has_made_nothing(tmp_path):
    assert opening(tmp_path)[0] == "This run has made no data yet."


def test_a_run_in_which_nothing_was_judged(tmp_path):
    same = {"suite": "harmful", "arm": "vanilla", "condition": "plain", "sample": 0, "error": "e"}
    write(tmp_path, ANSWERS, [{**same, "id": "a", "instruction_id": "a", "status": "failed"}])
    assert opening(tmp_path)[0] == "This run has written 1 row of evaluation (0 of them ok)."


def test_the_caution_of_the_judge_stands_beside_its_answer(tmp_path):
    write_answers(tmp_path)
    opening(tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "The judge reads refusal phrases, not harm" in html[html.index('id="answer"') : html.index("<nav")]


@pytest.fixture
def page(tmp_path) -> Page:
    write_answers(tmp_path)
    opening(tmp_path)
    return Page((tmp_path / "report.html").read_text())


def test_a_keyboard_and_a_screen_reader_find_their_way(page):
    tags = [tag for tag, _ in page.tags]
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    first = next(attributes for tag, attributes in page.tags if tag == "a")
    assert first["class"] == "skip" and first["href"] in page.addresses[1:]
    assert tags.count("table") == tags.count("caption") > 5
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert all(one.get("scope") in ("col", "row", "rowgroup") for one in headers)
    rows = sum(tag == "tr" for tag, _ in page.tags)
    assert sum(one["scope"] == "row" for one in headers) > rows / 2
    scrolled = [attributes for _, attributes in page.tags if attributes.get("tabindex")]
    assert all(one["tabindex"] == "0" and one["aria-label"] and one["role"] for one in scrolled)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_texts_have_the_contrast_that_wcag_asks_for(tmp_path, scheme):
    opening(tmp_path)
    html = (tmp_path / "report.html").read_text()
    schemes = [
        {name: color for name, color in re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)}
        for block in re.findall(r":root \{([^}]*--ink[^}]*)\}", html)
    ]
    colors = schemes[0] | schemes[scheme]
    for text in ("ink", "soft", "link"):
        for ground in ("page", "tint"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
    assert contrast(colors["warn"], colors["warn-tint"]) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21), "the formula"


def test_every_measured_table_says_its_n_and_its_judge(tmp_path):
    write_answers(tmp_path)
    opening(tmp_path)
    markdown = (tmp_path / "report.md").read_text()
    assert (
        markdown.count("n = 8. Judged: harmlessness of answers by refusal phrases; Help and Harm-Help by")
        == 2
    )
