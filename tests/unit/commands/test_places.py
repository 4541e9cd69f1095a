"""Files and directories that cannot be written or read are told in one sentence, by every command."""

import errno
import sys

import pytest

from pipeline import cli
from pipeline.data import storage
from pipeline.errors import of_place


def ended(monkeypatch, capsys, command: str, error: Exception) -> tuple[int, str]:
    """Exit code and message of a command that ends with an error."""

    def fails(standalone_mode):
        raise error

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr(sys, "argv", ["setbacks", command])
    with pytest.raises(SystemExit) as e:
        cli.main()
    return e.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("command", "code"), [("judge", 2), ("publish", 2), ("run", 1), ("mix", 1)])
def test_a_place_that_cannot_be_written_is_one_sentence(monkeypatch, capsys, command, code):
    error = PermissionError(errno.EACCES, "Permission denied", "out/v.jsonl")
    told = "setbacks: out/v.jsonl: Permission denied; change its permissions, or name another place\n"
    assert ended(monkeypatch, capsys, command, error) == (code, told)


def test_other_errors_keep_their_traceback(monkeypatch, capsys):
    error = OSError(errno.EIO, "Input/output error", "x")
    with pytest.raises(OSError, match="Input/output"):
        ended(monkeypatch, capsys, "judge", error)


def test_an_error_without_a_name_says_what_it_says():
    told = of_place(PermissionError(errno.EACCES, "Failed to open local file 'a'"))
    assert "Failed to open local file 'a'" in told and told.endswith("or name another place")


@pytest.mark.parametrize("place", ["a file/below.jsonl", "a directory"])
def test_a_file_that_cannot_be_written_is_named_as_the_user_named_it(tmp_path, place):
    (tmp_path / "a file").write_text("")
    (tmp_path / "a directory").mkdir()
    with pytest.raises(OSError) as e:
        storage.write_text(str(tmp_path / place), "x")
    assert str(tmp_path / "a ") in of_place(e.value) and ".tmp" not in of_place(e.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a directory", "a file"]


def test_an_object_store_that_does_not_answer_is_one_sentence():
    told = of_place(OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted, with\na token"))
    assert told.startswith("an object store cannot be used (google::cloud::Status(UNAVAILABLE: Retry policy")
    assert "\n" not in told and told.endswith("check its address, the network and credentials")
    assert of_place(OSError("We couldn't connect to the hub")) is None
