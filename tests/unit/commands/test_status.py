"""`setbacks status`: right for every state a run can be in, from files alone, at once."""

import json
import os
import subprocess
import sys

import pytest

from pipeline import cli
from pipeline.commands.status import status
from pipeline.data import storage
from pipeline.data.output import Output
from pipeline.data.store import Store
from pipeline.errors import RunFailed, UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.runtime import attempt
from pipeline.runtime.attempt import Attempt
from pipeline.schema import INSTRUCTIONS, SFT
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS
from tests import scripted
from tests.scripted import instruction


@pytest.fixture
def run_dir(tmp_path) -> str:
    return str(tmp_path / "run")


@pytest.fixture
def setbacks(monkeypatch, capsys):
    """Run `setbacks status …`: returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["setbacks", "status", *map(str, arguments)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return e.value.code or 0, *capsys.readouterr()

    return run


def begin_mistakes(run_dir: str, rows: int = 10, block_rows: int = 4) -> Store:
    store = Store(run_dir, "mistakes", MISTAKES)
    store.open({"seed": 0})
    store.write_work(
        [instruction(id=f"r{i}", instruction_id=f"r{i}") for i in range(rows)],
        INSTRUCTIONS,
        block_rows=block_rows,
    )
    return store


def commit(store: Store, *blocks: int, failed: int = 0) -> None:
    for number in blocks:
        block = store.block(store.work_list, number)
        rows = [{"id": row["id"], "status": "ok"} for row in block.read()[0]]
        for row in rows[:failed]:
            row |= {"status": "failed", "error": "prompt too long: 9 tokens"}
        block.commit(rows)


def end_by_kill(run_dir: str, number: int) -> None:
    """The file of an attempt as SIGKILL leaves it."""
    path = storage.join(attempt.attempts_dir(run_dir), f"{number:04d}.json")
    storage.write_text(
        path, json.dumps(json.loads(storage.read_text(path)) | {"state": "running", "process_started": 17})
    )


def only(found: dict) -> dict:
    [output] = found["outputs"]
    return output


# -- states of a run


def test_a_running_one_says_how_far_and_how_fast(run_dir):
    store = begin_mistakes(run_dir)
    commit(store, 0)
    with Attempt(run_dir, ["generate", "mix", "report"]) as mine:
        attempt.begin("generate")
        attempt.making("mistakes")
        before = only({"outputs": status(run_dir)["outputs"][:1]})
        attempt.report(
            6, 10, "rows", failed=1, per_s=2.0, tokens_per_s=30.0, new_rows=2, error="prompt too long"
        )
        mine.update()  # a beat
        found = status(run_dir)
    assert (before["state"], before["done"], before["left"], before["total"]) == (
        "running",
        4,
        6,
        10,
    )  # no figures yet: what is committed
    now, waiting = found["outputs"]
    assert found["state"] == "running"
    assert (now["stage"], now["name"], now["state"], now["done"], now["left"], now["failed"]) == (
        "generate",
        "mistakes",
        "running",
        6,
        4,
        1,
    )
    assert (now["per_s"], now["tokens_per_s"], now["eta_s"], now["note"]) == (2.0, 30.0, 2, "prompt too long")
    assert (waiting["stage"], waiting["state"], waiting["name"]) == ("mix", "waiting", None)


def test_two_that_are_made_together_are_both_running(run_dir):
    stores = [Store(run_dir, schema.name, schema) for schema in (ANSWERS, CONTINUATIONS)]
    for store in stores:
        store.open({"stage": "evaluate"})
        store.write_work([{"id": f"r{i}", "status": None} for i in range(10)], store.schema, block_rows=4)
    with Attempt(run_dir, ["evaluate"]) as mine:
        attempt.making("evaluation", "continuations")
        commit(stores[1], 0)
        attempt.report(10, 10, "rows", output="evaluation", failed=1, per_s=2.0, error="prompt too long")
        mine.update()
        second, first = status(run_dir)["outputs"]
        commit(stores[0], 0, 1, 2)
        stores[0].finish()
        attempt.report(5, 10, "rows", output="continuations", failed=0, per_s=0.5)
        mine.update()
        other, whole = status(run_dir)["outputs"]
    assert (first["state"], first["done"], first["per_s"]) == ("running", 10, 2.0)
    assert first["note"] == "prompt too long"
    assert (second["state"], second["done"], second["left"]) == ("running", 4, 6), "by its commits"
    assert (whole["name"], whole["state"], whole["done"]) == ("evaluation", "complete", 10)
    assert (other["name"], other["state"], other["done"], other["left"]) == ("continuations", "running", 5, 5)
    assert (other["failed"], other["eta_s"], other["note"]) == (0, 10, None), "nothing of the other's"


def test_a_killed_one_is_said_to_be_killed_and_its_commits_count(run_dir):
    store = begin_mistakes(run_dir)
    commit(store, 0, 2)
    with Attempt(run_dir, ["generate"]):
        attempt.making("mistakes")
        attempt.report(9, 10, "rows", per_s=5.0)
    end_by_kill(run_dir, 1)
    found = status(run_dir)
    output = only(found)
    assert (found["state"], output["state"]) == ("killed", "incomplete")
    assert (output["done"], output["left"], output["per_s"], output["eta_s"]) == (
        6,
        4,
        None,
        None,
    )  # 4 + 2: the last block is a short one
    assert attempt.history(run_dir)[0]["state"] == "running"  # looking changes nothing


def test_an_older_attempt_that_says_running_was_killed(run_dir):
    with Attempt(run_dir, []):
        pass
    end_by_kill(run_dir, 1)
    storage.write_text(
        storage.join(attempt.attempts_dir(run_dir), "0002.json"),
        json.dumps({"number": 2, "state": "finished"}),
    )
    assert [one["state"] for one in status(run_dir)["attempts"]] == ["killed", "finished"]


def test_one_on_another_host_is_watched(run_dir, monkeypatch):
    monkeypatch.setattr(attempt, "BEAT_S", 0.2)
    monkeypatch.setattr(attempt, "WATCH_S", 1.0)
    monkeypatch.setattr(attempt, "POLL_S", 0.1)
    monkeypatch.setattr(attempt, "_boot", lambda: None)  # nothing can be looked up
    with Attempt(run_dir, []):
        assert status(run_dir)["state"] == "running"
    end_by_kill(run_dir, 1)
    assert status(run_dir)["state"] == "killed"


def test_a_whole_one(run_dir):
    store = begin_mistakes(run_dir)
    commit(store, 0, 1, 2, failed=1)
    store.finish()
    sft = Store(run_dir, "sft", SFT)
    sft.open({"stage": "mix"})
    sft.write_rows([])
    adapter = Output(run_dir, "adapter/sft")
    adapter.open({"stage": "train"})
    storage.write_text(storage.join(adapter.path, "adapter_model.safetensors"), "")
    adapter.mark_complete({"steps": 35, "tokens_per_s": 812.0, "examples": 9})
    Output(run_dir, "adapter/more").open({"stage": "train"})
    mistakes, examples, more, trained = status(run_dir)["outputs"]
    assert (mistakes["state"], mistakes["done"], mistakes["failed"], mistakes["counts"]) == (
        "complete",
        10,
        3,
        {"ok": 7, "failed": 3},
    )
    assert mistakes["note"] == "prompt too long"
    assert (examples["stage"], examples["state"], examples["done"]) == ("mix", "complete", 0)
    assert (more["name"], more["state"], more["done"]) == ("adapter/more", "incomplete", None)
    assert (trained["name"], trained["state"], trained["done"], trained["unit"]) == (
        "adapter/sft",
        "complete",
        35,
        "steps",
    )


def test_a_shard_that_was_deleted_is_told(run_dir):
    store = begin_mistakes(run_dir)
    commit(store, 0, 1, 2)
    store.finish()
    os.unlink(storage.join(store.path, "data-00000.parquet"))
    output = only(status(run_dir))
    assert output["state"] == "corrupt" and "data-00000.parquet has been deleted" in output["note"]


def test_files_that_cannot_be_read_are_no_traceback(run_dir):
    store = begin_mistakes(run_dir)
    storage.write_text(store.state("complete.json"), "{")
    storage.write_text(storage.join(attempt.attempts_dir(run_dir), "0001.json"), "")
    found = status(run_dir)
    assert (only(found)["state"], found["attempts"]) == (
        "corrupt",
        [{"number": 1, "state": "cannot be read"}],
    )


@pytest.mark.parametrize("place", ["never", "empty"])
def test_it_is_one_sentence_if_nothing_ran(setbacks, tmp_path, place):
    (tmp_path / "empty").mkdir()
    code, out, err = setbacks(tmp_path / place)
    assert (code, out) == (2, "")
    assert err.startswith("setbacks: ") and "contains no run" in err and err.count("\n") == 1


# -- the command


def test_a_configuration_or_a_url_will_do(setbacks, tmp_path, run_dir):
    begin_mistakes(run_dir)
    config = tmp_path / "run.json"
    config.write_text(json.dumps(scripted.tree(run_dir)))
    (tmp_path / "run.yaml").write_text(config.read_text())
    by_config, by_url = (
        setbacks(tmp_path / "run.yaml", "--json")[1],
        setbacks(f"file://{run_dir}", "--json")[1],
    )
    assert json.loads(by_config)["outputs"] == json.loads(by_url)["outputs"] != []


def test_the_table_tells_what_the_json_does(setbacks, run_dir):
    store = begin_mistakes(run_dir, rows=4000, block_rows=1000)
    commit(store, 0)
    with pytest.raises(RunFailed), Attempt(run_dir, ["generate"]):
        raise RunFailed("no engine")
    code, out, _ = setbacks(run_dir)
    assert code == 0
    assert "1,000 of 4,000 rows" in out and "incomplete" in out and "3,000" in out
    assert "failed: no engine" in out and str(os.getpid()) in out
    found = json.loads(setbacks(run_dir, "--json")[1])
    assert found == json.loads(json.dumps(status(run_dir)))


def test_nothing_in_a_file_is_taken_for_markup(setbacks, run_dir):
    with pytest.raises(UserError), Attempt(run_dir, ["generate"]):
        raise UserError("[red]x[/red] \x1b]0;title\x07 seed = 1")
    _, out, _ = setbacks(run_dir)
    assert "[red]x[/red]" in out and "\x1b]0" not in out and "\x07" not in out


def test_it_imports_nothing_heavy(run_dir):
    begin_mistakes(run_dir)
    code = (
        "import sys; from pipeline import cli; sys.argv[1:] = ['status', sys.argv[1]]\ntry:\n   "
        " cli.main()\nexcept SystemExit:\n    pass\nsys.exit(str(sorted({'ray', 'torch', 'vllm',"
        " 'transformers', 'numpy.random', 'httpx'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code, run_dir], capture_output=True, text=True)
    assert "mistakes" in done.stdout and done.stderr.strip() == "[]"


def test_looking_takes_no_lease(setbacks, run_dir):
    begin_mistakes(run_dir)
    setbacks(run_dir)
    assert not storage.exists(attempt.attempts_dir(run_dir))
