"""What became of every row is told wherever a source is read: plan, terminal, card, report."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import preflight
from pipeline.commands.plan import show_plan
from pipeline.commands.report import write_report
from pipeline.errors import UserError
from pipeline.settings.base import Source
from pipeline.sources import instructions
from tests import scripted
from tests.unit.sources.written import counted, rows_of, write_jsonl

pytestmark = pytest.mark.usefixtures("no_figures")

SPOILT = [
    {"instruction": "a", "output": "x", "topic2": 1},
    {"instruction": "", "output": "x"},
    {"instruction": None, "output": "x"},
    {"instruction": "a", "output": "y"},
    {"instruction": "b", "output": "x"},
]
TOLD = (
    "5 rows read, 2 used, 1 repeats an instruction, 2 malformed (instruction is empty: 1, instruction is null: 1);"
    " columns not used: topic2"
)
SEEN = TOLD.replace(
    "; columns", "; 2 of 2 also stand in the instructions of the methods: used all the same; columns"
)
FIELDS = ["methods.mistakes.instructions", "methods.mistakes.mix.helpful"]
FIELDS += ["suites.safety.harmful", "suites.safety.helpful"]


@pytest.fixture
def changes(tmp_path):
    source = {"path": write_jsonl(tmp_path / "asks.jsonl", SPOILT)}
    return {
        "model": {"path": "org/model"},
        "instructions": source,
        "mix": {"helpful": source, "helpful_ratio": 2},
        "evaluation": {"harmful": source, "helpful": source},
    }


def plan(tmp_path, **changes) -> str:
    console = Console(width=300, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(scripted.config(tmp_path / "run", **changes), None, console)
    return console.export_text()


def test_plan_tells_how_every_source_is_read(tmp_path, changes):
    told = plan(tmp_path, **changes)
    for field in FIELDS:
        line = TOLD if field.startswith("methods.") else SEEN
        assert f"{field} = {tmp_path}/asks.jsonl: {line}" in told


def test_plan_refuses_a_source_of_which_nothing_can_be_used(tmp_path, changes):
    bad = {
        "path": write_jsonl(tmp_path / "bad.jsonl", [{"messages": [{"role": "user", "content": None}]}] * 3)
    }
    for name, part in (
        ("methods.mistakes.instructions", {"instructions": bad}),
        ("methods.mistakes.mix.helpful", {"mix": {"helpful": bad}}),
        ("suites.safety.harmful", {"evaluation": {"harmful": bad}}),
        ("suites.safety.helpful", {"evaluation": changes["evaluation"] | {"helpful": bad}}),
    ):
        with pytest.raises(UserError) as e:
            plan(tmp_path, **{**changes, **part})
        assert str(e.value).startswith(f"{name}: ")
        assert "(messages has a message without text content: 3)" in str(e.value)


def test_terminal_card_and_report_tell_how_every_source_was_read(tmp_path, changes, run):
    told = run(**changes)
    for stage, field in zip(("generate", "mix", "evaluate", "evaluate"), FIELDS, strict=True):
        line = f"{field} = {tmp_path}/asks.jsonl: {SEEN if stage == 'evaluate' else TOLD}"
        assert f"{stage}: {line}" in told
        data = {"generate": "mistakes", "mix": "sft", "evaluate": "evaluation"}[stage]
        assert f"* {line}\n" in (tmp_path / "run" / data / "README.md").read_text()
    # beside its card, a data set of a run is a source
    assert {row["status"] for row in rows_of(tmp_path / "run" / "sft")} == {"ok"}
    errors = [row["error"] for row in rows_of(tmp_path / "run" / "mistakes")]
    assert sorted(errors, key=str) == [None, None] + ["the row failed in the run that wrote it"] * 2
    config = scripted.config(tmp_path / "run", **changes)
    markdown = Path(write_report(config, str(tmp_path / "run"))[1]).read_text()
    assert markdown.count(f"{TOLD}.") == markdown.count(f"{SEEN}.") == 2


def test_a_source_of_which_everything_is_used_is_not_told_on_the_terminal(tmp_path, changes, run):
    clean = {"path": write_jsonl(tmp_path / "clean.jsonl", [{"instruction": "a", "output": "x"}])}
    other = {"path": write_jsonl(tmp_path / "other.jsonl", [{"instruction": "c", "output": "x"}])}
    parts = {"instructions": clean, "mix": {"helpful": clean}, "evaluation": {"harmful": other}}
    assert not [line for line in run(**{**changes, **parts}) if " rows read" in line]


def test_a_response_that_mix_would_miss_is_missed_before_anything_starts(tmp_path, changes):
    bare = {"path": write_jsonl(tmp_path / "bare.jsonl", [{"prompt": "a", "said": "b"}])}
    config = scripted.config(tmp_path / "run", **{**changes, "instructions": bare})
    with pytest.raises(UserError) as e:
        preflight.check(config, {"generate", "mix"})
    told = str(e.value)
    assert told.startswith("methods.mistakes.instructions: ") and "(columns not used: said)" in told
    assert "none of its first 1 rows has a safe response" in told
    assert told.endswith("; or leave safe out of arms.sft.kinds (and of mistake_analysis)")
    preflight.check(config, {"generate"})
    with pytest.raises(UserError, match="has a safe response"):
        plan(tmp_path, **{**changes, "instructions": bare, "model": {"path": "org/model"}})
    arms = {"mine": {"kinds": ["analysis"]}}
    preflight.check(
        scripted.config(tmp_path / "run", **{**changes, "instructions": bare, "arms": arms}),
        {"generate", "mix"},
    )


def test_accounts_of_an_older_run_are_not_needed(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"stage": "generate", "seconds": 1, "read": 4}) + "\n")
    config = scripted.config(tmp_path)
    assert "Sources" not in Path(write_report(config, str(tmp_path))[1]).read_text()


def test_how_many_rows_have_a_response_is_told_if_only_some_do(tmp_path):
    rows = [{"prompt": f"{i}", "response": "x", "is_safe": label} for i, label in enumerate([1, 0, 0, None])]
    _, counts = counted(write_jsonl(tmp_path / "a.jsonl", rows))
    told = (
        "4 rows read, 4 used (1 with a safe response, 2 with an unsafe response); a response without a label"
    )
    assert f"a.jsonl: {told}" in counts.told() and counts.noteworthy
    _, counts = counted(write_jsonl(tmp_path / "a.jsonl", rows[1:3]))
    assert "2 used" in counts.told() and "with a" not in counts.told()


def test_the_refusal_of_a_source_without_a_response_says_why_there_is_none(tmp_path):
    for row, why in (
        (
            {"prompt": "a", "response": "nan"},
            r"\(a text that says null, such as NaN, is not used: 1; columns not",
        ),
        ({"prompt": "a", "response": "x", "is_safe": 0}, r"has a safe response \(an unsafe one: 1\); name"),
    ):
        with pytest.raises(instructions.NoResponse, match=why):
            instructions.check(Source(path=write_jsonl(tmp_path / "a.jsonl", [row])), needs=["safe_response"])


def test_a_file_that_cannot_be_read_is_an_error_where_a_missing_response_is_a_notice(tmp_path, changes):
    many = [{"prompt": f"{i}"} for i in range(300)]
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(many), tmp_path / "data" / "1.parquet")
    (tmp_path / "data" / "2.parquet").write_bytes(b"cut")
    source = {"path": f"{tmp_path}/data"}
    config = scripted.config(tmp_path / "run", **{**changes, "instructions": source})
    with pytest.raises(
        UserError, match=r"methods.mistakes.instructions: .*2.parquet: cannot be read as Parquet"
    ):
        preflight.check(config, {"generate", "mix"})
