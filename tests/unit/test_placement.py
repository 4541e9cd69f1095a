"""What stages take of a cluster's nodes, and what is refused because no node can give it."""

import pytest

from pipeline import placement
from pipeline.errors import UserError
from pipeline.placement import Node
from tests import scripted

ALL = ["generate", "mix", "train", "evaluate"]
SERVER = {"kind": "openai", "url": "http://localhost:1/v1", "model": "m", "api_key_env": None}


def config(**changes):
    return scripted.config("/runs/mine", **changes)


def cluster(*sizes: tuple[int, int]) -> list[Node]:
    """A node per (CPUs, GPUs)."""
    return [Node(f"id-{number}", f"10.0.0.{number}", *size) for number, size in enumerate(sizes, 1)]


def refused(settings: dict, stages, *sizes: tuple[int, int]) -> str:
    with pytest.raises(UserError) as e:
        placement.check(config(**settings), stages, cluster(*sizes))
    assert "\n" not in str(e.value)
    return str(e.value)


TOO_FEW = [
    (
        {"engine": {"num_gpus": 1}},
        ["generate"],
        [(8, 0)],
        "generate takes 1 engines with 1 CPU and 1 GPU each",
        0,
    ),
    (
        {"engine": {"num_gpus": 2, "actors": 4}},
        ["evaluate"],
        [(8, 7)],
        "evaluate takes 4 engines with 1 CPU and 2 GPU each",
        3,
    ),
    (
        {"engine": {"num_gpus": 2, "actors": [2, 9]}},
        ["generate"],
        [(8, 1), (8, 1), (8, 2)],
        "generate takes 2 engines",
        1,
    ),
    (
        {"engine": {"num_gpus": 2}, "recipe": {"engine": SERVER}},
        ALL,
        [(8, 1)],
        "evaluate takes 1 engines",
        0,
    ),  # the method's engine is not the one that evaluates
    (
        {"recipe": {"engine": {**SERVER, "actors": 9}}},
        ["generate"],
        [(8, 0)],
        "methods.mistakes.engine.actors: generate takes 9 engines with 1 CPU each",
        8,
    ),
    (
        {"engine": {"actors": 5}},
        ["generate"],
        [(2, 0), (2, 0)],
        "generate takes 5 engines with 1 CPU each",
        4,
    ),
    (
        {"train": {"use_gpu": True}},
        ALL,
        [(8, 0)],
        "train sft, mistake_analysis takes 1 workers with 1 GPU each",
        0,
    ),
    (
        {"train": {"use_gpu": True, "workers": [4, 5], "batch_size": 20}},
        ["train"],
        [(0, 3)],
        "train sft, mistake_analysis takes 4 workers",
        3,
    ),
    (
        {"train": {"workers": 16}},
        ["train"],
        [(4, 0), (8, 0)],
        "train sft, mistake_analysis takes 16 workers with 1 CPU each",
        12,
    ),
]


@pytest.mark.parametrize(("settings", "stages", "sizes", "wanted", "room"), TOO_FEW)
def test_what_no_node_can_give_is_refused(settings, stages, sizes, wanted, room):
    message = refused(settings, stages, *sizes)
    assert wanted in message and f"has room for {room};" in message
    assert (
        message.startswith(("engine.actors: ", "methods.mistakes.engine.actors: ", "train.workers: "))
        and "10.0.0.1 (" in message
    )
    placement.check(config(**settings), stages, cluster(*sizes, (16, 8), (16, 8)))


def test_gpus_that_nobody_uses():
    without = cluster((8, 0))
    placement.check(config(), ALL, without)
    placement.check(config(engine={"num_gpus": 1}, recipe={"engine": SERVER}), ["generate"], without)
    placement.check(config(engine={"num_gpus": 1}), ["train"], without)
    placement.check(config(train={"use_gpu": True}), ["generate", "evaluate"], without)
    placement.check(config(engine={"kind": "dummy", "actors": 8}), ["generate"], without)


def test_a_cluster_without_a_node_that_takes_work():
    assert "the Ray cluster (no node that takes work) has room for 0" in refused({}, ["generate"])


def test_what_a_plan_tells_of_a_cluster():
    asked = config(
        engine={"num_gpus": 2, "actors": [1, 3]}, train={"workers": 2, "use_gpu": True, "batch_size": 16}
    )
    assert placement.told(asked, ALL, cluster((8, 4), (4, 0), (8, 3))) == [
        "3 nodes take work: 10.0.0.1 (8 CPU, 4 GPU), 10.0.0.2 (4 CPU), 10.0.0.3 (8 CPU, 3 GPU)",
        "generate: 1 to 3 engines with 1 CPU and 2 GPU each; room for 3 (2 on 10.0.0.1, 1 on 10.0.0.3)",
        "train sft, mistake_analysis: 2 workers with 1 GPU each; room for 7 (4 on 10.0.0.1, 3 on 10.0.0.3)",
        "evaluate: 1 to 3 engines with 1 CPU and 2 GPU each; room for 3 (2 on 10.0.0.1, 1 on 10.0.0.3)",
    ]


def test_what_a_node_misses(tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    assert placement._missing(str(run), {"model.path": str(model)}) == {
        "model.path": (str(model), "does not exist")
    }
    model.mkdir()
    assert (
        "another directory, or does not exist,"
        in placement._missing(str(run), {"model.path": str(model)})["run_dir"][1]
    )
    (run / ".state/attempts").mkdir(parents=True)
    (run / ".state/attempts/0001.json").write_text("{}")
    assert placement._missing(str(run), {"model.path": str(model)}) == {}
    assert [path.name for path in (run / ".state").iterdir()] == ["attempts"]
