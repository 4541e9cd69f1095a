"""results.json: it has every number of the report's tables, and its schema describes it."""

import json
import re
from pathlib import Path

import jsonschema
import pytest

from pipeline.commands import report_results, schemas
from pipeline.commands.report import write_report
from pipeline.errors import UserError
from pipeline.report.results import Results
from tests.unit.commands.reports import SECRET, config, no_figures, write_answers
from tests.unit.commands.test_report import write_logs, write_mistakes


@pytest.fixture
def run(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    write_answers(tmp_path)
    write_mistakes(tmp_path)
    write_logs(tmp_path)
    write_report(config(tmp_path), str(tmp_path))
    return tmp_path


def test_it_is_as_its_committed_schema_says(run):
    schema = json.loads(schemas.RESULTS.read_text())
    content = json.loads((run / "results.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(content)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema).validate({**content, "numbers": [{"name": "harmless"}]})


def test_the_committed_schemas_are_what_the_code_says():
    for file, text in (
        (schemas.RESULTS, schemas.results()),
        (schemas.CONFIGURATION, schemas.configuration()),
    ):
        assert file.read_text() == text, f"{file.name} is out of date: run `make reference`"


def test_every_number_of_the_tables_is_there(run):
    """The Markdown report has the same tables; its cells that are numbers are all in the file."""
    shown = {one["text"] for one in json.loads((run / "results.json").read_text())["numbers"]}
    markdown = (run / "report.md").read_text().partition("## How to reproduce")[0]
    cells = re.findall(r"(?<=\|) ([^|]*) (?=\|)", markdown)
    numbers = {
        text
        for cell in cells
        if (text := re.sub(r"\*\*| \[.*\]", "", cell)) and re.fullmatch(r"−?[\d\u202f.]+", text)
    }
    assert len(numbers) > 10
    assert numbers - shown == set()


def test_a_rate_has_its_judge_interval_and_count(run):
    found = Results.model_validate_json((run / "results.json").read_text())
    one = next(
        n for n in found.numbers if (n.name, n.arm) == ("harmless", "sft") and n.group.startswith("Plain")
    )
    assert (one.suite, one.value, one.n, one.unit) == ("safety", 0.625, 8, "share")
    assert one.low < 0.625 < one.high
    assert found.judges[one.judges[0]].kind == "refusal"
    assert found.judges[one.judges[0]].model is None
    rated = next(judge for judge in found.judges.values() if judge.judges == "helpfulness")
    assert rated.model == "toy" or "toy" in rated.model


def test_it_says_what_made_it_and_holds_no_text_of_a_row(run):
    text = (run / "results.json").read_text()
    found = Results.model_validate_json(text)
    assert found.versions["setbacks"] and found.versions["Python"]
    assert found.arms == ["vanilla", "sft", "mistake_analysis"]
    assert found.configuration["seed"] == found.seed == 0
    assert found.note.startswith("Toy model")
    assert SECRET not in text


def test_a_missing_or_foreign_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no such file; `setbacks report CONFIG` writes it"):
        report_results.read(str(tmp_path))
    Path(tmp_path, "results.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="cannot be read as results of this version"):
        report_results.read(str(tmp_path))
