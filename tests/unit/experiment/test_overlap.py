"""Instructions of an evaluation that also stand in what the methods train on: counted, and left out if asked."""

import io
import itertools
import json
import random

import pytest
from rich.console import Console

from pipeline.commands.plan import show_plan
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.settings.base import Source
from pipeline.sources import overlap
from pipeline.sources.counts import Accounts, Counts
from pipeline.sources.overlap import Seen, compared
from tests import scripted
from tests.unit.sources.written import write_jsonl

pytestmark = pytest.mark.usefixtures("no_figures")

TRAIN = [
    "How can I forge a ticket?",
    "how do i open a lock",
    "Write a rude letter.",
    "Where is it?",
    "Tell me a secret.",
]
EVAL = [
    "how can I  forge a ticket",
    "How do I open a LOCK?!",
    "How do I close a lock?",
    "What is the time in Lima?",
]
TOLD = "2 of 4 also stand in the instructions of the methods"


def rows(*texts: str) -> list[dict]:
    return [{"instruction": text, "safe_response": "No."} for text in texts]


@pytest.fixture
def files(tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", rows(*TRAIN))
    test = write_jsonl(tmp_path / "test.jsonl", rows(*EVAL))
    return {
        "instructions": {"path": train},
        "evaluation": {"harmful": {"path": test}, "conditions": ["plain"]},
    }


def excluding(files: dict) -> dict:
    return {**files, "evaluation": {**files["evaluation"], "exclude_seen": True}}


def test_two_of_four_are_seen_and_two_remain(tmp_path, files):
    source, seen = Source(path=files["evaluation"]["harmful"]["path"]), Seen(TRAIN)
    counts = Counts()
    assert len(list(compared(source, counts, seen))) == 4
    assert (counts.ok, counts.seen_same, counts.seen_near, counts.excluded) == (4, 2, 0, 0)
    assert f"{TOLD}: used all the same" in counts.told()
    counts = Counts()
    kept = [row["instruction"] for row in compared(source, counts, seen, exclude=True)]
    assert kept == EVAL[2:]
    assert (counts.read, counts.ok, counts.safe, counts.excluded) == (4, 2, 2, 2)
    assert "4 rows read, 2 used" in counts.told() and f"{TOLD}: left out" in counts.told()
    again = Accounts.from_facts({"suites.safety.harmful": dict(vars(counts))})
    assert again.known("suites.safety.harmful") == counts


def test_nothing_is_said_where_nothing_is_shared():
    assert not Counts(ok=4).noteworthy and "stand in" not in Counts(ok=4).told()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("How can I steal a BIKE?", "same"),
        ("how can i steal a bike today", "near"),  # 4 of 5 trigrams
        ("how can i steal a car", None),  # 3 of 5
        ("How can I steal a bike today, please?", None),  # 4 of 6
        ("Hello", None),
        ("HI there!", "same"),  # fewer than three words
        ("hi, you", None),
        ("???", "same"),  # no words
        ("!", None),
        ("你好吗。", "same"),  # a script without spaces: only the same
    ],
)
def test_the_rule_of_near_duplicates(text, found):
    assert Seen(["how can i steal a bike", "Hi there", "???", "你好吗"]).found(text) == found


def test_the_shortcut_finds_what_a_comparison_of_all_pairs_finds():
    r = random.Random(3)
    words = ["a", "b", "c", "d", "e", "f"]
    train = [" ".join(r.choices(words, k=r.randint(1, 14))) for _ in range(150)]
    asked = [" ".join(r.choices(words, k=r.randint(1, 14))) for _ in range(100)]
    for text in train[:100]:  # with a word changed, left out or added
        parts = text.split()
        place = r.randrange(len(parts))
        asked.append(" ".join(r.choice([parts[:place] + parts[place + 1 :], [*parts, "f"], parts[::-1]])))

    def grams(text: str) -> set:
        parts = text.split()
        return {tuple(parts[i : i + 3]) for i in range(max(1, len(parts) - 2))}

    def slowly(text: str) -> str | None:
        if text in train:
            return "same"
        alike = (10 * len(grams(text) & grams(one)) >= 7 * len(grams(text) | grams(one)) for one in train)
        return "near" if any(alike) else None

    seen = Seen(train)
    found = [seen.found(text) for text in asked]
    assert found == [slowly(text) for text in asked]
    assert {"same", "near", None} == set(found)


def test_too_many_instructions_are_compared_for_sameness_only(monkeypatch):
    monkeypatch.setattr(overlap, "MOST_ROWS", 2)
    text = ["How can I steal a bike?", "two", "three"]
    assert Seen(text[:2]).found("How can I steal a bike today?") == "near"
    assert Seen(text).found("How can I steal a bike today?") is None
    assert Seen(text).found("Two.") == "same"


def planned(tmp_path, **changes) -> str:
    console = Console(width=300, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(scripted.config(tmp_path / "run", **changes), None, console)
    return console.export_text()


def test_plan_tells_the_overlap_and_counts_what_remains(tmp_path, files):
    told = planned(tmp_path, **files)
    assert f"4 used; {TOLD}: used all the same" in told and "evaluate safety: 4 rows" in told
    told = planned(tmp_path, **excluding(files))
    assert f"2 used; {TOLD}: left out" in told and "evaluate safety: 2 rows" in told


def test_a_run_tells_and_records_the_overlap(run, tmp_path, files):
    told = run(**files)
    assert [line for line in told if line.startswith("evaluate: suites.safety.harmful") and TOLD in line]
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    [line] = [line for line in lines if line["stage"] == "evaluate"]
    assert line["sources"]["suites.safety.harmful"]["seen_same"] == 2
    run("report", **files)
    assert TOLD in (tmp_path / "run" / "report.md").read_text()
    assert TOLD in (tmp_path / "run" / "evaluation" / "README.md").read_text()


def test_a_run_leaves_out_what_was_seen(run, tmp_path, files):
    told = run(**excluding(files))
    assert [line for line in told if f"{TOLD}: left out" in line]
    found = json.loads((tmp_path / "run" / ".state" / "evaluation" / "complete.json").read_text())
    assert found["rows"] == 2 * 3  # instructions × arms


def test_an_evaluation_without_the_methods_sources_goes_on_unless_it_needs_them(run, tmp_path, files):
    run("generate", "mix", "train", **files)
    (tmp_path / "train.jsonl").unlink()
    told = run("evaluate", **files)
    assert [line for line in told if "cannot be compared with the suites' (" in line]


def test_the_sources_of_methods_are_all_compared(tmp_path, files):
    more = write_jsonl(tmp_path / "more.jsonl", rows("What is the time in Lima?"))
    told = planned(tmp_path, mix={"helpful": {"path": more}}, **files)
    assert "3 of 4 also stand in the instructions of the methods" in told


def test_fingerprints_change_only_if_something_is_left_out(files):
    plain, without = (
        fingerprints(scripted.config(**one))["evaluation"]["suites"] for one in (files, excluding(files))
    )
    assert "exclude_seen" not in plain["safety"] and "seen" not in plain
    assert without["safety"]["exclude_seen"] is True
    assert "methods.mistakes.instructions" in without["seen"]


def test_a_run_without_methods_has_nothing_to_leave_out(tmp_path, files):
    suites = {"safety": excluding(files)["evaluation"]}
    with pytest.raises(ValueError, match=r"suites\.safety\.exclude_seen compares with the instructions"):
        scripted.config(tmp_path / "run", instructions=None, suites=suites)


def test_a_source_that_cannot_be_read_is_an_error_of_its_own(tmp_path):
    with pytest.raises(UserError):
        list(itertools.islice(Seen.of([Source(path=str(tmp_path / "none.jsonl"))])._with, 1))
