"""What is kept of every attempt on a run directory, and who may begin. Several processes that want the same
directory are in tests/integration/test_attempts.py."""

import json
import os
import signal
import threading
import time

import pytest

from pipeline.errors import RunFailed, UserError
from pipeline.runtime import attempt, stopping
from pipeline.runtime.attempt import Attempt, history
from tests.attempts import change, file_of, states


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(attempt, "BEAT_S", 0.2)
    monkeypatch.setattr(attempt, "WATCH_S", 1.0)
    monkeypatch.setattr(attempt, "POLL_S", 0.1)


# -- what is kept


def test_every_attempt_is_kept_with_how_it_ended(tmp_path):
    run_dir = str(tmp_path)
    with Attempt(run_dir, ["generate", "mix"]):
        assert states(run_dir) == ["running"]
    endings = {
        "failed: the engine did not start": RunFailed("the engine\ndid not start"),
        "failed: seed = x": UserError("seed = x"),
        "failed: ValueError": ValueError("text of a row"),
        "interrupted": KeyboardInterrupt(),
    }
    for error in endings.values():
        with pytest.raises(type(error)), Attempt(run_dir, ["mix"]):
            raise error
    assert states(run_dir) == ["finished", *endings]
    first = history(run_dir)[0]
    assert (first["number"], first["pid"], first["stages"]) == (1, os.getpid(), ["generate", "mix"])
    assert "text of a row" not in "".join(
        file.read_text() for file in (tmp_path / ".state/attempts").iterdir()
    )


def test_what_an_earlier_attempt_has_half_written_is_removed(tmp_path):
    with Attempt(str(tmp_path), ["generate"]):
        pass
    earlier, own = (tmp_path / ".state/attempts" / f"000{n}.json.77-88.tmp" for n in (1, 2))
    earlier.write_text("{")
    own.write_text("{")
    with Attempt(str(tmp_path), ["generate"]):
        assert not earlier.exists() and own.exists()
    assert states(str(tmp_path)) == ["finished", "finished"]


def test_a_beat_writes_where_the_work_is(tmp_path, quick):
    with Attempt(str(tmp_path), ["generate"]):
        attempt.begin("generate")
        attempt.making("mistakes")
        first = history(str(tmp_path))[0]
        assert (first["stage"], first["outputs"]) == ("generate", {"mistakes": None})
        attempt.report(
            30, 100, "rows", failed=2, per_s=7.0, tokens_per_s=50.0, new_rows=10, error="prompt too long"
        )
        attempt.report(40, 100, "rows", failed=2, per_s=7.0, tokens_per_s=50.0, new_rows=10)
        before = history(str(tmp_path))[0]["beat"]
        until(lambda: history(str(tmp_path))[0]["beat"] > before)
        now = history(str(tmp_path))[0]
    speed = {"per_s": 7.0, "tokens_per_s": 50.0, "eta_s": 9}
    wanted = {"unit": "rows", "done": 40, "total": 100, "failed": 2, **speed, "note": None}
    assert now["outputs"] == {"mistakes": wanted}
    assert (now["rows"], now["last_error"]) == (20, "prompt too long")


def test_outputs_that_are_made_together_are_told_apart(tmp_path):
    with Attempt(str(tmp_path), ["evaluate"]) as mine:
        attempt.making("evaluation", "continuations")
        attempt.report(30, 100, "rows", output="evaluation", per_s=7.0, new_rows=10, error="prompt too long")
        attempt.report(1, 9, "rows", output="continuations", new_rows=1)
        attempt.report(1, 9, "rows", output="mistakes")  # it is not being made any more
        mine.update()
        now = history(str(tmp_path))[0]
    assert {name: (one["done"], one["eta_s"], one["note"]) for name, one in now["outputs"].items()} == {
        "evaluation": (30, 10, "prompt too long"),
        "continuations": (1, None, None),
    }
    assert now["rows"] == 11


def test_without_an_attempt_nothing_is_told():
    attempt.begin("generate")
    attempt.making("mistakes")
    attempt.report(1, 2, "rows")
    attempt.check()
    attempt.end(attempt.INTERRUPTED)


def test_a_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / ".state").write_text("a file")
    with pytest.raises(UserError, match=r"attempts: cannot be read or written"), Attempt(str(tmp_path), []):
        pass


# -- who may begin


def test_a_process_id_given_to_another_process_since_is_no_holder(tmp_path):
    with Attempt(str(tmp_path), []):
        pass
    change(tmp_path, 1, state="running", process_started=17)  # this very process, but for its start
    with Attempt(str(tmp_path), []):
        assert states(tmp_path) == ["killed", "running"]


def test_a_mount_without_hard_links_will_do(tmp_path, quick, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for number in (1, 2):
        with Attempt(str(tmp_path), []) as mine:
            mine.check()
        assert len(history(str(tmp_path))) == number
    assert sorted(os.listdir(tmp_path / ".state/attempts")) == ["0001.json", "0002.json"]


# -- who must end


def test_a_holder_whose_file_is_anothers_must_end(tmp_path, quick, monkeypatch):
    """On an object store two may write the same number; whose token stands there holds the directory."""
    with pytest.raises(RunFailed, match="has taken over"), Attempt(f"file://{tmp_path}", []) as mine:
        change(tmp_path, 1, token="another")
        mine.check()
    assert json.loads(file_of(tmp_path, 1).read_text())["token"] == "another"


def test_storage_out_of_reach_for_a_moment_ends_nothing(tmp_path, quick, monkeypatch):
    tried = []

    def out_of_reach(path: str, *_) -> None:
        tried.append(path)
        raise OSError("no route to host")

    with Attempt(str(tmp_path), []):
        with monkeypatch.context() as patched:
            patched.setattr(attempt.storage, "write_text", out_of_reach)
            attempt.begin("generate")
            until(lambda: len(tried) > 2)
        before = history(str(tmp_path))[0]["beat"]
        until(lambda: history(str(tmp_path))[0]["beat"] > before)
    assert states(tmp_path) == ["finished"]


def test_the_heartbeat_ends_with_the_attempt(tmp_path):
    with Attempt(str(tmp_path), []):
        assert "heartbeat" in {thread.name for thread in threading.enumerate()}
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}


# -- signals


def test_handlers_are_as_they_were_afterwards():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping.stoppable(""):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("written", ["[1, 2]", "3", "null", '"text"', "{"])
def test_a_record_that_is_none_is_as_if_it_were_not_there(tmp_path, written):
    with Attempt(str(tmp_path), ["mix"]):
        pass
    file_of(tmp_path, 1).write_text(written)
    assert history(str(tmp_path)) == [{"number": 1}]
    with Attempt(str(tmp_path), ["mix"]):
        pass
