"""Suites with large tables: their sections and headlines are the same from a table and in a stream."""

import random

import numpy as np
import pyarrow as pa
import pytest

from pipeline.config import Suites
from pipeline.report import summary
from pipeline.report.arms import Arms
from pipeline.report.numbers import Numbers
from pipeline.suites.base import Judgements
from pipeline.suites.judged import UNKNOWN, Answers
from tests import tiny
from tests.unit.commands.reports import no_figures

ARMS = ("vanilla", "sft", "mistake_analysis")
PATHS = 3


def one_of(r: random.Random, *values):
    return r.choice(values)


def continuation(r: random.Random, number: int) -> dict:
    """One of eight is dropped, and one of eight failed."""
    entry, place = divmod(number, len(ARMS) * 2)
    arm, k = ARMS[place // 2], 10 * (1 + place % 2)
    status = one_of(r, *["ok"] * 6, "failed", "dropped")
    ok, error = status == "ok", None if status == "ok" else f"{one_of(r, 'too long', 'lost')}: {number}"
    dropped = status == "dropped"
    return {
        "id": f"e{entry}-{arm}-{k}",
        "instruction_id": f"e{entry}",
        "arm": None if dropped else arm,
        "k": None if dropped else k,
        "corrected": [one_of(r, True, False, None) for _ in range(PATHS)] if ok else None,
        "finish_reasons": [one_of(r, "stop", "length") for _ in range(2 * PATHS)] if ok else None,
        "status": status,
        "error": error,
    }


def attack(r: random.Random, number: int) -> dict:
    rest, sample = divmod(number, 2)
    rest, arm = divmod(rest, len(ARMS))
    goal, name = divmod(rest, 4)
    status = one_of(r, *["ok"] * 6, "failed")
    suite = "helpful" if goal % 4 == 3 else "harmful"
    return {
        "id": f"{number}",
        "instruction_id": f"g{goal}",
        "sample": sample,
        "suite": suite,
        "attack": ["leet", "none", "ready/x", "rot13"][name],
        "arm": ARMS[arm] if r.random() < 0.9 else None,
        "decoding": one_of(r, None, "decoded", "undecodable"),
        "empty": one_of(r, False, True),
        "refused": one_of(r, False, True, None),
        "harmful": one_of(r, True, False, None) if status == "ok" and suite == "harmful" else None,
        "finish_reason": one_of(r, "stop", "length"),
        "status": status,
    }


def analysis(r: random.Random, number: int) -> dict:
    rest, arm = divmod(number, len(ARMS))
    ratings = ("harmless_rating", "rating_unguided", "rating_guided")
    verdicts = ("harmful", "verdict_unguided", "verdict_guided")
    return {
        "id": f"{number}",
        "instruction_id": f"i{rest // 3}",
        "sample": rest % 3,
        "arm": ARMS[arm],
        "split": ["training", "near", "held_out"][rest // 3 % 3],
        "empty": r.random() < 0.1,
        "cut": one_of(r, None, [], ["answer"]),
        "status": one_of(r, *["ok"] * 6, "failed"),
        **{name: one_of(r, None, 1.0, 2.7, 9.1) for name in ratings},
        **{name: one_of(r, None, True, False) for name in verdicts},
    }


def score(r: random.Random, number: int) -> dict:
    """A value per document and metric; a group of two subtasks, and a task whose documents have no number."""
    rest, arm = divmod(number, len(ARMS))
    document, metric = divmod(rest, 2)
    task = ["group", "group", "words"][document % 3]
    return {
        "id": f"{number}",
        "arm": ARMS[arm],
        "task": task,
        "subtask": f"{task}{document % 2}",
        "doc_id": document,
        "doc_hash": f"{document // 2}" if r.random() < 0.9 else f"{number}",
        "metric": ["acc", "bits"][metric],
        "filter": "none",
        "primary": not metric,
        "higher_is_better": one_of(r, True, None),
        "value": one_of(r, 0.0, 1.0) if not metric else r.random() * 9 if task == "group" else None,
        "refused": one_of(r, True, False, None),
        "cut": r.random() < 0.1,
        "score": 0.25,
        "score_stderr": None,
        "documents": 90,
        "task_version": "1",
        "fewshot": document % 2,
        "limit": 60,
        "harness": "lm-evaluation-harness 1",
        "status": "ok",
    }


LATER = {"more_judges": {"later": {"kind": "phrases"}, "never": {"kind": "phrases"}}}
HARM = {"more_judges": {"later": {"kind": "refusal"}, "never": {"kind": "refusal"}}}
SUITES = {
    "c2_eval": (continuation, {"entries": {"path": "x"}, "lengths": [10, 20], **LATER}),
    "jailbreak": (attack, {"goals": {"path": "x"}, "harmless": {"kind": "refusal"}, "samples": 2, **HARM}),
    "discrimination": (
        analysis,
        {"instructions": {"path": "x"}, "training": {"path": "y"}, "judge": {"model": "strong"}},
    ),
    "utility": (score, {}),
}


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_says_the_same_of_a_table_and_in_a_stream(name, tmp_path, monkeypatch):
    no_figures(monkeypatch)
    monkeypatch.setattr(summary, "RESAMPLES", 100)
    monkeypatch.setattr("pipeline.report.numbers._AT_ONCE", 47)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_GROUP", 60)
    monkeypatch.setattr("pipeline.data.store._ROWS_AT_ONCE", 60)
    make, settings = SUITES[name]
    r = random.Random(7)
    made = [make(r, number) for number in range(300)]
    suite = Suites.by_name()[name].model_validate(settings)
    answers = [row["id"] for row in made if row.get("suite") != "helpful" and row["status"] == "ok"]
    ids = [f"{id}-{i}" for id in answers for i in range(PATHS)] if name == "c2_eval" else answers
    said = [
        {"id": f"{id}-later", "answer_id": id, "status": "ok"}
        | {column: one_of(r, True, False, None) for column in ("harmful", "corrects")}
        for id in r.sample(ids, len(ids))
    ]
    said = [{key: row[key] for key in row if key in suite.verdicts.names} for row in said]
    tables = suite.data_schema.table(made), suite.verdicts.table(said)
    streams = (
        Numbers(tiny.write(tmp_path / "answers", made, suite.data_schema), suite.data_schema),
        Numbers(tiny.write(tmp_path / "verdicts", said, suite.verdicts), suite.verdicts),
    )
    arms, found = Arms(ARMS[1:]), []
    for rows, verdicts in (tables, streams):
        sections = suite.report(rows, arms, 0, Judgements({"later": verdicts}))
        found.append((sections, suite.headlines(rows, arms, 0)))
    assert found[0] == found[1]
    assert any("judges" in section.title for section in found[0][0]) == ("more_judges" in settings)


def test_verdicts_find_their_answers_in_any_order_and_in_rows_of_several():
    tables = [
        pa.table({"id": ["b", "a"], "verdict": [[True, None], []], "arm": ["x", "y"]}),
        pa.table({"id": ["c"], "verdict": [[False]], "arm": ["x"]}),
    ]
    judged = Answers.of(tables, by=["arm"])
    assert judged.keys == [("x",), ("y",)] and judged.counts(judged.own) == {("x",): (1, 1), ("y",): (0, 0)}
    of_row = {("b", 0): True, ("c", 0): True, ("b", 1): False, ("b", 2): True, ("a", 0): True, ("z", 0): True}
    verdicts = pa.table({"answer_id": [f"{row}{i}" for row, i in of_row], "says": list(of_row.values())})

    def placed(ids: pa.ChunkedArray) -> tuple[pa.ChunkedArray, np.ndarray]:
        rows = pa.chunked_array([[id[0] for id in ids.to_pylist()]])
        return rows, np.array([int(id[1]) for id in ids.to_pylist()])

    found = judged.of_judges({"one": verdicts}, ["one", "two"], "says", placed=placed)
    assert found["two"] is None
    assert judged.counts(found["one"]) == {("x",): (1, 2), ("y",): (0, 0)}, "b0 and c0 true, b1 false"
    assert sorted(found["one"].tolist()) == [0, 1, 1] and UNKNOWN not in found["one"]


def test_a_suite_without_a_judged_answer_has_no_counts():
    judged = Answers.of([], by=["arm"])
    verdicts = pa.table({"answer_id": ["a"], "says": [True]})
    found = judged.of_judges({"one": verdicts}, ["one"], "says")
    assert judged.keys == [] and judged.counts(found["one"]) == {} and len(found["one"]) == 0
