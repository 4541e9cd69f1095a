"""Attempts on a run directory in an object store create files in one way, whatever each of them could do."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.data import conditional, storage
from pipeline.errors import UserError
from pipeline.runtime.attempt import Attempt

LocalStore = pytest.importorskip("obstore.store").LocalStore


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> str:
    """In a directory that stands for a bucket."""
    monkeypatch.setattr(conditional, "_SCHEMES", ("file",))
    monkeypatch.setattr(storage, "CLAIM_POLL_S", 0.02)
    return f"file://{tmp_path}/run"


@pytest.fixture
def process(monkeypatch):
    """`process(able)`: from here on, as in a new process, to which the store is open or not."""

    def begin(able: bool) -> None:
        monkeypatch.setattr(conditional, "_stores", {})
        monkeypatch.setattr(conditional, "_by_claims", set())
        monkeypatch.setattr(conditional, "_opened", lambda *_: LocalStore("/") if able else None)

    return begin


@pytest.fixture
def claims(monkeypatch) -> list[str]:
    """The names of what is created by claims."""
    made: list[str] = []
    real = storage._create_by_claim

    def spy(path: str, text: str) -> bool:
        made.append(storage.name(path))
        return real(path, text)

    monkeypatch.setattr(storage, "_create_by_claim", spy)
    return made


def test_a_process_that_cannot_write_on_conditions_is_refused_where_others_do(run_dir, process, claims):
    process(able=True)
    storage.agree(run_dir)
    assert storage.create(f"{run_dir}/a", "1") and not storage.create(f"{run_dir}/a", "2")
    assert claims == ["created-by"], "all that could differ is agreed on by what all can do"
    process(able=False)
    with pytest.raises(UserError) as e, Attempt(run_dir, ["generate"]):
        pass
    assert str(e.value).startswith(f"run_dir = {run_dir}: its first attempt wrote on conditions")
    assert not storage.sizes(f"{run_dir}/.state/attempts")


def test_a_missing_library_is_named(run_dir, process, monkeypatch):
    process(able=True)
    storage.agree(run_dir)
    process(able=False)
    monkeypatch.setattr(storage, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"obstore is not installed\); use `pip install 'setbacks\[object"):
        storage.agree(run_dir)


def test_a_process_that_could_write_on_conditions_makes_claims_where_others_do(run_dir, process, claims):
    process(able=False)
    storage.agree(run_dir)
    process(able=True)
    assert conditional.possible(f"{run_dir}/a")
    storage.agree(run_dir)
    assert storage.create(f"{run_dir}/a", "1") and not storage.create(f"{run_dir}/a", "2")
    assert claims == ["created-by", "a", "a"]
    assert conditional.possible(f"{run_dir}_of_others/a"), "another run is its own"


@pytest.mark.parametrize("seed", range(5))
def test_those_that_begin_together_agree(run_dir, monkeypatch, seed):
    together, left = threading.Barrier(6), set()
    able = threading.local()
    monkeypatch.setattr(conditional, "possible", lambda _path: able.is_so)
    monkeypatch.setattr(conditional, "leave_to_claims", lambda _directory: left.add(threading.get_ident()))

    def begin(number: int) -> str:
        able.is_so = (number + seed) % 2 == 0
        together.wait()
        try:
            storage.agree(run_dir)
        except UserError:
            return "refused"
        return storage.CLAIMS if threading.get_ident() in left else storage.CONDITIONS

    with ThreadPoolExecutor(6) as threads:
        ways = set(threads.map(begin, range(6))) - {"refused"}
    assert ways == {storage.read_text(f"{run_dir}/.state/created-by")}


def test_a_directory_of_a_file_system_needs_no_record(tmp_path):
    storage.agree(str(tmp_path))
    assert not list(tmp_path.iterdir())
