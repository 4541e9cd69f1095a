"""A model is copied to a node's disk once, whole, by one of the processes that want it, and deleted when room
is needed and nobody uses it."""

import fcntl
import os
import shutil
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.data import node_copy


@pytest.fixture
def model(tmp_path) -> Path:
    return make(tmp_path / "shared/model")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(node_copy.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(node_copy, "_locks", {})
    return tmp_path / "cache" / f"models-{os.getuid()}"


@pytest.fixture
def copied(monkeypatch) -> Counter[str]:
    """How often each file was copied."""
    counts, real = Counter[str](), shutil.copyfile

    def spy(source, target):
        counts[Path(source).name] += 1
        time.sleep(0.05)  # so that others come while it is copied
        return real(source, target)

    monkeypatch.setattr(node_copy.shutil, "copyfile", spy)
    return counts


def make(place: Path, weights: bytes = b"w" * 5000) -> Path:
    """A model's files, with others beside them that nothing reads."""
    (place / "additional_chat_templates").mkdir(parents=True)
    (place / "original").mkdir()
    (place / "config.json").write_text("{}")
    blob = place.with_name(f"blob-of-{place.name}")
    blob.write_bytes(weights)
    (place / "model.safetensors").symlink_to(blob)  # as in a hub's cache
    (place / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (place / "original" / "consolidated.00.pth").write_bytes(b"pickled")
    return place


def read(model: Path) -> tuple[Path, list[str]]:
    """Where a process reads a model from, and what it was told."""
    told: list[str] = []
    return Path(node_copy.read_from(str(model), told.append)), told


def end() -> None:
    """The processes that used copies have ended."""
    while node_copy._locks:
        os.close(node_copy._locks.popitem()[1])


def test_without_a_cache_and_for_hub_ids_nothing_is_copied(model, tmp_path, monkeypatch):
    assert read(model) == (model, [])
    monkeypatch.setenv(node_copy.CACHE, str(tmp_path / "cache"))
    assert node_copy.read_from("org/name", pytest.fail) == "org/name"
    assert not (tmp_path / "cache").exists()


def test_the_copy_holds_what_is_read_and_no_links(model, cache):
    place, told = read(model)
    assert place.parent == cache and place.name.startswith("model-") and told == []
    assert (place / "model.safetensors").read_bytes() == b"w" * 5000
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert (place / "additional_chat_templates/tools.jinja").exists()
    assert not list(place.rglob("*.pth")), "what could run code is never read"
    assert cache.stat().st_mode & 0o777 == 0o700


def test_of_many_processes_one_copies_and_all_read_the_copy(model, cache, copied):
    together = threading.Barrier(8)

    def one(_number: int) -> Path:
        together.wait()
        return read(model)[0]

    with ThreadPoolExecutor(8) as threads:
        places = set(threads.map(one, range(8)))
    assert len(places) == 1 and set(copied.values()) == {1}
    end()
    assert {read(model)[0]} == places and set(copied.values()) == {1}, "nor is it copied again later"


def test_those_that_see_at_once_that_there_is_no_copy_do_not_wait_for_the_one_that_makes_it(
    model, cache, copied, monkeypatch
):
    """The one that made it keeps its share of the lock, so nobody has the lock alone after that."""
    real, seen, together = node_copy._is_whole, Counter[int](), threading.Barrier(3)

    def is_whole(place, files):
        found = real(place, files)
        seen[threading.get_ident()] += 1
        if seen[threading.get_ident()] == 1:
            together.wait()
        return found

    monkeypatch.setattr(node_copy, "_is_whole", is_whole)
    monkeypatch.setattr(node_copy, "WAIT_S", 10)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _number: read(model), range(3)))
    place, _ = found[0]
    assert found == [(place, [])] * 3 and place.parent == cache and set(copied.values()) == {1}


def test_another_model_at_the_same_path_is_another_copy(model, cache):
    first, _ = read(model)
    shutil.rmtree(model)
    make(model, b"v" * 5000)
    second, _ = read(model)
    assert second != first and (second / "model.safetensors").read_bytes() == b"v" * 5000


def test_what_a_process_left_when_it_died_is_made_anew(model, cache, copied):
    place, _ = read(model)
    end()
    place.rename(f"{place}.part")
    (place.with_name(f"{place.name}.part") / "model.safetensors").write_bytes(b"half")
    assert read(model)[0] == place and (place / "model.safetensors").stat().st_size == 5000
    assert copied["config.json"] == 2 and not list(cache.glob("*.part"))


def test_a_copy_that_fails_leaves_nothing_and_the_model_is_read_from_where_it_is(model, cache, monkeypatch):
    def full(_source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node_copy.shutil, "copyfile", full)
    place, [told] = read(model)
    assert place == model and told.endswith("/model is read (No space left on device)")
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def disk(monkeypatch, cache: Path, total: int) -> None:
    """A disk of so many bytes, on which nothing else is."""

    def usage(_place):
        used = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
        return shutil._ntuple_diskusage(total, used, total - used)

    monkeypatch.setattr(node_copy.shutil, "disk_usage", usage)


def test_copies_that_nobody_uses_make_room_the_oldest_first(tmp_path, cache, monkeypatch):
    disk(monkeypatch, cache, 22_000)  # of which 15 % stay free: three copies of 5 000 and their other files
    models = [make(tmp_path / f"shared/{name}") for name in "abcd"]
    places = [read(model)[0] for model in models[:3]]
    for age, place in enumerate(reversed(places)):
        os.utime(place, (1e9 - age, 1e9 - age))  # c was used last
    end()
    kept, _ = read(models[0])  # it is the oldest no longer
    end()
    last, told = read(models[3])
    assert told == [] and last.exists() and kept.exists()
    assert [place.exists() for place in places] == [True, False, True]


def test_copies_in_use_stay_and_a_disk_that_is_full_of_them_is_told(tmp_path, cache, monkeypatch):
    disk(monkeypatch, cache, 11_000)
    first, second = (make(tmp_path / f"shared/{name}") for name in "ab")
    place, _ = read(first)
    found, [told] = read(second)
    assert found == second and place.exists()
    assert "is read (a copy takes 0.0 GiB, and 0.0 GiB of the disk may be used)" in told
    end()
    assert read(second)[1] == [] and not place.exists()


def test_a_copy_is_not_deleted_while_another_process_makes_it(model, cache):
    place, _ = read(model)
    end()
    lock = node_copy._opened(place)
    fcntl.flock(lock, fcntl.LOCK_EX)
    node_copy._delete(place)
    assert place.exists()
    os.close(lock)
    node_copy._delete(place)
    assert not place.exists()


def test_a_cache_that_others_can_write_is_not_used(model, cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    place, [told] = read(model)
    assert place == model and "can be written by others" in told


def test_what_is_left_of_an_interrupted_deletion_is_no_copy(model, cache, monkeypatch):
    place, _ = read(model)
    end()
    real = shutil.rmtree

    def dies(path, **_options):
        (Path(path) / "config.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(node_copy.shutil, "rmtree", lambda path, **_: dies(path) if path.exists() else None)
    with pytest.raises(KeyboardInterrupt):
        node_copy._delete(place)
    monkeypatch.setattr(node_copy.shutil, "rmtree", real)
    assert not place.exists()
    assert read(model)[0] == place and (place / "config.json").exists()


def test_a_copy_of_which_a_cleaner_took_a_file_is_made_anew(model, cache, copied):
    place, _ = read(model)
    end()
    (place / "model.safetensors").unlink()
    assert read(model) == (place, []) and (place / "model.safetensors").stat().st_size == 5000
    assert copied["config.json"] == 2


def test_a_process_whose_copy_is_gone_reads_the_model_from_where_it_is(model, cache):
    place, _ = read(model)
    assert read(model) == (place, []) and len(node_copy._locks) == 1
    shutil.rmtree(place)
    found, [told] = read(model)
    assert found == model and "which this process reads, are gone" in told


def test_one_that_waits_too_long_reads_the_model_from_where_it_is(model, cache, monkeypatch):
    place, _ = read(model)
    end()
    shutil.rmtree(place)
    monkeypatch.setattr(node_copy, "WAIT_S", 0.1)
    lock = node_copy._opened(place)
    fcntl.flock(lock, fcntl.LOCK_EX)
    found, [told] = read(model)
    os.close(lock)
    assert found == model and "was locked for" in told


def test_a_model_that_does_not_fit_at_all_costs_others_no_copy(tmp_path, cache, monkeypatch):
    disk(monkeypatch, cache, 20_000)
    small, large = make(tmp_path / "shared/small"), make(tmp_path / "shared/large", b"w" * 90_000)
    place, _ = read(small)
    end()
    found, [told] = read(large)
    assert found == large and "may be used" in told and place.exists()


def test_a_model_with_a_linked_directory_is_read_from_where_it_is(model, cache, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (model / "linked").symlink_to(tmp_path / "elsewhere")
    place, [told] = read(model)
    assert place == model and "is a link to a directory" in told


def test_a_model_that_changes_while_it_is_copied_is_not_kept(model, cache, monkeypatch):
    real = shutil.copyfile

    def rewritten(source, target):
        real(source, target)
        Path(source).resolve().write_bytes(Path(source).read_bytes())  # of equal size
        os.utime(Path(source).resolve(), (1, 1))

    monkeypatch.setattr(node_copy.shutil, "copyfile", rewritten)
    place, [told] = read(model)
    assert place == model and "changed while it was copied" in told
    assert [path.suffix for path in cache.iterdir()] == [".lock"]
