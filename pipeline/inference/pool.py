"""A Ray Data actor pool: one engine per actor, a recipe run over rows, results committed as they come.

Ray Data hands out numbers of blocks; rows never pass through the driver or the object store. An actor reads a block of the work list, runs it
and commits it. It has several blocks in flight at once, hundreds of rows, so that the engine's batch never drains.
"""

import asyncio
import hashlib
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np
import pyarrow as pa

from pipeline.config import Dummy, Inference, Model
from pipeline.data import storage
from pipeline.data.block import Block
from pipeline.data.schema import FAILED
from pipeline.data.store import Store
from pipeline.data.work import WorkList
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.inference.chat import Chat, Completion, Message, Sampling
from pipeline.inference.progress import Progress, Reporter, Tally

MOST_TASKS = 10_000  # of one run: with more blocks than these a task has several, so that the scheduler's load has a bound
FRUITLESS_STARTS = 6  # Ray restarts a dead actor for ever; this ends it
BLOCK_STARTS = 3  # a block begun more often than this holds a row that ends its engine, perhaps: its rows are run one at a time, alone
ROW_STARTS = 2  # a row begun alone more often than this does
EXIT_S = 10  # for Ray to end an actor that it has let go of
ROWS_PER_SEQUENCE = 1.5  # rows in flight per place in the engine's batch, so that a row between two steps leaves no place empty


class Recipe(Protocol):
    """What is done with one row. `row` has the columns of the work list; the result, columns of the data set's schema."""

    async def __call__(self, row: dict, chat: Chat) -> dict: ...


class LanguageModel(Protocol):
    """What stands behind `Chat`: `engine.VllmModel`, `endpoint.EndpointModel` or `dummy.DummyModel`."""

    async def complete(self, messages: list[Message], sampling: Sampling, *, seed: int, adapter: str | None) -> list[Completion]: ...


class RowChat:
    """The `Chat` of one row: adds the seed to every call and counts its tokens."""

    def __init__(self, model: LanguageModel, run_seed: int, row_id: str):
        self._model, self._run_seed, self._row_id = model, run_seed, row_id
        self.prompt_tokens = self.completion_tokens = 0
        self._finish_reasons: list[list[str]] = []  # one list a call, in the order of the calls, not of their ends

    async def __call__(self, messages: list[Message], sampling: Sampling, *, step: str, adapter: str | None = None) -> list[Completion]:
        seed = seed_of(self._run_seed, self._row_id, step)
        self._finish_reasons.append(reasons := [])
        completions = await self._model.complete(messages, sampling, seed=seed, adapter=adapter)
        self.prompt_tokens += completions[0].prompt_tokens
        self.completion_tokens += sum(c.completion_tokens for c in completions)
        reasons += [c.finish_reason for c in completions]
        return completions

    @property
    def finish_reasons(self) -> list[str]:
        return [reason for call in self._finish_reasons for reason in call]


def seed_of(run_seed: int, row_id: str, step: str) -> int:
    """The seed of a step's first sample, 62 bits; sample i adds i."""
    digest = hashlib.blake2b(f"{run_seed}/{row_id}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2


@dataclass(frozen=True)
class ModelSpec:
    """Everything an actor needs to open its model."""

    model: Model
    model_dir: str
    inference: Inference
    adapters: tuple[str, ...] = ()

    @property
    def least_actors(self) -> int:
        actors = self.inference.actors
        return actors[0] if isinstance(actors, tuple) else actors

    @property
    def most_actors(self) -> int:
        actors = self.inference.actors
        return actors[1] if isinstance(actors, tuple) else actors

    @property
    def gpus_per_actor(self) -> int:
        return 0 if self.inference.endpoint or self.model.is_dummy else self.inference.num_gpus

    @property
    def rows_in_flight(self) -> int:
        return round(ROWS_PER_SEQUENCE * self.inference.max_num_seqs)

    def blocks_in_flight(self, block_rows: int) -> int:
        """Enough for all rows in flight, and one more: the next block's first rows run beside the last block's stragglers."""
        return math.ceil(self.rows_in_flight / block_rows) + 1

    def open(self) -> LanguageModel:
        if self.inference.endpoint is not None:
            from pipeline.inference.endpoint import EndpointModel

            return EndpointModel(self.inference.endpoint)
        if self.model.is_dummy:
            from pipeline.inference.dummy import DummyModel

            return DummyModel(self.model.dummy or Dummy(), self.inference.max_num_seqs)
        from pipeline.inference.engine import VllmModel

        return VllmModel(self.model, self.model_dir, self.inference, list(self.adapters))


class RecipeActor:
    """Runs a recipe over blocks of a store's work list with one model. An exception of one row fails that row only."""

    def __init__(self, spec: ModelSpec, recipe: Recipe, store: Store, work: WorkList, seed: int, progress: Reporter):
        if progress.engine_starting() > FRUITLESS_STARTS + spec.most_actors:
            raise RunFailed(f"engines of {spec.model.path} die again and again before a row is finished")
        started = time.monotonic()
        self._model = spec.open()
        self._recipe, self._seed, self._progress = recipe, seed, progress
        self._store, self._work, self._schema = store, work, store.schema
        self._rows_in_flight = spec.rows_in_flight
        self._slots, self._alone = asyncio.Semaphore(self._rows_in_flight), asyncio.Lock()
        self._in_ray = _is_ray_actor()
        progress.engine_ready(time.monotonic() - started)

    def __del__(self):
        """Ray lets go of the actor. One end in thirty hangs for ever within Ray 2.60: then the kernel ends the process EXIT_S from now.

        Ray's core worker, while it is destroyed, posts a last reply to an event loop that is gone already, and waits for its freed lock. No
        thread of ours could end it: none begins to run any more while the interpreter is taken down.
        """
        if getattr(self, "_in_ray", False):
            signal.alarm(EXIT_S)  # nobody handles SIGALRM, so it ends the process

    async def __call__(self, numbers: pa.Table) -> AsyncIterator[pa.Table]:
        """Run and commit the blocks with these numbers, one after the other; yields their numbers again."""
        from ray.exceptions import RayError

        for number in numbers["block"].to_pylist():
            block = self._store.block(self._work, number)
            try:
                await self._run_block(block)
            except (RunFailed, OSError):
                raise
            except RayError as e:  # a node goes down with this actor, and Ray with it: elsewhere the block is run again
                _end_actor(e)
            except Exception as e:  # its text may hold what a row holds
                raise RunFailed(f"{block.path}: {type(e).__name__} in a block of rows") from None
        yield numbers

    async def _run_block(self, block: Block) -> None:
        if await asyncio.to_thread(lambda: block.committed):
            return  # this task was begun by an actor that died
        todo, kept = await asyncio.to_thread(block.read)
        results = await self._run_rows(block, [row for row in todo if row["id"] not in kept], kept)
        with storage.room_for(block.path):
            await asyncio.to_thread(block.commit, [results[row["id"]] for row in todo])  # beside the engine's next rows
        self._progress.flush()

    async def _run_rows(self, block: Block, rows: list[dict], kept: dict[str, dict]) -> dict[str, dict]:
        """The results of these rows and those kept, by id."""
        self._progress.rows_waiting(len(rows))
        if await asyncio.to_thread(self._progress.starting, f"block {block.number}") <= BLOCK_STARTS:
            results = await asyncio.gather(*(self._run_beside_others(row) for row in rows))
            return kept | {row["id"]: row for row in results}
        for row in rows:
            kept = await self._run_alone(block, row, kept)
        return kept

    async def _run_beside_others(self, row: dict) -> dict:
        async with self._slots:
            return await self._run(row)

    async def _run_alone(self, block: Block, row: dict, kept: dict[str, dict]) -> dict[str, dict]:
        """With nothing else in the engine, so that its death is this row's doing; a row that has killed before is kept as failed.

        Its result is written before anything else may run: else it is begun, and suspected, as often as a deadly row after it.
        """
        async with self._alone:
            for _ in range(self._rows_in_flight):
                await self._slots.acquire()
            try:
                if await asyncio.to_thread(self._progress.starting, f"row {row['id']}") > ROW_STARTS:
                    row = {**row, "status": FAILED, "error": "the engine died each time it ran this row"}
                kept = kept | {row["id"]: await self._run(row)}
                await asyncio.to_thread(block.keep, list(kept.values()))
                return kept
            finally:
                for _ in range(self._rows_in_flight):
                    self._slots.release()

    async def _run(self, row: dict) -> dict:
        self._progress.row_started()
        chat = RowChat(self._model, self._seed, row["id"])
        result = {name: row[name] for name in self._schema.names if name in row}
        if row.get("status") != FAILED:  # malformed at the source, or deadly: kept as it is
            result |= await self._attempt(row, chat)
        result |= {"prompt_tokens": chat.prompt_tokens, "completion_tokens": chat.completion_tokens}
        if "finish_reasons" in self._schema.names:
            result["finish_reasons"] = chat.finish_reasons
        self._progress.row_done(Tally.of(result))
        return result

    async def _attempt(self, row: dict, chat: RowChat) -> dict:
        from pipeline.inference.engine import EngineDead

        try:
            return await self._recipe(row, chat)
        except (EngineDead, MemoryError) as e:
            _end_actor(e)  # a living actor with a dead engine, or without memory, would fail every row
        except RowFailed as e:
            return {"status": FAILED, "error": str(e)}
        except Exception as e:  # a row nobody foresaw; its text may be harmful, so only the kind of error is told
            return {"status": FAILED, "error": f"{type(e).__name__} in {type(self._recipe).__name__}"}


def run_recipe(recipe: Recipe, store: Store, spec: ModelSpec, *, seed: int, label: str) -> dict:
    """Run a recipe over the store's work list, from where an earlier attempt stopped, and complete the store.

    Returns figures: rows, seconds, engine_start_s, prompt and completion tokens, tokens_per_s (of this attempt, engine start apart).
    Raises RunFailed where an engine does not start or a write fails.
    """
    work = store.work_list
    done, total = work.rows_of(store.committed()), work.rows
    progress = Progress(f"{label} (dummy model)" if spec.model.is_dummy else label, total=total, done=done)
    started = time.monotonic()
    try:
        with progress.shown():
            if done < total:
                _execute(recipe, store, spec, seed, progress)
    except UserError:
        raise
    except Exception as e:
        raise RunFailed(_cause(e)) from e
    figures = progress.figures()
    figures["seconds"] = round(time.monotonic() - started, 2)
    return figures


def _execute(recipe: Recipe, store: Store, spec: ModelSpec, seed: int, progress: Progress) -> None:
    import ray.data

    work = store.work_list
    undone = np.setdiff1d(np.arange(work.blocks), np.fromiter(store.committed(), int))
    in_flight = spec.blocks_in_flight(work.block_rows)
    # from_items puts its blocks in place by itself; from_arrow runs a task for each, to learn its schema.
    numbers = [{"block": number} for number in undone.tolist()]
    tasks = min(len(numbers), MOST_TASKS)
    pool = ray.data.from_items(numbers, override_num_blocks=tasks).map_batches(
        RecipeActor,
        fn_constructor_args=(spec, recipe, store, work, seed, progress.reporter()),
        batch_size=len(numbers) // tasks,  # all of a task's numbers, or all but one; where there are GPUs, Ray Data takes no None
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=spec.least_actors,
            max_size=spec.most_actors,
            max_tasks_in_flight_per_actor=2 * in_flight,
            max_concurrent_calls_per_actor=in_flight,
        ),
        num_cpus=1,
        num_gpus=spec.gpus_per_actor,
    )
    for _ in pool.iter_batches(batch_size=None):  # nothing to gather: what is done lies in the store
        pass


def _end_actor(why: Exception) -> NoReturn:
    print(f"the actor ends so that Ray starts it again: {type(why).__name__} {why.__cause__ or ''}", file=sys.stderr, flush=True)
    os._exit(1)


def _is_ray_actor() -> bool:
    import ray

    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _cause(e: BaseException) -> str:
    """What went wrong, in one line, out of what Ray wraps it in; and where the rest is told."""
    import ray

    lines = [line.strip() for line in str(e).splitlines() if line.strip()] or [type(e).__name__]
    ours = [line.split("RunFailed: ", 1)[1] for line in lines if "RunFailed: " in line]
    told = ours[-1] if ours else next((line for line in reversed(lines) if "Error" in line), lines[0])
    node = ray._private.worker._global_node
    return told + (f"; details are in {node.get_logs_dir_path()}" if node else "")
