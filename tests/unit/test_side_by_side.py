"""Whether a cluster has room for all models of a stage at the same time, and where their engines go."""

import pytest

from pipeline import placement
from pipeline.inference.dummy import Dummy
from pipeline.inference.openai import OpenAI
from pipeline.inference.vllm import VLLM
from pipeline.placement import Node


def gpu(actors=1, gpus=1) -> VLLM:
    return VLLM(num_gpus=gpus, actors=actors)


def cpu(actors=1) -> VLLM:
    return VLLM(actors=actors)


def cluster(*sizes: tuple[int, int]) -> list[Node]:
    """A node per (CPUs, GPUs)."""
    return [Node(f"id-{number}", f"10.0.0.{number}", *size) for number, size in enumerate(sizes, 1)]


def places(engines, *sizes) -> list[list[tuple]] | None:
    found = placement.side_by_side(engines, cluster(*sizes))
    return found and [[(place.address[-1], place.cpus, place.gpus) for place in one] for one in found]


ROOM = {
    "two GPUs": ([gpu(), gpu()], [(8, 2)], [[("1", 1, 1)]]),
    "three models": ([gpu(2), gpu(), gpu()], [(8, 4)], [[("1", 1, 1)], [("1", 1, 1)]]),
    "a small judge leaves the large node": ([gpu(1, 4), gpu()], [(8, 4), (8, 1)], [[("2", 1, 1)]]),
    "large ones first": (
        [gpu(), gpu(2), gpu(1, 4)],
        [(8, 5), (8, 2)],
        [[("1", 1, 1), ("2", 1, 1)], [("1", 1, 4)]],
    ),
    "a CPU engine fills its node": ([cpu(), cpu()], [(4, 0), (8, 0)], [[("1", 4, 0)]]),
    "words of no model": ([Dummy(), Dummy(actors=2)], [(8, 0)], [[("1", 1, 0), ("1", 1, 0)]]),
    "autoscaling, at its most": ([gpu((1, 3)), gpu()], [(8, 4)], [[("1", 1, 1)]]),
}
NO_ROOM = {
    "one GPU": ([gpu(), gpu()], [(8, 1)]),
    "one GPU each, but on two nodes": ([gpu(1, 2), gpu()], [(8, 1), (8, 1), (8, 1)]),
    "a machine without GPUs": ([cpu(), cpu()], [(64, 0)]),
    "two CPU engines of the judge": ([cpu(), cpu(2)], [(4, 0), (8, 0)]),
    "a server's clients on the judge's node": ([OpenAI(url="http://h/v1", model="m"), cpu()], [(8, 0)]),
    "CPUs": ([gpu(), gpu()], [(1, 2)]),
    "autoscaling, at its most": ([gpu((1, 4)), gpu()], [(8, 4)]),
}


@pytest.mark.parametrize(("engines", "sizes", "found"), ROOM.values(), ids=ROOM)
def test_models_stand_side_by_side_if_all_fit(engines, sizes, found):
    assert places(engines, *sizes) == found


@pytest.mark.parametrize(("engines", "sizes"), NO_ROOM.values(), ids=NO_ROOM)
def test_models_take_turns_if_they_do_not_fit(engines, sizes):
    assert places(engines, *sizes) is None


def test_a_place_is_reserved_on_its_node():
    [[place]] = placement.side_by_side([gpu(), gpu(1, 2)], cluster((8, 3)))
    assert place.bundle == {"CPU": 1.0, "GPU": 2.0, "node:10.0.0.1": 0.001}
