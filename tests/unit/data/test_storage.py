"""A file that one of many creates, on storage with exclusive creation and without; copies between
storages."""

import errno
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs as pafs
import pytest

from pipeline.data import storage


@pytest.fixture(params=["", "file://"])  # a URL goes the way of an object store
def place(request, tmp_path) -> str:
    return f"{request.param}{tmp_path}/attempts"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(storage, "CLAIM_POLL_S", 0.02)


def test_a_file_is_created_once(place):
    path = f"{place}/0001.json"
    assert storage.create(path, "first")
    assert not storage.create(path, "second")
    assert storage.read_text(path) == "first"
    assert list(storage.sizes(place)) == ["0001.json"], "no claim is left"


@pytest.mark.parametrize("seed", range(10))
def test_of_many_at_once_exactly_one_creates_it(place, seed):
    together = threading.Barrier(8)

    def create(number: int) -> int | None:
        together.wait()
        time.sleep(0.001 * (number * seed % 7))
        return number if storage.create(f"{place}/0001.json", f"{number}") else None

    with ThreadPoolExecutor(8) as threads:
        created = [number for number in threads.map(create, range(8)) if number is not None]
    assert len(created) == 1 and storage.read_text(f"{place}/0001.json") == f"{created[0]}"
    assert list(storage.sizes(place)) == ["0001.json"]


def test_a_directory_made_while_it_is_listed_is_no_error(tmp_path, monkeypatch):
    """Arrow looks twice: a directory that is not there at its first look and is at its second is an error to
    it."""
    late = tmp_path / "late"

    class Racing(pafs.LocalFileSystem):
        def get_file_info(self, selector):
            if not late.exists():
                late.mkdir()
                (late / "0001.json").write_text("{}")
                raise FileNotFoundError(2, f"Cannot list directory '{late}'")
            return super().get_file_info(selector)

    monkeypatch.setattr(storage, "filesystem", lambda path: (Racing(), path))
    assert storage.sizes(str(late)) == {"0001.json": 2}


def test_claims_of_the_dead_hold_nobody_up_for_ever(tmp_path, monkeypatch):
    """One smaller and one larger than any claim of the living; of three living ones, who all take theirs back
    at first, one goes on."""
    monkeypatch.setattr(storage, "CLAIM_S", 0.4)
    place = f"file://{tmp_path}/attempts"
    for end in ("", "~"):
        storage.write_text(f"{place}/0001.json.claim-{end}", "claimed")
    with ThreadPoolExecutor(3) as threads:
        made = threads.map(lambda _: storage.create(f"{place}/0001.json", "x") is not None, range(3))
        assert Counter(made) == {True: 1, False: 2}


def test_a_claim_of_the_living_is_waited_for(tmp_path):
    """Its writer looked before us, saw nobody, and is about to create the file."""
    place = f"file://{tmp_path}/attempts"
    claim = f"{place}/0001.json.claim-~"
    storage.write_text(claim, "claimed")
    with ThreadPoolExecutor(1) as threads:
        ours = threads.submit(storage.create, f"{place}/0001.json", "ours")
        time.sleep(0.2)
        assert not ours.done()
        storage.write_text(f"{place}/0001.json", "theirs")
        storage.remove(claim)
        assert ours.result(5) is None
    assert storage.read_text(f"{place}/0001.json") == "theirs"


def test_a_directory_is_copied_from_storage_to_storage(tmp_path):
    storage.write_text(f"{tmp_path}/a/one", "1")
    storage.write_text(f"{tmp_path}/a/below/two", "2")
    assert storage.copy(f"{tmp_path}/a", f"file://{tmp_path}/b") == f"file://{tmp_path}/b"
    assert [storage.read_text(f"{tmp_path}/b/{name}") for name in ("one", "below/two")] == ["1", "2"]
    assert storage.directories(f"{tmp_path}/b") == ["below"] and storage.directories(f"{tmp_path}/none") == []
    with pytest.raises(OSError):
        storage.copy(f"{tmp_path}/none", f"{tmp_path}/c")


def test_a_directory_that_is_still_written_into_is_deleted_again(tmp_path, monkeypatch):
    place, tries = tmp_path / "checkpoints", []
    (place / "a").mkdir(parents=True)

    class Busy(pafs.LocalFileSystem):
        """As if a file had been written while the directory was being deleted."""

        def delete_dir(self, path):
            tries.append(path)
            if len(tries) < 3:
                raise OSError(errno.ENOTEMPTY, "Directory not empty")
            super().delete_dir(path)

    monkeypatch.setattr(storage, "filesystem", lambda path: (Busy(), path))
    monkeypatch.setattr(storage, "_REMOVAL_S", 0.0)
    storage.remove(str(place))
    assert len(tries) == 3 and not place.exists()
