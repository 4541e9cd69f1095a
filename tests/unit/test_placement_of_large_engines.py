"""An engine that is larger than every node: what is said, and what is proposed."""

import pytest

from pipeline import placement
from pipeline.errors import UserError
from pipeline.inference.vllm import VLLM
from pipeline.runtime.nodes import Autoscaler, Node
from tests import scripted

LARGE = {"num_gpus": 16}
HERE = [Node("a", "10.0.0.1", 64, 8), Node("b", "10.0.0.2", 64, 4)]


def refused(engine: dict, cluster, scaler=lambda: None) -> str:
    with pytest.raises(UserError) as e:
        placement.check(scripted.config("/runs/mine", engine=engine), ["generate"], cluster, scaler)
    return str(e.value)


def test_the_degrees_of_parallelism_and_larger_nodes_are_proposed():
    told = refused(LARGE, HERE)
    assert told.endswith(
        "has room for 0; a node has at most 8: set engine.num_nodes: 2, so that nodes share an engine, or"
        " engine.num_gpus to at most 8, or add nodes with 16 GPUs"
    )


def test_nodes_of_another_kind_do_not_count():
    kinds = [
        Node("a", "10.0.0.1", 64, 8, frozenset({"H100"})),
        Node("b", "10.0.0.2", 64, 4, frozenset({"L40S"})),
    ]
    assert "to at most 4, or add nodes" in refused({"num_gpus": 8, "accelerator_type": "L40S"}, kinds)


def test_nodes_that_may_be_added_count():
    grows = Autoscaler(((Node("", "gpus", 64, 8), 4),))
    assert "to at most 8, or add nodes" in refused(LARGE, HERE[1:], lambda: grows)


def test_an_engine_on_two_nodes_needs_a_part_on_each():
    two = LARGE | {"num_nodes": 2}
    assert placement.check(scripted.config("/runs/mine", engine=two), ["generate"], [HERE[0]] * 2) == []
    told = refused(two, HERE)
    assert "generate takes 2 parts of engines on 2 nodes with 1 CPU and 8 GPU each" in told
    assert told.endswith("ask for fewer, set num_gpus or use_gpu for CPUs, or add nodes")
    assert "a node has at most 4: set engine.num_nodes: 4, so" in refused(two, HERE[1:])


def test_it_stands_beside_no_other_engine_and_may_be_the_pool():
    two, one = VLLM(num_gpus=16, num_nodes=2), VLLM(num_gpus=4)
    cluster = [*[HERE[0]] * 2, HERE[1]]
    assert placement.side_by_side([one, two], cluster) is None
    assert placement.side_by_side([two, one], cluster) is not None
    assert placement.side_by_side([two, one], cluster[:2]) is None


def test_nodes_that_are_large_enough_and_too_few_are_another_matter():
    told = refused({"num_gpus": 8, "actors": 2}, HERE)
    assert told.endswith("ask for fewer, set num_gpus or use_gpu for CPUs, or add nodes")
