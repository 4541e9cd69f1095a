"""Engines and trainers that ask for a kind of GPU are placed on nodes that have it, and nowhere else."""

import pytest

from pipeline import placement
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.inference.beside import Place
from pipeline.runtime.nodes import Node
from tests import scripted

NODES = [
    Node("a", "10.0.0.1", 64, 8, frozenset({"H100"})),
    Node("b", "10.0.0.2", 64, 4, frozenset({"L40S"})),
]


def config(engine: str | None = None, train: str | None = None, **changes):
    return scripted.config(
        engine={"num_gpus": 1, "actors": 4, "accelerator_type": engine},
        train={"use_gpu": True, "workers": 8, "batch_size": 16, "accelerator_type": train},
        **changes,
    )


def test_each_is_placed_on_its_kind():
    made = config("L40S", "H100")
    placement.check(made, ["generate", "train"], NODES)
    told = "\n".join(placement.told(made, ["generate", "train"], NODES))
    assert "4 engines with 1 CPU and 1 GPU (L40S) each; room for 4 (4 on 10.0.0.2)" in told
    assert "8 workers with 1 GPU (H100) each; room for 8 (8 on 10.0.0.1)" in told


@pytest.mark.parametrize(("engine", "train", "what"), [("A100", None, "engines"), (None, "L40S", "workers")])
def test_a_kind_that_is_not_there_is_refused(engine, train, what):
    with pytest.raises(UserError, match=rf"{what} with .*1 GPU \({engine or train}\) each") as e:
        placement.check(config(engine, train), ["generate", "train"], NODES)
    assert "10.0.0.1 (64 CPU, 8 H100 GPU), 10.0.0.2 (64 CPU, 4 L40S GPU)" in str(e.value)


def test_any_kind_is_taken_if_none_is_named():
    [need, _] = placement.needs(config(), ["generate", "train"])
    assert sum(map(need.places, NODES)) == 12


def test_an_engine_beside_others_is_reserved_a_gpu_of_its_kind():
    made = config(
        "H100", models={"judge": {"path": "toy", "engine": {"num_gpus": 2, "accelerator_type": "L40S"}}}
    )
    judge = made.models["judge"].engine
    assert placement.side_by_side([made.engine, judge], NODES) == [[Place("10.0.0.2", 1, 2, "L40S")]]
    assert placement.side_by_side([made.engine, judge], NODES[:1]) is None
    assert Place("10.0.0.2", 1, 2, "L40S").bundle["accelerator_type:L40S"] == 0.001
    assert "accelerator_type:L40S" not in Place("10.0.0.2", 1, 2).bundle


def test_cpus_are_of_no_kind():
    made = scripted.config(engine={"accelerator_type": "H100"}, train={"accelerator_type": "H100"})
    placement.check(made, ["generate", "train"], [Node("a", "10.0.0.1", 8, 0)])


def test_the_kind_changes_no_output():
    assert fingerprints(config("L40S", "H100")) == fingerprints(config())
