"""Engines that stand beside a pool: actors with other models, which the pool's actors ask over Ray.

Their places are reserved before they start, so that the pool cannot take them. If an engine dies, Ray starts
it again. The rows that it was answering wait for a later pass, in which their model has a pool of its own:
there, a row that kills engines is found (see `pool`). Here it kills one engine.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed, RunFailed
from pipeline.inference.base import EngineDead, LanguageModel
from pipeline.runtime.session import actor_id, actor_on_driver_node
from pipeline.settings.shown import first_line

if TYPE_CHECKING:
    from pipeline.inference.pool import ModelSpec

RESERVE_S = 60  # for places that are free: longer, if somebody else uses them
AGAIN_S = 1.0  # between two looks at engines that Ray starts again
OPENINGS = 3  # of an engine in a row, each in a process of its own, before it counts as one that cannot start


class NotOpen(Exception):
    """A call to a model that this pass does not serve, or no longer: the row waits for a later pass."""


class NoRoom(Exception):
    """The places are taken by somebody else."""


def end_actor(why: Exception) -> NoReturn:
    """End this actor's process; Ray starts another one."""
    reason = f"{type(why).__name__} {why.__cause__ or ''}"
    print(f"ending this actor so that Ray restarts it: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


class Failures:
    """Counts engines that did not start, in a Ray actor: an engine's own process ends with it."""

    def __init__(self):
        self.openings: dict[str | None, int] = {}

    def not_opened(self, engine: str | None, why: str) -> int:
        """How often in a row an engine did not open, this time included."""
        self.openings[engine] = self.openings.get(engine, 0) + 1
        return self.openings[engine]

    def opened(self, engine: str | None) -> None:
        self.openings.pop(engine, None)


def open_or_end(spec: "ModelSpec", not_opened: Callable[[str | None, str], int]) -> LanguageModel:
    """Open an engine; if it does not start, end this actor's process, so that Ray starts another one.

    What keeps an engine from starting may pass: memory of the engine before it, a port, a hub that is busy.
    not_opened: takes the actor and the reason, returns how often in a row this has happened to this actor.
    Raises RunFailed the last time (OPENINGS).
    """
    try:
        return spec.open()
    except RunFailed as e:
        if not_opened(actor_id(), str(e)) >= OPENINGS:
            raise RunFailed(f"{e}; tried {OPENINGS} times") from e
        end_actor(e)


@dataclass(frozen=True)
class Place:
    """Where an engine starts. cpus: at least 1; an engine that computes on CPUs has all of its node."""

    address: str
    cpus: float
    gpus: int
    gpu_kind: str | None = None

    @property
    def bundle(self) -> dict[str, float]:
        """What Ray reserves. Every node has a resource of its own, named by its address."""
        gpus = {"GPU": float(self.gpus)} if self.gpus else {}
        if self.gpu_kind:
            gpus[f"accelerator_type:{self.gpu_kind}"] = 0.001
        return {"CPU": float(self.cpus), **gpus, f"node:{self.address}": 0.001}


class EngineActor:
    """One engine, asked by actors of a pool."""

    def __init__(self, spec: "ModelSpec", failures: Any):
        import ray

        self._model = open_or_end(spec, lambda *what: ray.get(failures.not_opened.remote(*what)))
        failures.opened.remote(actor_id())

    async def ready(self) -> None:
        """Done when the engine is open."""

    async def complete(
        self, prompt: list[Message] | str, sampling: Sampling, seed: int, adapter: str | None, prefill: bool
    ) -> list[Completion] | RowFailed:
        """As of `LanguageModel`. A failure is returned: Ray would log one that is raised, and it may quote
        a row."""
        try:
            return await self._model.complete(prompt, sampling, seed=seed, adapter=adapter, prefill=prefill)
        except (EngineDead, MemoryError) as e:
            end_actor(e)
        except RowFailed as e:
            return e
        except Exception as e:
            return RowFailed(f"{type(e).__name__} in the engine")


@dataclass(frozen=True)
class Standing:
    """The engines of one model. It can be pickled, so that the pool's actors get it."""

    actors: Sequence[Any]
    opening: Sequence[Any]  # done when the engines are open for the first time

    def open(self) -> LanguageModel:
        """Wait until the engines are open. Raises RunFailed if one does not start."""
        import ray

        opening = list(self.opening)
        try:
            while True:
                try:
                    ray.get(opening)
                    break
                except ray.exceptions.ActorUnavailableError:  # one is started again
                    time.sleep(AGAIN_S)
                    opening = [actor.ready.remote() for actor in self.actors]
        except ray.exceptions.RayError as e:
            told = [line.split("RunFailed: ", 1)[1] for line in str(e).splitlines() if "RunFailed: " in line]
            raise RunFailed(told[-1] if told else f"an engine did not start ({first_line(e)})") from None
        return _Remote(self.actors)


class _Remote:
    """Engines behind the call of one, each asked in turn."""

    def __init__(self, actors: Sequence[Any]):
        self._turns = itertools.cycle(actors)

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        from ray.exceptions import RayError

        try:
            found = await next(self._turns).complete.remote(prompt, sampling, seed, adapter, prefill)
        except RayError:  # the engine has died, or is starting again
            raise NotOpen from None
        if isinstance(found, RowFailed):
            raise found
        return found


@contextmanager
def standing(places: Mapping["ModelSpec", Sequence[Place]]) -> Iterator[dict["ModelSpec", Standing]]:
    """Engines of these models at these places, until the body ends. Raises NoRoom if a place is taken."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    order = [(spec, place) for spec, of_spec in places.items() for place in of_spec]
    reserved = placement_group([place.bundle for _, place in order])
    try:
        if not reserved.wait(RESERVE_S):
            raise NoRoom
        actors: dict[ModelSpec, list[Any]] = {spec: [] for spec in places}
        failures = actor_on_driver_node(Failures)
        for number, (spec, place) in enumerate(order):
            options = {
                "num_cpus": place.cpus,
                "num_gpus": place.gpus,
                "max_restarts": -1,
                "max_concurrency": spec.rows_in_flight,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    reserved, placement_group_bundle_index=number
                ),
            }
            actors[spec].append(ray.remote(EngineActor).options(**options).remote(spec, failures))
        yield {spec: Standing(own, [actor.ready.remote() for actor in own]) for spec, own in actors.items()}
    finally:
        remove_placement_group(reserved)  # ends the actors too
