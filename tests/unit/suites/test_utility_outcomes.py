"""The numbers of tasks for `compare` and for limits: by document, of the task's own metric."""

import json

import pyarrow.parquet as pq
import pytest

from pipeline.commands import thresholds
from pipeline.commands.compare import compare
from pipeline.commands.report import write_report
from pipeline.commands.report_results import read
from pipeline.config import Config, dump
from pipeline.errors import RunFailed
from pipeline.suites.utility import Utility
from pipeline.suites.utility.schema import UTILITY
from tests.unit.commands.reports import no_figures
from tests.unit.suites.test_utility import of, row, table

ARMS = {"sft": "/adapters/sft"}


@pytest.fixture
def run(tmp_path):
    """Write a run with these rows of the suite; returns its directory."""

    def run(name: str, *rows: dict) -> str:
        path = tmp_path / name
        (path / "utility").mkdir(parents=True)
        pq.write_table(UTILITY.table(list(rows)), path / "utility/part-00000.parquet")
        tree = {"run_dir": str(path), "model": {"path": "toy"}, "adapters": ARMS}
        config = Config.model_validate({**tree, "suites": {"utility": {"tasks": ["t", "u"]}}})
        (path / "config.yaml").write_text(dump(config))
        return str(path)

    return run


def test_two_runs_are_paired_over_documents_task_by_task(run):
    first = run("a", *of("sft", [1, 1, 0, 0, 1]), *of("sft", [0, 1], task="u", subtask="u"))
    second = run("b", *of("sft", [1, 0, 0, 1, 1]), *of("sft", [1, 1], task="u", subtask="u"))
    t, u = compare([first, second]).pairings
    assert (t.suite, t.measure, t.group, t.arm, t.unit) == ("utility", "utility", "t", "sft", "share")
    assert (t.before, t.after, t.difference.better, t.difference.worse) == (0.6, 0.6, 1, 1)
    assert (u.group, u.before, u.after) == ("u", 0.5, 1.0)


def test_only_the_tasks_own_metric_counts():
    rows = [row("sft", 0, 1.0), row("sft", 0, 0.0, metric="acc_norm", primary=False)]
    utility, _ = Utility(tasks=["t"]).outcomes
    assert utility.read([table(*rows)])["sft", "t"].values.tolist() == [1.0]


def test_documents_of_one_number_that_are_others_are_no_pair(run):
    """The task has changed between the runs: its second document is another one."""
    changed = [row("sft", 0, 1.0), row("sft", 1, 1.0, doc_hash="another")]
    [pair] = compare([run("a", *of("sft", [0.0, 0.0])), run("b", *changed)]).pairings
    assert (pair.difference.n, pair.alone) == (1, 2)


def test_subtasks_with_equal_documents_are_not_mixed(run):
    rows = [*of("sft", [1], subtask="a"), *of("sft", [0], subtask="b")]
    [pair] = compare([run("a", *rows), run("b", *rows)]).pairings
    assert (pair.difference.n, pair.before) == (2, 0.5)


def test_a_number_that_is_no_share_is_a_score_and_stands_in_a_table_of_its_own(run):
    rows = [*of("sft", [1, 0]), *of("sft", [12.5, 7.5], task="u", subtask="u", metric="words")]
    found = compare([run("a", *rows), run("b", *rows)])
    assert {one.group: one.unit for one in found.pairings} == {"t": "share", "u": "score"}


def test_refusals_are_compared_if_the_arm_wrote_something(run):
    rows = [row("sft", n, 1, refused=n == 0) for n in range(4)]
    more = [row("sft", n, 1, refused=n < 3) for n in range(4)]
    found = {one.measure: one for one in compare([run("a", *rows), run("b", *more)]).pairings}
    assert (found["refused"].before, found["refused"].after) == (0.25, 0.75)
    silent = compare([run("c", *of("sft", [1, 0])), run("d", *of("sft", [1, 0]))])
    assert [one.measure for one in silent.pairings] == ["utility"]


@pytest.fixture
def limited(run, monkeypatch):
    """vanilla 4 of 5 and sft 2 of 5 on task t; sft refuses one document, vanilla none."""
    no_figures(monkeypatch)
    rows = [
        *(row("vanilla", n, float(n < 4), refused=False) for n in range(5)),
        *(row("sft", n, float(n < 2), refused=n == 4) for n in range(5)),
    ]
    path = run("run", *rows)
    config = Config.model_validate(
        {"run_dir": path, "model": {"path": "toy"}, "adapters": ARMS, "suites": {"utility": {"tasks": ["t"]}}}
    )
    write_report(config, path)
    return read(path)


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        ("t.utility=0.5", "utility is below 0.5: 0.4 [0.118, 0.769] (sft, t, acc, n = 5)"),
        ("t.difference=-0.2", "difference is below -0.2: -0.4 [-0.8, 0] (sft, t, "),
    ],
)
def test_a_limit_names_a_task_and_its_loss(limited, limit, told):
    with pytest.raises(RunFailed) as e:
        thresholds.check(limited, thresholds.limits([limit], []), [])
    assert told in str(e.value)


def test_a_limit_of_a_loss_is_not_one_of_refusals(limited):
    """sft refuses 0.2 more: that is no gain of the task."""
    thresholds.check(limited, thresholds.limits(["t.difference=-0.5"], ["t.difference=0"]), [])
    with pytest.raises(RunFailed, match="difference"):
        thresholds.check(limited, thresholds.limits([], ["t_refusals.difference=0.1"]), [])
    thresholds.check(limited, thresholds.limits(["t.utility=0.8"], []), ["vanilla"])


def test_results_json_has_the_task_and_the_metric_of_every_number(limited):
    found = [one for one in limited.numbers if one.name == "utility"]
    assert {(one.arm, one.row["Task"], one.row["Metric"], one.unit) for one in found} == {
        ("vanilla", "t", "acc", "share"),
        ("sft", "t", "acc", "share"),
    }
    assert json.loads(found[0].model_dump_json())["n"] == 5


def test_more_refusals_are_not_called_better(limited):
    counted = {one.name for one in limited.numbers if one.section == "Utility: paired differences"}
    assert {"higher", "lower"} <= counted and not counted & {"better", "worse"}
