"""Writes on a condition to a real S3 server: of many that begin together one gets the lease, and one that has
lost it replaces nothing."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pyarrow.fs as pafs
import pytest

from pipeline.data import conditional, storage
from pipeline.data.conditional import Replaced
from pipeline.data.output import Output
from pipeline.errors import RunFailed
from pipeline.runtime import attempt
from tests import s3

pytest.importorskip("obstore")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1] % 20000 + 12000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        s3.served(tmp_path_factory.mktemp("s3"), free_port()) as found,
    ):
        for name, value in found.items():
            patch.setenv(name, value)
        patch.setattr(conditional, "_stores", {})
        end = time.monotonic() + 30
        while True:  # the server answers before it can store
            try:
                pafs.S3FileSystem(
                    endpoint_override=found["AWS_ENDPOINT_URL"], allow_bucket_creation=True
                ).create_dir("bucket")
                storage.write_text("s3://bucket/ready", "yes")
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.3)
        yield


@pytest.fixture
def place(server, request) -> str:
    return f"s3://bucket/{request.node.name.replace('[', '-').strip(']')}"


@pytest.mark.parametrize("seed", range(3))
def test_of_eight_at_once_exactly_one_creates_it(place, seed):
    together = threading.Barrier(8)

    def create(number: int) -> int | None:
        together.wait()
        return number if storage.create(f"{place}/0001.json", f"{number}") else None

    with ThreadPoolExecutor(8) as threads:
        created = [number for number in threads.map(create, range(8)) if number is not None]
    assert len(created) == 1 and storage.read_text(f"{place}/0001.json") == f"{created[0]}"
    assert list(storage.sizes(place)) == ["0001.json"], "no claim and no probe is left"


def test_no_claims_are_made_where_the_store_creates_exclusively(place, monkeypatch):
    monkeypatch.setattr(storage, "_create_by_claim", lambda *_: pytest.fail("claims"))
    assert storage.create(f"{place}/a", "1") and not storage.create(f"{place}/a", "2")


def test_what_somebody_else_has_written_is_not_replaced(place):
    owned = storage.create(f"{place}/a", "1")
    owned.write("2")
    owned.write("3")
    storage.write_text(f"{place}/a", "theirs")
    with pytest.raises(Replaced):
        owned.write("4")
    assert storage.read_text(f"{place}/a") == "theirs"


def test_a_write_whose_answer_was_lost_is_ones_own(place):
    """The client sends it again, and is refused."""
    owned = storage.create(f"{place}/a", "1")
    storage.write_text(f"{place}/a", "2")
    owned.write("2")
    owned.write("3")
    assert storage.read_text(f"{place}/a") == "3"
    storage.write_text(f"{place}/b", "1")
    assert storage.create(f"{place}/b", "1") is not None


def test_a_write_follows_one_whose_answer_was_lost(place, monkeypatch):
    owned = storage.create(f"{place}/one", "1")
    store, _ = conditional._place(f"{place}/one")

    class Losing:
        def __getattr__(self, name):
            return getattr(store, name)

        def put(self, *args, **options):
            from obstore import exceptions

            store.put(*args, **options)
            raise exceptions.GenericError("the connection broke")

    with monkeypatch.context() as patch:
        patch.setitem(conditional._stores, "s3://bucket", Losing())
        with pytest.raises(OSError):
            owned.write("2")
    owned.write("3")
    assert storage.read_text(f"{place}/one") == "3"


def test_keys_that_the_libraries_read_differently_are_written_to_by_claims():
    for path in ("s3://bucket/a%20b/x", "s3://bucket//a/x", "s3://bucket/a#b/x"):
        assert conditional._place(path)[0] is None


def test_a_store_that_ignores_conditions_is_written_to_by_claims(place, monkeypatch):
    from obstore.store import S3Store

    put = S3Store.put
    monkeypatch.setattr(conditional, "_stores", {})

    class Ignores:
        def __init__(self, store):
            self.store = store

        def put(self, key, content, mode):
            return put(self.store, key, content)

        def delete(self, key):
            self.store.delete(key)

    from obstore.store import from_url

    monkeypatch.setattr(
        "obstore.store.from_url", lambda *arguments, **options: Ignores(from_url(*arguments, **options))
    )
    assert conditional.create(f"{place}/a", "1") is None
    assert storage.create(f"{place}/a", "1") and not storage.create(f"{place}/a", "2")
    assert list(storage.sizes(place)) == ["a"]


def test_an_attempt_that_was_taken_for_dead_writes_nothing(place, monkeypatch):
    """Not even if it was suspended after it had looked for a newer one."""
    monkeypatch.setattr(attempt, "is_alive", lambda *_: False)
    old, new = attempt.Attempt(place, ["generate"]), attempt.Attempt(place, ["generate"])
    old._take()
    new._take()
    monkeypatch.setattr(attempt, "_newest", lambda _directory: None)  # it had looked before
    with pytest.raises(RunFailed, match="somebody else has written"):
        old._write(beat=1)
    assert json.loads(storage.read_text(f"{place}/.state/attempts/0001.json"))["state"] == "killed"
    new._write(beat=1)


def test_the_mark_of_the_newer_attempt_stays(place):
    lost = False

    def fence():
        if lost:
            raise RunFailed("attempt 2 has taken over")

    def fence_then_suspended():
        nonlocal lost
        fence()
        if not lost:
            Output(place, "mistakes").mark_complete({"by": "new"})
            lost = True

    with pytest.raises(RunFailed, match="attempt 2 has taken over"):
        Output(place, "mistakes", fence=fence_then_suspended).mark_complete({"by": "old"})
    storage.write_text(f"{place}/mistakes/file", "x")
    assert Output(place, "mistakes").complete == {"by": "new"}
