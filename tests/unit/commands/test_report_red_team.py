"""The report on red-teaming: what became of every topic, and no text of any query."""

from pathlib import Path

import pytest

from pipeline.commands.report import write_report
from pipeline.config import Config
from pipeline.methods.red_team import RedTeam
from pipeline.methods.red_team.report import data
from pipeline.methods.red_team.schema import RED_TEAM, REQUESTS
from tests.unit.commands.reports import HOSTILE, SECRET, Page, no_figures, write

ROW = {
    "id": "a",
    "category": "crimes/theft",
    "about": "Taking what belongs to others.",
    "leaves": [
        {"leaf": "a bicycle", "expanded": False, "texts": 2, "refused": 0, "lost": 0},
        {"leaf": "a scooter", "expanded": True, "texts": 0, "refused": 2, "lost": 1},
    ],
    "texts": [{"leaf": "a bicycle", "genre": "blog", "text": HOSTILE}],
    "queries": [{"leaf": "a bicycle", "genre": "blog", "text": f"How? {HOSTILE}", "outcome": "kept"}],
    "outcomes": [
        {"leaf": "a bicycle", "outcome": "kept", "queries": 3},
        {"leaf": "a bicycle", "outcome": "off topic", "queries": 1},
        {"leaf": "a bicycle", "outcome": "near duplicate", "queries": 2},
    ],
    "topics_dropped": 4,
    "expansions_refused": 1,
    "lines_left": 0,
    "other_language": 0,
    "distinct_1": 0.6,
    "distinct_2": 0.625,
    "mean_jaccard": 0.6,
    "status": "ok",
}
FAILED = {"id": "b", "category": "crimes/fraud", "status": "failed", "error": "prompt too long"}
REQUEST = {"id": "q", "instruction_id": "q", "instruction": HOSTILE, "category": "crimes/theft/a bicycle"}


def numbers(*rows, requests=()):
    tables = {RED_TEAM: rows, REQUESTS: requests}
    return {
        schema.name: (
            schema.table(list(made)).select([c.name for c in schema.columns if c.text is None])
            if made
            else None
        )
        for schema, made in tables.items()
    }


def cells(table) -> list[list[str]]:
    return [[cell.text for cell in row] for _, rows in table.groups for row in rows]


def test_every_topic_has_its_line_also_with_nothing():
    topics, diversity = data(RedTeam(), numbers(ROW)).tables
    assert [column.name for column in topics.columns] == [
        "Topic",
        "Texts",
        "Refused",
        "Texts lost",
        "Queries",
        "Kept",
        "Dropped",
    ]
    assert cells(topics) == [
        ["a bicycle", "2", "0", "0", "6", "3", "2 near duplicate, 1 off topic"],
        ["a scooter (added)", "0", "2", "1", "0", "0", "–"],
    ]
    assert cells(diversity) == [["crimes/theft", "3", "0.600", "0.625", "0.600"]]


def test_what_was_left_out_is_told():
    found = data(RedTeam(), numbers(ROW, FAILED, requests=[REQUEST]))
    told = " ".join(found.text)
    assert "3 queries were kept" in told and "1 requests are in `requests`" in told
    assert "1 times the model refused to name topics" in told and "4 topics that it named" in told
    assert "lines beside" not in told, "nothing is said of what did not happen"
    assert found.failures == {"prompt too long": 1}
    assert len(found.tables[1].groups[0][1]) == 2


def test_a_run_without_data_says_what_writes_it():
    [sentence] = data(RedTeam(), numbers()).text
    assert "`setbacks generate` writes them" in sentence


def test_the_page_shows_no_query_unasked(tmp_path, monkeypatch):
    no_figures(monkeypatch)
    write(tmp_path, RED_TEAM, [ROW])
    write(tmp_path, REQUESTS, [REQUEST])
    config = Config.model_validate(
        {"run_dir": str(tmp_path), "model": {"path": "toy"}, "methods": {"red": {"name": "red_team"}}}
    )
    html, markdown = write_report(config, str(tmp_path))
    told = Path(markdown).read_text()
    page = Page(Path(html).read_text())
    assert SECRET not in " ".join(page.visible) and SECRET not in told
    assert "script" not in [tag for tag, attributes in page.tags if not attributes]
    assert "Diversity of the kept queries" in told
    assert "2 near duplicate, 1 off topic" in told


def test_counts_are_of_the_rows_that_there_are():
    with pytest.raises(KeyError):
        RED_TEAM.table([{"id": "a", "answers": "none"}])
