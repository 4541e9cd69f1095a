"""Several jobs in one pool: the real actor, counter and commits, but no Ray and no engine."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pytest

from pipeline.chat import Completion, Sampling, user
from pipeline.data.store import Store
from pipeline.errors import RunFailed
from pipeline.inference import pool, progress
from pipeline.inference.pool import (
    BLOCK_STARTS,
    MOST_TASKS,
    ROW_STARTS,
    Job,
    ModelSpec,
    run_recipes,
    tasks_of,
)
from pipeline.inference.row_chat import seed_of
from pipeline.inference.vllm import VLLM
from pipeline.settings.base import Model
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS

ROWS, BLOCK_ROWS = 5, 2
NAMES = (ANSWERS.name, CONTINUATIONS.name)
SPEC = ModelSpec(Model(path="toy"), "/toy", VLLM(max_num_seqs=32))


class EngineDied(BaseException):
    """What stands here for the end of the actor's process."""


class ThreeTokens:
    """Three tokens a sample. Dies when asked for a text in `deadly`; answers once `together` calls are in."""

    def __init__(self):
        self.asked: list[tuple[str, int]] = []  # text and seed
        self.deadly: set[str] = set()
        self.together = 0

    async def complete(self, messages, sampling, *, seed, adapter, prefill=True):
        text = messages[-1]["content"]
        if text in self.deadly:
            raise EngineDied
        self.asked.append((text, seed))
        while len(self.asked) < self.together:
            await asyncio.sleep(0.001)
        return [Completion(f"to {text}", 10, 3, "stop") for _ in range(sampling.n)]


class Answers:
    async def __call__(self, row, chat):
        [answer] = await chat([user(f"answer {row['id']}")], Sampling(8), step="answer")
        return {"response": answer.text, "status": "ok"}


class Paths:
    async def __call__(self, row, chat):
        paths = await chat([user(f"continue {row['id']}")], Sampling(8, n=3), step="continue")
        return {"paths": [path.text for path in paths], "corrected": [True, False, None], "status": "ok"}


class Local:
    """A Ray actor that is none: what is called remotely is done here and now."""

    def __init__(self, cls):
        self.it = cls()

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.it, name))


async def side_by_side(actor, tasks: list[dict]) -> list:
    async def run(task):
        return [table async for table in actor(pa.Table.from_pylist([task]))]

    return await asyncio.gather(*map(run, tasks), return_exceptions=True)


@pytest.fixture
def engine(monkeypatch):
    """The model, and how many engines were started. An actor that dies is started again, as Ray does it."""
    model = ThreeTokens()
    found = SimpleNamespace(model=model, starts=0, side_by_side=4)

    def opened(_spec):
        found.starts += 1
        return model

    def run_tasks(tasks, jobs, spec, seed, reporter):
        waiting, actor = list(tasks), None
        with asyncio.Runner() as loop:
            while waiting:
                actor = actor or pool.RecipeActor(spec, jobs, seed, reporter)
                now = waiting[: found.side_by_side]
                ends = loop.run(side_by_side(actor, now))
                if failures := [end for end in ends if isinstance(end, Exception)]:
                    raise failures[0]
                done = [task for task, end in zip(now, ends, strict=True) if not isinstance(end, EngineDied)]
                actor = actor if len(done) == len(now) else None
                waiting = [task for task in waiting if task not in done]
                yield from (task["job"] for task in done)

    monkeypatch.setattr(ModelSpec, "open", opened)
    monkeypatch.setattr(pool, "_run_tasks", run_tasks)
    monkeypatch.setattr(progress, "actor_on_driver_node", Local)
    monkeypatch.setattr(progress, "EngineMetrics", lambda _label: SimpleNamespace(record=lambda *_: None))
    monkeypatch.setattr("ray.get", lambda value: value)
    return found


def store_of(run_dir, schema, rows: int = ROWS) -> Store:
    """Ids are the same in every store: nothing may depend on their being different."""
    store = Store(str(run_dir), schema.name, schema)
    store.open({})
    work = [{"id": f"r{i}", "instruction_id": f"r{i}", "instruction": "x"} for i in range(rows)]
    store.write_work(work, schema, block_rows=BLOCK_ROWS)
    return store


@pytest.fixture
def stores(tmp_path) -> list[Store]:
    return [store_of(tmp_path / "run", schema) for schema in (ANSWERS, CONTINUATIONS)]


def jobs_of(stores: list[Store]) -> list[Job]:
    return [Job(recipe, store) for recipe, store in zip((Answers(), Paths()), stores, strict=True)]


def finished(stores: list[Store], seed: int = 0) -> dict[str, dict]:
    """Run what is not whole, finish each store as it comes; returns the figures by name, in that order."""
    jobs = [job for job in jobs_of(stores) if job.store.complete is None]
    found = {}
    for job, figures in run_recipes(jobs, SPEC, seed=seed, label="evaluate"):
        job.store.finish()
        found[job.name] = figures
    return found


def commit(store: Store, *numbers: int) -> None:
    for number in numbers:
        block = store.block(store.work_list, number)
        block.commit([{"id": row["id"], "status": "ok", "instruction": "before"} for row in block.read()[0]])


def test_two_jobs_have_one_engine_and_each_its_own_rows(engine, stores):
    figures = finished(stores, seed=5)
    assert engine.starts == 1
    answers, paths = (list(store.dataset.rows()) for store in stores)
    assert [row["response"] for row in answers] == [f"to answer r{i}" for i in range(ROWS)]
    assert [row["paths"] for row in paths] == [[f"to continue r{i}"] * 3 for i in range(ROWS)]
    steps = ("answer", "continue")
    wanted = {(f"{step} r{i}", seed_of(5, f"r{i}", step)) for step in steps for i in range(ROWS)}
    assert set(engine.model.asked) == wanted, "the seeds are those of each row on its own"
    assert list(figures) == list(NAMES)


@pytest.mark.timeout(60)
def test_the_second_begins_while_the_first_is_still_in_flight(engine, stores):
    """Three blocks of the first and one of the second are in the engine at once, or no row is answered."""
    engine.model.together = ROWS + BLOCK_ROWS
    finished(stores)
    assert {text.split()[0] for text, _ in engine.model.asked[: ROWS + BLOCK_ROWS]} == {"answer", "continue"}


def test_figures_are_of_each_job_and_add_up(engine, stores):
    answers, paths = finished(stores).values()
    assert answers["rows"] == paths["rows"] == ROWS
    assert (answers["prompt_tokens"], answers["completion_tokens"]) == (10 * ROWS, 3 * ROWS)
    assert (paths["prompt_tokens"], paths["completion_tokens"]) == (10 * ROWS, 9 * ROWS)
    assert (answers["paths"], paths["paths"], paths["corrected"]) == (0, 2 * ROWS, ROWS)
    assert answers["engine_start_s"] is not None and paths["engine_start_s"] is None, "there was one start"
    for figures in (answers, paths):
        assert figures["busy_s"] > 0
        speed = figures["completion_tokens"] / figures["busy_s"]
        assert figures["tokens_per_s"] == pytest.approx(speed, rel=0.1)


def test_seconds_are_divided_and_lose_nothing(engine, monkeypatch):
    """Ten seconds until an engine is there; then 20 of the first, 30 shared 1 : 2, 40 of the second."""
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    told = progress.Progress("evaluate", {"a": (0, 9), "b": (4, 9)})
    reporter = told.reporter()
    clock[0] += 10
    reporter.engine_ready(8.5)
    tokens = ((20, {"a": 50}), (30, {"a": 29, "b": 59}), (40, {"b": 120}))
    found = {}
    for seconds, shares in tokens:
        clock[0] += seconds
        for output, count in shares.items():
            reporter._pending[output] += progress.Tally(rows=1, completion_tokens=count)
        reporter.flush()
        if seconds == 30:
            found["a"] = told.ended("a")
    clock[0] += 2  # the pool is taken down
    found["b"] = told.ended("b")
    assert (found["a"]["busy_s"], found["a"]["seconds"], found["a"]["engine_start_s"]) == (30, 40, 8.5)
    assert (found["b"]["busy_s"], found["b"]["seconds"], found["b"]["engine_start_s"]) == (60, 62, None)
    assert [one["tokens_per_s"] for one in found.values()] == [round(79 / 30, 1), round(179 / 60, 1)]
    assert (found["a"]["resumed_rows"], found["b"]["resumed_rows"]) == (0, 4)


def test_a_job_that_is_done_already_is_told_before_an_engine_starts(engine, stores):
    """Killed between the last commit of the first and its completion."""
    commit(stores[0], 0, 1, 2)
    starts = []
    for job, figures in run_recipes(jobs_of(stores), SPEC, seed=0, label="evaluate"):
        starts.append((job.name, engine.starts, figures["rows"], figures["resumed_rows"]))
        job.store.finish()
    assert starts == [(NAMES[0], 0, 0, ROWS), (NAMES[1], 1, ROWS, 0)]
    assert {text.split()[0] for text, _ in engine.model.asked} == {"continue"}


def test_no_engine_starts_if_nothing_is_left(engine, stores):
    for store in stores:
        commit(store, 0, 1, 2)
    assert list(finished(stores)) == list(NAMES)
    assert engine.starts == 0 and finished(stores) == {}


def test_resumed_in_the_midst_of_the_second(engine, stores, tmp_path):
    """The run died when the first store was whole and a block of the second was committed."""
    whole = [store_of(tmp_path / "undisturbed", schema) for schema in (ANSWERS, CONTINUATIONS)]
    finished(whole)
    engine.side_by_side = 1
    running = run_recipes(jobs_of(stores), SPEC, seed=0, label="evaluate")
    job, _ = next(running)
    job.store.finish()
    running.close()
    block = stores[1].block(stores[1].work_list, 1)
    block.commit([row for row in whole[1].dataset.rows() if row["id"] in ("r2", "r3")])
    engine.model.asked.clear()
    [(name, figures)] = finished(stores).items()
    assert name == NAMES[1] and (figures["rows"], figures["resumed_rows"]) == (3, 2)
    assert [text for text, _ in engine.model.asked] == ["continue r0", "continue r1", "continue r4"]
    for store, other in zip(stores, whole, strict=True):
        assert list(store.dataset.rows()) == list(other.dataset.rows())
        assert store.complete["digest"] == other.complete["digest"]


def test_a_row_that_kills_its_engine_fails_in_its_own_store_only(engine, stores):
    """A row of the same id, in a block of the same number, is unsuspected in the other store."""
    engine.model.deadly = {"continue r3"}
    finished(stores)
    assert [row["status"] for row in stores[0].dataset.rows()] == ["ok"] * ROWS
    assert [row["status"] for row in stores[1].dataset.rows()] == ["ok", "ok", "ok", "failed", "ok"]
    assert stores[1].complete["reasons"] == {"the engine died each time it ran this row": 1}
    assert engine.starts == 1 + BLOCK_STARTS + ROW_STARTS, "each time but the last it died"


def test_a_job_that_fails_ends_the_run_and_keeps_what_is_whole(engine, stores, monkeypatch):
    engine.side_by_side = 3
    running = run_recipes(jobs_of(stores), SPEC, seed=0, label="evaluate")
    next(running)[0].store.finish()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.data.storage.write_bytes", full)
    with pytest.raises(RunFailed, match="the disk is full"):
        next(running)
    assert stores[0].complete["rows"] == ROWS and stores[1].complete is None


def test_a_task_of_a_whole_store_is_not_run_again(engine, stores):
    """Its actor died just after the last commit: Ray runs the task again, and the parts are gone."""
    finished(stores)
    jobs = jobs_of(stores)
    asked = len(engine.model.asked)
    reporter = progress.Progress("evaluate", {}).reporter()
    list(pool._run_tasks([{"job": 0, "blocks": [0, 1, 2]}], jobs, SPEC, 0, reporter))
    assert len(engine.model.asked) == asked
    assert not jobs[0].store.committed()


@pytest.mark.parametrize("counts", [(0, 0), (3, 0, 2), (1, 1), (MOST_TASKS + 1, 1), (30_000, 0, 10, 70_001)])
def test_tasks_are_in_order_and_not_too_many(counts):
    undone = [list(range(1, 1 + count)) for count in counts]
    tasks = tasks_of(undone)
    flat = [(task["job"], block) for task in tasks for block in task["blocks"]]
    assert flat == [(job, block) for job, blocks in enumerate(undone) for block in blocks]
    assert len(tasks) <= MOST_TASKS + len(counts) and all(task["blocks"] for task in tasks)
    if sum(counts) <= MOST_TASKS:
        assert len(tasks) == sum(counts)
    sizes = Counter(len(task["blocks"]) for task in tasks)
    assert max(sizes, default=0) <= 1 + sum(counts) // MOST_TASKS + 1
