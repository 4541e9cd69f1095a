"""Faults of disks and of files.

Whatever was half-written is never taken for whole, and the message says what to do.
"""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import experiment
from pipeline.config import load
from pipeline.data.store import Store
from pipeline.errors import RunFailed, UserError
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.run import Machinery
from pipeline.schema import INSTRUCTIONS
from tests.chaos.conftest import LATENCY_S, fill, generate
from tests.chaos.harness import Driver, Job, assert_equals_undisturbed, rows_of, write_job

pytestmark = pytest.mark.timeout(300)
REMEDY = "free some space"


def test_the_disk_is_full_while_actors_commit(cluster, source, tmp_path, small_disk, undisturbed):
    job = write_job(tmp_path, source, latency_s=LATENCY_S, run=small_disk / "run")
    driver = Driver(job)
    driver.until(lambda: job.committed() >= 8)
    ballast = fill(small_disk)
    code, said = driver.wait()
    assert (code, said.splitlines()[-1].startswith(f"setbacks: {job.run}/"), REMEDY in said) == (
        1,
        True,
        True,
    ), said
    assert "Traceback" not in said
    assert 8 <= job.committed() < job.blocks()
    ballast.unlink()
    generate(job)
    assert_equals_undisturbed(job, undisturbed)


def work_of(undisturbed: Job, disk: Path) -> tuple[Store, list[dict], list[dict]]:
    """A store on the small disk, the rows to do and the results of the undisturbed run."""
    results = rows_of(undisturbed.run).to_pylist()
    work = [
        {name: row.get(name) for name in INSTRUCTIONS.names} | {"unsafe_responses": []} for row in results
    ]
    return Store(str(disk / "run"), MISTAKES.name, MISTAKES), work, results


def test_the_disk_is_full_while_the_driver_writes_the_work_list(undisturbed, small_disk):
    store, work, _ = work_of(undisturbed, small_disk)

    def rows() -> Iterator[dict]:
        yield from work[:100]
        fill(small_disk)
        yield from work[100:]

    with pytest.raises(RunFailed, match=REMEDY):
        store.write_work(rows(), INSTRUCTIONS, block_rows=16)
    assert store.work() is None, "half a list is no list"
    (small_disk / "ballast").unlink()
    assert store.write_work(iter(work), INSTRUCTIONS, block_rows=16)["rows"] == len(work)
    assert [row["id"] for block in range(store.work_list.blocks) for row in store.work_list.read(block)] == [
        row["id"] for row in work
    ]


def test_the_disk_is_full_while_the_driver_compacts(undisturbed, small_disk):
    store, work, results = work_of(undisturbed, small_disk)
    store.write_work(iter(work), INSTRUCTIONS, block_rows=16)
    for number in range(store.work_list.blocks):
        store.block(store.work_list, number).commit(results[16 * number : 16 * (number + 1)])
    ballast = fill(small_disk)
    with pytest.raises(RunFailed, match=REMEDY):
        store.finish()
    assert store.complete is None and not (small_disk / "run/mistakes").exists(), "nothing is published"
    ballast.unlink()
    assert store.finish()["digest"] == undisturbed.complete()["digest"]
    assert_equals_undisturbed(Job(undisturbed.config, small_disk / "run"), undisturbed)


# -- files that were whole


@pytest.fixture
def copied(undisturbed, source, tmp_path) -> Job:
    """A run of its own with what the undisturbed one has left."""
    job = write_job(tmp_path, source)
    shutil.copytree(undisturbed.run, job.run)
    return job


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def spoil(content: bytes) -> bytes:
    # Among the rows, near the beginning: in a Parquet file's footer, which is longer than the few rows of a
    # block, many a byte changes nothing. Longer than the header of a page, which no checksum covers.
    place = slice(len(content) // 16, len(content) // 16 + 64)
    return content[: place.start] + bytes(byte ^ 0xFF for byte in content[place]) + content[place.stop :]


@pytest.mark.parametrize("damage", [cut, spoil])
def test_a_shard_is_damaged_after_the_run(copied, damage):
    """The next stage reads it, and will not."""
    [shard] = (copied.run / "mistakes").glob("*.parquet")
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=rf"{shard.name} .*--overwrite") as told:
        experiment.run(load(copied.config), ["mix"], log=lambda _: None)
    assert "\n" not in str(told.value)
    assert not (copied.run / "sft").exists()


def test_committed_blocks_are_damaged_before_the_end(cluster, source, tmp_path, undisturbed):
    """They are found when the blocks are put together; the same command runs their rows again."""
    job = write_job(tmp_path, source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "finish", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            generate(job)
    for part, damage in zip(sorted(job.state.glob("parts-*/*.parquet"))[5:], (cut, spoil), strict=False):
        part.write_bytes(damage(part.read_bytes()))
    for _ in range(2):
        with pytest.raises(RunFailed, match="rerun the same command to redo them"):
            generate(job)
    generate(job)
    assert_equals_undisturbed(job, undisturbed)


def test_a_bit_of_a_committed_block_is_flipped(undisturbed, tmp_path):
    """It is noticed, or it changes nothing: neither the rows nor their digest."""
    store, work, results = work_of(undisturbed, tmp_path)
    store.write_work(iter(work), INSTRUCTIONS, block_rows=16)
    block = store.block(store.work_list, 3)
    block.commit(results[48:64])
    part, (wanted, digest), noticed = Path(block.path), block.result(), 0
    content, chance = part.read_bytes(), random.Random(0)
    for _ in range(500):
        place = chance.randrange(len(content))
        part.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        )
        found = block.result()
        if found is None or not found[0]["id"].equals(
            wanted["id"]
        ):  # as `Store.finish` compares them with the work list
            noticed += 1
        else:
            assert found[1] == digest and found[0].equals(wanted)
    assert noticed > 250


def test_the_work_list_is_damaged_in_mid_run(cluster, source, tmp_path):
    """What was to be done is not known any more: the message says to start again."""
    job = write_job(tmp_path, source)
    interrupted = (_ for _ in ()).throw
    with pytest.raises(KeyboardInterrupt):
        generate(job, machinery=Machinery(engines=lambda *_, **__: interrupted(KeyboardInterrupt)))
    [file] = (job.state / "work").glob("*.parquet")
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises((RunFailed, UserError), match="--overwrite"):
        generate(job)
    assert not (job.run / "mistakes").exists()


def test_counts_account_for_every_row(undisturbed):
    done, work = undisturbed.complete(), json.loads((undisturbed.state / "work.json").read_text())
    assert sum(done["status"].values()) == done["rows"] == work["rows"]
    [read] = work["sources"].values()
    assert read["read"] == read["ok"] + read["duplicates"] + read["malformed"]
    assert sum(done["reasons"].values()) == done["status"]["failed"]
