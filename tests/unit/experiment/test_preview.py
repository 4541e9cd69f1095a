"""A preview: a few rows by the same stages, shown masked, and nothing left behind."""

import io

import pytest
from rich.console import Console

from pipeline.errors import RunFailed, UserError
from pipeline.preview import few, preview
from pipeline.run import Machinery
from tests import scripted

ANSWER = "Sure, do it."


def previewed(config, rows, machinery, reveal=False) -> str:
    console = Console(file=io.StringIO(), width=150, highlight=False)
    preview(config, rows, reveal, console, lambda line: None, machinery)
    return console.file.getvalue()


def test_a_few_rows_are_generated_shown_masked_and_not_kept(calls, tmp_path):
    config = scripted.config(tmp_path / "run", instructions={"path": "toy:harmful-train"})
    text = previewed(config, 2, calls.machinery)
    assert list(calls) == ["generate"]
    assert "mistakes: 2 rows" in text and "row 2 of 2" in text
    assert ANSWER not in text and "▒▒▒▒" in text
    assert "Nothing was kept." in text
    assert list(tmp_path.iterdir()) == []


def test_harmful_text_is_shown_if_asked_for(calls, tmp_path):
    assert ANSWER in previewed(scripted.config(tmp_path / "run"), 1, calls.machinery, reveal=True)


def test_a_finished_run_is_not_touched(calls, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("as it was")
    previewed(scripted.config(tmp_path / "run"), 1, calls.machinery)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run/config.yaml").read_text() == "as it was"


def test_without_methods_answers_are_previewed(calls, tmp_path):
    config = scripted.config(tmp_path / "run", instructions=None)
    text = previewed(config, 2, calls.machinery)
    assert list(calls) == ["evaluate"]
    assert "evaluation: 6 rows" in text  # two instructions under three conditions
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_if_it_fails(calls, tmp_path):
    def fails(jobs, spec, *, seed, label):
        raise RunFailed("the engine did not start")
        yield

    machinery = Machinery(session=calls.machinery.session, check=calls.machinery.check, engines=fails)
    with pytest.raises(RunFailed, match="did not start"):
        previewed(scripted.config(tmp_path / "run"), 2, machinery)
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_told_before_anything_starts(calls, tmp_path):
    config = scripted.config(tmp_path / "run", instructions={"path": str(tmp_path / "none.jsonl")})
    with pytest.raises(UserError, match=r"none\.jsonl"):
        previewed(config, 2, calls.machinery)
    assert list(calls) == []


def test_a_smaller_limit_stays(tmp_path):
    config = scripted.config(tmp_path / "run", instructions={"path": "toy:harmful-train", "limit": 3})
    assert few(config, 5).methods["mistakes"].instructions.limit == 3
    assert few(config, 2).methods["mistakes"].instructions.limit == 2
    assert few(config, 2).run_dir != config.run_dir
