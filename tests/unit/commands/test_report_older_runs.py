"""Runs of older versions, whose data sets lack columns that came later, are still reported."""

import pyarrow.parquet as pq
import pytest

from pipeline.commands.report import write_report
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import SFT
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.commands.reports import config, no_figures, write_answers
from tests.unit.commands.test_report import write_mistakes

LATER = {
    ANSWERS.name: ["messages", "deliberation_finish_reason"],
    MISTAKES.name: ["safe_harmful"],
    SFT.name: ["prefix", "prefix_tokens"],
}


def reported(run_dir) -> str:
    with open(write_report(config(run_dir), str(run_dir))[1], encoding="utf-8") as file:
        return file.read()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    no_figures(monkeypatch)


def test_columns_that_came_later_are_missing_without_harm(tmp_path):
    write_answers(tmp_path)
    write_mistakes(tmp_path)
    whole = reported(tmp_path)
    dropped = []
    for file in tmp_path.glob("*/*.parquet"):
        table = pq.read_table(file)
        later = [name for name in LATER.get(file.parent.name, ()) if name in table.column_names]
        dropped += later
        pq.write_table(table.drop_columns(later), file)
    assert {"deliberation_finish_reason", "safe_harmful"} <= set(dropped)
    assert reported(tmp_path) == whole
