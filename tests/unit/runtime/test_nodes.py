"""Clusters that grow: what an autoscaler may add counts, and a run waits for it, but not for ever."""

import math
from types import SimpleNamespace

import pytest

from pipeline import placement
from pipeline.errors import RunFailed, UserError
from pipeline.runtime import nodes
from pipeline.runtime.nodes import Autoscaler, Node
from tests import scripted

HEAD = Node("id", "10.0.0.1", 4, 0)
GPUS = Node("", "gpus", 16, 8)


def config(actors=2, num_gpus=2, **changes):
    engine = {"kind": "vllm", "actors": actors, "num_gpus": num_gpus}
    return scripted.config("/runs/mine", engine=engine, **changes)


def check(config, scaler, stages=("generate",), cluster=(HEAD,)):
    return placement.check(config, stages, list(cluster), lambda: scaler)


def test_nodes_that_an_autoscaler_may_add_count_and_are_waited_for():
    [told] = check(config(actors=8), Autoscaler(((GPUS, 2),), {}))
    assert told == (
        "engine.actors: generate takes 8 engines with 1 CPU and 2 GPU each; the Ray cluster (10.0.0.1 (4 CPU))"
        " has room for 0, and waits for more nodes"
    )


@pytest.mark.parametrize(
    ("scaler", "most"),
    [
        (Autoscaler(((GPUS, 1),), {}), 4),
        (Autoscaler(((Node("", "small", 16, 1), 9),), {}), 0),  # an engine's GPUs are on one node
        (Autoscaler(((GPUS, math.inf),), {"GPU": 9}), 4),
        (Autoscaler(((Node("", "cpus", 64, 0), 9),), {}), 0),
    ],
)
def test_what_the_largest_cluster_has_no_room_for_is_refused(scaler, most):
    with pytest.raises(UserError, match=f"has room for 0, and for {most} with all nodes that its autoscaler"):
        check(config(actors=8), scaler)


def test_an_autoscaler_that_does_not_tell_its_maximum_is_waited_for():
    assert len(check(config(actors=900), Autoscaler())) == 1


def test_a_cluster_that_is_large_enough_asks_no_autoscaler():
    placement.check(config(actors=1, num_gpus=0), ["generate"], [HEAD], lambda: 1 / 0)


# -- what Ray reports


class Group(SimpleNamespace):
    pass


@pytest.fixture
def ray(monkeypatch):
    """A Ray that reports: `config` of Anyscale's autoscaler, `said` by Ray's own."""
    import ray

    reports = SimpleNamespace(config=None, said=None)
    client = SimpleNamespace(internal_kv_get=lambda _key, _namespace: reports.said)
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: reports.config)
    monkeypatch.setattr(ray._private.worker.global_worker, "_gcs_client", client, raising=False)
    monkeypatch.setattr(type(ray._private.worker.global_worker), "gcs_client", client, raising=False)
    monkeypatch.setattr("ray.autoscaler.v2.utils.is_autoscaler_v2", lambda **_options: False)
    monkeypatch.setattr(nodes, "REPORT_S", 0)
    return reports


def test_groups_of_a_reported_configuration(ray):
    groups = [
        Group(name="g", resources={"CPU": 8, "GPU": 4}, max_count=3),
        Group(name="c", resources={"CPU": 2}, max_count=-1),
    ]
    ray.config = SimpleNamespace(node_group_configs=groups, max_resources={"CPU": 40})
    found = nodes.autoscaler()
    assert found.places(1, 4) == 3 and found.places(1, 1) == 12 and found.places(1, 0) == 40


@pytest.mark.parametrize(
    ("said", "scales"),
    [
        (None, False),
        (b'{"load_metrics_report": {}}', False),
        (b'{"autoscaler_report": {"active_nodes": {"node_0a1b": 1}, "pending_launches": {}}}', False),
        (b'{"autoscaler_report": {"active_nodes": {"headgroup": 1}, "pending_launches": {}}}', True),
    ],
)
def test_rays_own_autoscaler_is_known_by_its_kinds_of_nodes(ray, said, scales):
    ray.said = said
    assert (nodes.autoscaler() is not None) is scales


# -- waiting


@pytest.fixture
def waiting(monkeypatch):
    """A cluster whose nodes come with time; `found.looks` before one is there, `found.refused`: by the
    autoscaler."""
    found = SimpleNamespace(looks=0, now=0.0, after=math.inf, refused=False, asked=[], removed=[])

    def wait(seconds):
        found.now += seconds

    def group(bundles):
        found.asked.append(bundles)
        return SimpleNamespace(id=SimpleNamespace(hex=lambda: "ab"), wait=wait)

    monkeypatch.setattr(nodes, "nodes", lambda: [GPUS] if found.now >= found.after else [HEAD])
    monkeypatch.setattr(nodes, "_cannot_add", lambda _group: found.refused)
    monkeypatch.setattr(nodes.time, "monotonic", lambda: found.now)
    monkeypatch.setattr("ray.util.placement_group", group)
    monkeypatch.setattr("ray.util.remove_placement_group", found.removed.append)
    return found


def test_nodes_are_asked_for_and_waited_for(waiting):
    waiting.after, told = 300, []
    nodes.wait_for(4, 1, 2, told.append)
    assert waiting.asked == [[{"CPU": 1, "GPU": 2}] * 4] and len(waiting.removed) == 1
    assert set(told) == {"waits for nodes: room for 0 of 4 processes with 1 CPU and 2 GPU each"}


def test_nobody_waits_where_there_is_room(waiting):
    nodes.wait_for(4, 1, 0, pytest.fail)
    assert waiting.asked == []


def test_waiting_has_an_end(waiting):
    with pytest.raises(RunFailed, match="no nodes came within 30 minutes"):
        nodes.wait_for(4, 1, 2, lambda _line: None)
    assert waiting.now > nodes.WAIT_S and len(waiting.removed) == 1


def test_an_autoscaler_that_has_no_such_nodes_ends_it_at_once(waiting):
    waiting.refused = True
    with pytest.raises(RunFailed, match="its autoscaler has no nodes to add"):
        nodes.wait_for(4, 1, 2, lambda _line: None)
    assert waiting.now < 60


# -- packages that nodes install


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0),
        ({"env_vars": {"A": "1"}, "working_dir": "gcs://x.zip"}, 0),
        ({"uv": {"packages": ["x"]}}, placement.SETUP_S),
        ({"pip": ["x"], "config": {"setup_timeout_seconds": 3600}}, 3600),
    ],
)
def test_a_node_that_installs_packages_may_take_its_time_to_answer(monkeypatch, environment, seconds):
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(runtime_env=environment))
    waited = []

    def get(_ref, timeout):
        waited.append(timeout)
        return {}

    class Look:
        def options(self, **_options):
            return SimpleNamespace(remote=lambda *_arguments: None)

    monkeypatch.setattr("ray.remote", lambda **_options: lambda _function: Look())
    monkeypatch.setattr("ray.get", get)
    placement.check_files("/runs/mine", {}, [Node("0" * 56, "10.0.0.1", 1, 0)])
    assert waited == [placement.ANSWER_S + seconds]
