"""A Ray Data actor pool: one engine per actor runs recipes over rows and commits the results as they finish.

Ray Data hands out block numbers; rows never pass through the driver or the object store. An actor reads a
block of a work list, runs it and commits it. Several blocks (hundreds of rows) are in flight per actor, so
that the engine's batch does not drain between blocks or between data sets that are made together.
"""

import asyncio
import math
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.chat import Recipe
from pipeline.data import storage
from pipeline.data.block import Block
from pipeline.data.store import Store
from pipeline.data.work import WorkList
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.inference import notices, spread
from pipeline.inference.base import Engine, EngineDead, LanguageModel, NoEngine
from pipeline.inference.beside import Standing, end_actor, open_or_end
from pipeline.inference.progress import Progress, Reporter, Tally
from pipeline.inference.row_chat import OWN, Clients, OpenModels, RowChat
from pipeline.runtime.nodes import wait_for
from pipeline.runtime.session import in_actor
from pipeline.schema import FAILED
from pipeline.settings.base import Model, span

MOST_TASKS = 10_000  # per run, to bound the scheduler's load: if there are more blocks, a task gets several
FRUITLESS_STARTS = 6  # limit on engine starts without a finished row; Ray itself restarts actors forever
BLOCK_STARTS = 3  # a block started more often may hold a poison row: its rows then run one at a time, alone
ROW_STARTS = 2  # a row started alone more often is a poison row: it fails
EXIT_S = 10  # time for Ray to end an actor that it has released


_FAILED = ".failed"  # in the result of a row that failed because a call did: see `Block.failed`; no column

Results = dict[str, dict]  # of rows, by id
Waiting = dict[str, dict]  # rows that wait for a model, by id: see `Block.waiting`


@dataclass(frozen=True)
class ModelSpec:
    """Everything an actor needs to open its model."""

    model: Model
    model_dir: str
    engine: Engine
    adapters: tuple[str, ...] = ()

    @property
    def least_actors(self) -> int:
        return span(self.engine.actors)[0]

    @property
    def most_actors(self) -> int:
        return span(self.engine.actors)[1]

    @property
    def rows_in_flight(self) -> int:
        return self.engine.rows_in_flight

    def blocks_in_flight(self, block_rows: int) -> int:
        """Enough blocks for all rows in flight, and one more to start while a block's slow rows finish."""
        return math.ceil(self.rows_in_flight / block_rows) + 1

    def open(self) -> LanguageModel:
        return self.engine.open(self.model, self.model_dir, self.adapters)


NO_MODEL = ModelSpec(Model.model_construct(path="none"), "", NoEngine())


@dataclass(frozen=True)
class Job:
    """A recipe, and the store whose work list it runs over. The list must have been written.

    models: the models that the recipe asks, by name; its own is OWN, and is the pool's if it is not named.
    first:  the model that the recipe asks first.
    beside: engines of other models that stand beside the pool; with them, no row waits for a later pass.
    """

    recipe: Recipe
    store: Store
    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    first: str = OWN
    beside: Mapping[ModelSpec, Standing] = field(default_factory=dict)
    work: WorkList = field(init=False)  # read once: an actor that outlives its driver sees no newer list

    def __post_init__(self):
        object.__setattr__(self, "work", self.store.work_list)

    @property
    def name(self) -> str:
        return self.store.name

    @property
    def names(self) -> list[str]:
        """The names that rows may wait for."""
        return list(dict.fromkeys([self.first, OWN, *self.models]))

    def undone(self) -> list[int]:
        """Numbers of the blocks that are not committed."""
        committed = np.fromiter(self.store.committed(), int)
        return np.setdiff1d(np.arange(self.work.blocks), committed).tolist()

    def waiting(self) -> dict[int, str]:
        """By number of every block that is not committed, the model that it waits for first."""
        awaited = self.store.awaited(self.names) if self.models else {}
        return {number: awaited.get(number, self.first) for number in self.undone()}

    def ready(self, spec: ModelSpec) -> list[int]:
        """Numbers of the blocks that a pool with this model can go on with."""
        if self.beside:
            return self.undone()
        served = {name for name in self.names if self.models.get(name, spec) == spec}
        return [number for number, name in self.waiting().items() if name in served]


class RecipeActor:
    """Runs blocks of all jobs with one model. An exception of one row fails that row only."""

    def __init__(self, spec: ModelSpec, jobs: Sequence[Job], seed: int, progress: Reporter):
        if progress.engine_starting() > FRUITLESS_STARTS + spec.most_actors:
            raise RunFailed(f"engines for {spec.model.path} keep crashing before they finish a row")
        started = time.monotonic()
        notices.send_to(progress.tell)
        self._model = open_or_end(spec, progress.not_opened)
        self._jobs, self._seed, self._progress = jobs, seed, progress
        clients = Clients()
        beside = {other: engines.open() for job in jobs[:1] for other, engines in job.beside.items()}
        self._open = {job.name: OpenModels(job.models, spec, self._model, clients, beside) for job in jobs}
        self._rows_in_flight = spec.rows_in_flight
        self._slots, self._alone = asyncio.Semaphore(self._rows_in_flight), asyncio.Lock()
        self._in_ray = in_actor()
        progress.engine_ready(time.monotonic() - started)

    def __del__(self):
        """About 1 in 30 actor shutdowns deadlocks inside Ray 2.60; SIGALRM kills the process after EXIT_S.

        Ray's core worker, while being destroyed, posts a last reply to an event loop that no longer exists,
        and waits for that loop's freed lock. A thread could not end the process: new threads do not run
        during interpreter shutdown.
        """
        if getattr(self, "_in_ray", False):
            signal.alarm(EXIT_S)  # SIGALRM has no handler, so it ends the process

    async def __call__(self, tasks: pa.Table) -> AsyncIterator[pa.Table]:
        """Run and commit the blocks of each task, one after the other; yields the tasks again."""
        for task in tasks.to_pylist():
            for number in task["blocks"]:
                await self._run_task(self._jobs[task["job"]], number)
        yield tasks

    async def _run_task(self, job: Job, number: int) -> None:
        from ray.exceptions import RayError

        block = job.store.block(job.work, number)
        try:
            await self._run_block(job, block)
        except (RunFailed, OSError):
            raise
        except RayError as e:  # Ray is going down with this node: another actor will run the block
            end_actor(e)
        except Exception as e:  # the text may quote a row
            raise RunFailed(f"{block.path}: {type(e).__name__} in a block of rows") from None

    async def _run_block(self, job: Job, block: Block) -> None:
        # An actor that died may have committed the block. Once the data set is complete, the block's file is
        # gone, so look for the file first.
        if await asyncio.to_thread(lambda: block.committed or job.store.complete):
            return
        todo, kept = await asyncio.to_thread(block.read)
        waiting = await asyncio.to_thread(block.waiting, job.names) if job.models else {}
        rows = [row for row in todo if row["id"] not in kept]
        results = await self._run_rows(job, block, rows, kept, waiting)
        done = [results[row["id"]] for row in todo if row["id"] in results]
        still = {row["id"]: waiting[row["id"]] for row in todo if row["id"] not in results}
        failed = {row["id"]: row.pop(_FAILED) for row in done if _FAILED in row}
        with storage.room_for(block.path):  # beside the engine's next rows
            await asyncio.to_thread(block.fail, failed)
            if still:
                await asyncio.to_thread(block.suspend, done, still, job.names)
            else:
                await asyncio.to_thread(block.commit, done)
        self._progress.flush()
        await asyncio.to_thread(self._progress.arrived)  # a block is done only after its rows are counted

    async def _run_rows(
        self, job: Job, block: Block, rows: list[dict], kept: Results, waiting: Waiting
    ) -> Results:
        """The results of these rows, and the kept results, by id. `waiting` has the rows that wait."""
        self._progress.rows_waiting(len(rows))
        begun = await asyncio.to_thread(self._progress.starting, f"{job.name} block {block.number}")
        if begun <= BLOCK_STARTS:
            results = await asyncio.gather(*(self._run_beside_others(job, row, waiting) for row in rows))
            return kept | {row["id"]: row for row in results if row is not None}
        for row in rows:
            kept = await self._run_alone(job, block, row, kept, waiting)
        return kept

    async def _run_beside_others(self, job: Job, row: dict, waiting: Waiting) -> dict | None:
        async with self._slots:
            return await self._run(job, row, waiting)

    async def _run_alone(self, job: Job, block: Block, row: dict, kept: Results, waiting: Waiting) -> Results:
        """Run a row alone in the engine, so that a crash is this row's fault; fail the row after ROW_STARTS.

        Save the result before the next row starts; otherwise a later crash would rerun this row and blame it
        too.
        """
        if self._waits(job, row, waiting):
            await self._run(job, row, waiting)
            return kept
        async with self._alone:
            for _ in range(self._rows_in_flight):
                await self._slots.acquire()
            try:
                begun = await asyncio.to_thread(self._progress.starting, f"{job.name} row {row['id']}")
                if begun > ROW_STARTS:
                    row = {**row, "status": FAILED, "error": "the engine died each time it ran this row"}
                result = await self._run(job, row, waiting)
                if result is None:
                    await asyncio.to_thread(block.suspend, list(kept.values()), waiting, job.names)
                    return kept
                if _FAILED in result:
                    await asyncio.to_thread(block.fail, {row["id"]: result.pop(_FAILED)})
                kept = kept | {row["id"]: result}
                await asyncio.to_thread(block.keep, list(kept.values()))
                return kept
            finally:
                for _ in range(self._rows_in_flight):
                    self._slots.release()

    def _waits(self, job: Job, row: dict, waiting: Waiting) -> bool:
        """Whether a row waits for models that this pass does not serve."""
        known = waiting.get(row["id"])
        return known is not None and not self._open[job.name].serves(known["for"])

    async def _run(self, job: Job, row: dict, waiting: Waiting) -> dict | None:
        """The row's result; None if it waits for a model, with its entry in `waiting`."""
        self._progress.row_started()
        if self._waits(job, row, waiting):
            self._progress.row_done(job.name, Tally(rows=1))
            return None
        opened, columns = self._open[job.name], job.store.schema.names
        calls = waiting.get(row["id"], {}).get("calls")
        chat = RowChat(opened.get(OWN), self._seed, row["id"], opened, calls)
        result = {name: row[name] for name in columns if name in row}
        if row.get("status") != FAILED:  # malformed in the source, or a poison row: stays as it is
            result |= await self._attempt(job.recipe, row, chat)
        prompts, sampled = chat.sampled
        if chat.awaited:
            await chat.settled()
            waiting[row["id"]] = {"for": sorted(chat.awaited), "calls": chat.calls}
            tally = Tally(rows=1, prompt_tokens=prompts, completion_tokens=sampled)
            self._progress.row_done(job.name, tally)
            return None
        result |= {"prompt_tokens": chat.prompt_tokens, "completion_tokens": chat.completion_tokens}
        if chat.failed and result.get("status") == FAILED:
            answered = {step: call for step, call in chat.calls.items() if step not in chat.failed}
            if answered:
                result[_FAILED] = {"for": sorted(set(chat.failed.values())), "calls": answered}
        if "finish_reasons" in columns:
            result["finish_reasons"] = chat.finish_reasons
        if "thoughts" in columns:
            result |= {"thoughts": chat.thoughts, "thought_tokens": chat.thought_tokens}
        tally = Tally.of(result)
        tally.prompt_tokens, tally.completion_tokens = prompts, sampled  # of this pass
        self._progress.row_done(job.name, tally)
        return result

    async def _attempt(self, recipe: Recipe, row: dict, chat: RowChat) -> dict:
        try:
            return await recipe(row, chat)
        except (EngineDead, MemoryError) as e:
            end_actor(e)  # an actor with a dead engine, or without memory, would fail every row
        except RowFailed as e:
            return {"status": FAILED, "error": str(e)}
        except Exception as e:  # unforeseen; the text may be harmful, so keep only the kind of error
            return {"status": FAILED, "error": f"{type(e).__name__} in {type(recipe).__name__}"}


def run_recipes(
    jobs: Sequence[Job],
    spec: ModelSpec,
    *,
    seed: int,
    label: str,
) -> Generator[tuple[Job, dict], None, None]:
    """One pass: run the jobs' blocks that wait for this model in one pool, as far as they come with it.

    Each job is resumed after an earlier attempt; engines start once for all jobs. A job's blocks are queued
    after those of the jobs before it, and start as soon as an engine has room. Yields every job when its
    last block is committed, or waits for another model, with its figures (see `Progress.ended`), while the
    other jobs keep running. If no block waits for this model, no engine starts. A caller that stops early
    must close the generator.

    Raises RunFailed if an engine does not start or a write fails.
    """
    undone = [job.ready(spec) for job in jobs]
    done = [job.work.rows - job.work.rows_of(blocks) for job, blocks in zip(jobs, undone, strict=True)]
    extents = {job.name: (rows, job.work.rows) for job, rows in zip(jobs, done, strict=True)}
    progress = Progress(label if spec.engine.is_model else f"{label} ({spec.engine.kind} engine)", extents)
    try:
        with progress.shown():
            for job in _jobs_done(jobs, undone, spec, seed, progress.reporter()):
                yield job, progress.ended(job.name)
    except UserError:
        raise
    except Exception as e:
        raise RunFailed(_cause(e)) from e


def _jobs_done(
    jobs: Sequence[Job],
    undone: list[list[int]],
    spec: ModelSpec,
    seed: int,
    reporter: Reporter,
) -> Iterator[Job]:
    """Run the undone blocks; yields every job when all of them have been run."""
    tasks = tasks_of(undone)
    left = Counter(task["job"] for task in tasks)
    yield from (job for number, job in enumerate(jobs) if not left[number])
    for number in _run_tasks(tasks, jobs, spec, seed, reporter) if tasks else ():
        left[number] -= 1
        if not left[number]:
            yield jobs[number]


def tasks_of(undone: list[list[int]]) -> list[dict]:
    """Tasks for Ray, in the order of jobs and blocks: one block each, or several to stay below MOST_TASKS.

    A task has blocks of one job only, so a job is done when its last task is done.
    """
    total = sum(map(len, undone))
    tasks = []
    for job, blocks in enumerate(undone):
        if blocks:
            parts = min(len(blocks), max(1, MOST_TASKS * len(blocks) // total))
            tasks += [{"job": job, "blocks": part.tolist()} for part in np.array_split(blocks, parts)]
    return tasks


def in_flight(fitting: int, tasks: int, least: int, most: int) -> tuple[int, int]:
    """How many tasks an actor runs at a time, and how many it has, the waiting ones included.

    fitting: as many as fill its engine. least, most: actors. Ray Data gives tasks to the actors that are
    there and takes none back. So an actor never has more than its share of all tasks, and one that waits only
    if its share is several times as large: engines start minutes apart, and the first would leave nothing to
    the others. Ray Data adds actors only while those that are there have 1.75 times as many tasks as they
    run, so with autoscaling as many tasks wait as run.
    """
    share = max(1, tasks // most)
    if least < most:
        running = max(1, min(fitting, share // 2))
        return running, 2 * running
    running = min(fitting, share)
    return running, max(running, min(running + 1, share // 4))


def _run_tasks(
    tasks: list[dict],
    jobs: Sequence[Job],
    spec: ModelSpec,
    seed: int,
    reporter: Reporter,
) -> Iterator[int]:
    """Run the tasks in a pool of actors; yields the job number of each finished task."""
    import ray.data

    fitting = max(spec.blocks_in_flight(job.work.block_rows) for job in jobs)
    running, given = in_flight(fitting, len(tasks), spec.least_actors, spec.most_actors)
    engine = spec.engine
    wait_for(spec.least_actors * engine.nodes, 1, engine.gpus // engine.nodes, reporter.tell, engine.gpu_kind)
    with _on_gpus(engine) as arguments:
        # from_items stores its blocks directly; from_arrow would run a task per block to get the schema.
        pool = ray.data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
            RecipeActor,
            fn_constructor_args=(spec, jobs, seed, reporter),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                min_size=spec.least_actors,
                max_size=spec.most_actors,
                max_tasks_in_flight_per_actor=given,
                max_concurrent_calls_per_actor=running,
            ),
            num_cpus=1,
            **arguments,
        )
        # Results are in the stores, so there is nothing to collect. Prefetching would report a task one task
        # late.
        for batch in pool.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from batch["job"].to_pylist()


@contextmanager
def _on_gpus(engine: Engine) -> Iterator[dict[str, Any]]:
    """Ray's arguments for the GPUs of a pool's actors."""
    if engine.nodes > 1:
        with spread.places(engine) as place:
            # The only way of Ray 2.60 to give each actor a placement group; 2.64 is meant to lose it.
            yield {"ray_remote_args_fn": place}
    else:
        yield {"num_gpus": engine.gpus} | ({"accelerator_type": engine.gpu_kind} if engine.gpu_kind else {})


def _cause(e: BaseException) -> str:
    """The cause in one line, without Ray's wrapping, and the directory with the details."""
    import ray

    lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
    ours = [line.split("RunFailed: ", 1)[1] for line in lines if "RunFailed: " in line]
    told = ours[-1] if ours else next((line for line in reversed(lines) if "Error" in line), lines[0])
    node = ray._private.worker._global_node
    return told + (f"; details are in {node.get_logs_dir_path()}" if node else "")
