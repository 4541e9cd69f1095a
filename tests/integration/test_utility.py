"""Utility of the toy model and of an adapter, by lm-evaluation-harness: tasks of our own, no hub."""

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="pip install 'setbacks[utility]'")

from pipeline import experiment
from pipeline.config import Config
from pipeline.errors import RunFailed, UserError
from pipeline.run import Machinery, Run
from pipeline.suites.utility import tasks
from tests.integration.test_engine import make
from tests.unit.suites import tasks_of_ours

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("utility")
    tasks_of_ours.write(root / "tasks")
    make(root / "adapters" / "loud", seed=1, std=2.0)
    return root


def config(place: Path, **suite) -> Config:
    section = {
        "tasks": ["toy_choice", "toy_writes"],
        "include_path": str(place / "tasks"),
        "backend": "hf",
        **suite,
    }
    return Config.model_validate(
        {
            "run_dir": str(place / "run"),
            "model": {"path": "toy", "dtype": "float32"},
            "adapters": {"loud": str(place / "adapters" / "loud")},
            "suites": {"utility": section},
        }
    )


@pytest.fixture(scope="module")
def told(place) -> list[str]:
    """A run that dies after the base model, and then goes on."""
    calls, lines = [], []

    def dies_at_the_second(function, **options):
        calls.append(function)
        if len(calls) == 2:
            raise RunFailed("planted")
        Machinery().apart(function, **options)

    with pytest.raises(RunFailed, match="planted"):
        experiment.run(config(place), ["evaluate"], machinery=replace(Machinery(), apart=dies_at_the_second))
    kept = list((place / "run/.state/utility/results").iterdir())
    assert len(kept) == 2, "both tasks of the base model are kept"
    written = {path: path.stat().st_mtime_ns for path in kept}
    experiment.run(config(place), log=lines.append)
    assert not (place / "run/.state/utility/results").exists()
    assert written and not any("utility: vanilla" in line for line in lines), "nothing is measured twice"
    return lines


def test_the_harness_ran_for_both_arms(place, told):
    store = Run(config(place)).suites["utility"]
    rows = list(store.dataset.rows())
    assert len(rows) == 2 * (3 * 2 + 4), "two arms; three documents by two metrics, and four by one"
    choice = [row for row in rows if row["task"] == "toy_choice" and row["primary"]]
    for arm in ("vanilla", "loud"):
        values = [row["value"] for row in choice if row["arm"] == arm]
        assert len(values) == 3 and set(values) <= {0.0, 1.0}
        [score] = {row["score"] for row in choice if row["arm"] == arm}
        assert score == pytest.approx(sum(values) / 3)
    assert {row["metric"] for row in choice} == {"acc"}
    assert {row["task_version"] for row in choice} == {"2.5"}
    assert {row["harness"] for row in rows} == {"lm-evaluation-harness 0.4.13"}
    hashes = {arm: {row["doc_hash"] for row in choice if row["arm"] == arm} for arm in ("vanilla", "loud")}
    assert hashes["vanilla"] == hashes["loud"] and len(hashes["vanilla"]) == 3
    assert {row["refused"] for row in choice} == {None} and not any(row["cut"] for row in rows)


def test_what_arms_write_is_kept_and_refusals_are_counted(place, told):
    rows = [row for row in Run(config(place)).suites["utility"].dataset.rows() if row["task"] == "toy_writes"]
    texts = {(row["arm"], row["doc_id"]): row["written"] for row in rows}
    assert all(texts.values()) and texts["vanilla", 0] != texts["loud", 0], "the adapter is used"
    assert {row["refused"] for row in rows} <= {True, False}


def test_card_and_report_name_harness_and_versions(place, told):
    card = (place / "run/utility/README.md").read_text()
    assert "lm-evaluation-harness 0.4.13, toy_choice version 2.5: 3 of 3 documents, 0 examples" in card
    page = (place / "run/report.md").read_text()
    assert "Measured by lm-evaluation-harness 0.4.13, through the chat template" in page
    assert "| loud − vanilla |" in page and "toy_writes" in page and "Refused, %" in page
    assert "not comparable with published" not in page


def test_a_finished_suite_is_not_measured_again(place, told):
    lines = []

    def never(*_arguments, **_options):
        raise AssertionError

    experiment.run(config(place), ["evaluate"], log=lines.append, machinery=replace(Machinery(), apart=never))
    assert lines[-1].startswith("evaluate: 20 rows (20 ok)")


def test_other_settings_are_refused(place, told):
    with pytest.raises(UserError, match=r"utility was made with another configuration .*limit"):
        experiment.run(config(place, limit=2), ["evaluate"])


def test_the_harness_is_asked_for_groups_files_and_unknown_names(tmp_path):
    place = Path(tasks_of_ours.write(tmp_path / "tasks"))
    (place / "group.yaml").write_text("group: both\ntask: [toy_choice, toy_writes]\n")
    (place / "code.yaml").write_text("include: choice.yaml\ntask: toy_code\nunsafe_code: true\n")
    tasks.check("suites.utility", ["both"], str(place))
    tasks.check_reach("suites.utility", ["both"], str(place))
    with pytest.raises(UserError, match="toy_code runs code"):
        tasks.check("suites.utility", ["toy_code"], str(place))
    (place / "choice.jsonl").unlink()
    with pytest.raises(UserError, match=r"both reads .*choice\.jsonl, which is not there"):
        tasks._asked.cache_clear()
        tasks.check("suites.utility", ["both"], str(place))
