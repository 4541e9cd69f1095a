"""Engines on several nodes: Ray sets the GPUs of each aside, and vLLM's executor for Ray fills them."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.inference.base import Engine
from pipeline.runtime.nodes import KIND


@contextmanager
def places(engine: Engine) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that gives Ray's arguments for one more actor with such an engine.

    The actor is where its first GPU is. All GPUs are free again afterwards: Ray would keep them to the end of
    the run. Ray must be connected.
    """
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    kind = {f"{KIND}{engine.gpu_kind}": 0.001} if engine.gpu_kind else {}
    gpu = {"GPU": 1.0} | kind  # vLLM takes no bundle of several
    made = []

    def place() -> dict[str, Any]:
        made.append(placement_group([{"CPU": 1.0} | gpu, *[gpu] * (engine.gpus - 1)], strategy="PACK"))
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                made[-1], placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        }

    try:
        yield place
    finally:
        for group in made:
            remove_placement_group(group)


def join(nodes: int, tell: Callable[[str], object]) -> None:
    """Prepare this actor for an engine on so many nodes. tell: takes a notice if these share it unevenly."""
    import ray
    from ray.util import get_current_placement_group, placement_group_table

    # The engine's core is a process of its own, which would otherwise look for some Ray on its machine.
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    group = get_current_placement_group()
    if group is None:  # vLLM makes one
        return
    counts = sorted(Counter(placement_group_table(group)["bundles_to_node_id"].values()).values())
    if len(counts) > nodes or len(set(counts)) > 1:
        told = ", ".join(map(str, counts))
        tell(
            f"an engine has {told} GPUs on {len(counts)} nodes instead of equally many on {nodes}: it is slow"
        )
