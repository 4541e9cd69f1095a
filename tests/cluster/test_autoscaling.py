"""A cluster that Ray's autoscaler starts from nothing but a head, with nodes that are processes of one machine."""

import json
import sys
from collections.abc import Iterator

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID as HEAD_ID

from tests.chaos.harness import assert_equals_undisturbed, write_job
from tests.cluster.machines import GCS, Machine, Network, _ip, ray, setbacks

pytestmark = pytest.mark.timeout(400)


def configuration(address: str, version: int) -> dict:
    """At most two nodes of two CPUs."""
    memory = {"object_store_memory": 80 * 2**20}
    commands = ("setup", "head_setup", "worker_setup", "initialization", "head_start_ray", "worker_start_ray")
    lists = (
        "cluster_synced_files",
        "rsync_exclude",
        "rsync_filter",
        *(f"{name}_commands" for name in commands),
    )
    return {
        **{name: [] for name in lists},
        "file_mounts": {},
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 20,
        "idle_timeout_minutes": 5,
        "provider": {
            # Not by its name: its defaults are in a file that Ray's wheel lacks.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": HEAD_ID,
            "use_node_id_as_ip": True,  # all nodes are at one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            **({"launch_multiple": True} if version == 2 else {}),
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0, **memory}, "node_config": {}, "max_workers": 0},
            "workers": {
                "resources": {"CPU": 2, **memory},
                "node_config": {},
                "min_workers": 0,
                "max_workers": 2,
            },
        },
    }


@pytest.fixture(params=[1, 2], ids=["v1", "v2"])
def head(network, tmp_path, request) -> Iterator[Machine]:
    """A machine whose Ray has an autoscaler, and no node that takes work."""
    # Nothing is hidden there: a hidden directory is another one for each process that is started, and a driver
    # whose Ray node has its sockets in such a one ends without a word.
    machine = network._machine()
    _ip(
        "-n", machine.name, "route", "add", "default", "dev", "eth0"
    )  # by which Ray finds a node's own address
    address = f"{machine.address}:{GCS}"
    config = tmp_path / "autoscaler.json"
    config.write_text(json.dumps(configuration(address, request.param)))
    machine.environment |= {
        "RAY_ADDRESS": address,
        "RAY_TMPDIR": f"{network.temporary}/v{request.param}",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_enable_autoscaler_v2": str(request.param - 1),
        "RAY_NODE_TYPE_NAME": "ray.head.default",
    }
    with open(tmp_path / "ray.txt", "wb") as said:
        machine.start(
            *ray("start", "--head", "--num-cpus", "0", "--block", "--disable-usage-stats"),
            *("--node-ip-address", machine.address, "--port", str(GCS)),
            *("--object-store-memory", str(80 * 2**20)),
            f"--autoscaling-config={config}",
            output=said,
        )
    for name in ("RAY_OVERRIDE_NODE_ID_FOR_TESTING", "RAY_CLOUD_INSTANCE_ID", "RAY_NODE_TYPE_NAME"):
        del machine.environment[name]  # of the head's own node
    try:
        Network.until(lambda: machine.has("gcs_server") and machine.has("monitor.py"), "the autoscaler runs")
        yield machine
    finally:
        network.lose(machine)


def test_nodes_that_do_not_exist_yet_are_waited_for(head, source, tmp_path, undisturbed):
    job = write_job(tmp_path, source, engine={"actors": 3, "rows_per_commit": 16})
    code, said = head.run(*setbacks("generate", str(job.config)), seconds=240)
    assert code == 0, said
    assert "has room for 0, and waits for more nodes" in said, said
    assert "waits for nodes: room for 0 of 3 processes with 1 CPU each" in said, said
    assert_equals_undisturbed(job, undisturbed)


# The autoscaler of version 1 says of no request that it cannot be met.
SOON = "from pipeline.runtime import nodes; nodes.WAIT_S = 40; nodes.REFUSED_S = 5; from pipeline import cli; cli.main()"


def test_what_the_autoscaler_may_not_add_ends_the_run(head, source, tmp_path):
    job = write_job(tmp_path, source, engine={"actors": 9})
    code, said = head.run(sys.executable, "-c", SOON, "generate", str(job.config), seconds=240)
    assert code == 1 and "Traceback" not in said, said
    assert "the Ray cluster has room for " in said and " of 9 processes with 1 CPU each, and " in said, said
    if head.environment["RAY_enable_autoscaler_v2"] == "1":
        assert "its autoscaler has no nodes to add for the others" in said, said
