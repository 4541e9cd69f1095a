"""The nodes of the connected cluster: those that are there, and those that its autoscaler may add."""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.errors import RunFailed

KIND = "accelerator_type:"  # begins Ray's resource for a kind of GPU, of which nodes with it have 1
WAIT_S = 1800  # for nodes that an autoscaler starts: they may pull an image of many gigabytes
REPORT_S = 10  # for the autoscaler's first report
REFUSED_S = 20  # for the autoscaler to take back that it cannot add nodes, which it says while it starts
_LOOK_EVERY_S = 2.0
_READ_ONLY = "node_"  # Ray's monitor names the nodes of a cluster that nothing scales by their ids


@dataclass(frozen=True)
class Node:
    """A node of the cluster that takes work: one with CPUs or GPUs."""

    id: str
    address: str
    cpus: float
    gpus: float
    kinds: frozenset[str] = frozenset()  # of its GPUs, by Ray's names

    def __str__(self) -> str:
        kinds = f" {'/'.join(sorted(self.kinds))}" if self.kinds else ""
        return f"{self.address} ({self.cpus:g} CPU{f', {self.gpus:g}{kinds} GPU' if self.gpus else ''})"

    def places(self, cpus: float, gpus: float, gpu_kind: str | None = None) -> int:
        """Number of processes that fit on the node, each with so many CPUs and GPUs. gpu_kind: None = any."""
        if gpu_kind and gpu_kind not in self.kinds:
            return 0
        return int(min(have // each for have, each in ((self.cpus, cpus), (self.gpus, gpus)) if each))


@dataclass(frozen=True)
class Autoscaler:
    """What adds nodes to the cluster.

    groups: kinds of nodes, with the largest number of each, those that are there included. None = Ray does
    not know them: only Anyscale's autoscaler reports its configuration to Ray 2.60, KubeRay's does not.
    limits: the most CPUs and GPUs of the whole cluster, where there is a limit.
    """

    groups: tuple[tuple[Node, float], ...] | None = None
    limits: Mapping[str, float] | None = None

    @property
    def nodes(self) -> list[Node]:
        """One of each group."""
        return [node for node, _ in self.groups or ()]

    def places(self, cpus: float, gpus: float, gpu_kind: str | None = None) -> float:
        """Number of processes that fit on the largest cluster; infinite if it is not known."""
        if self.groups is None:
            return math.inf
        found = sum(
            count * held
            for node, count in self.groups
            # a group may not say its kind, which its nodes do when they are there
            if (held := node.places(cpus, gpus, gpu_kind if node.kinds else None))
        )
        for name, each in (("CPU", cpus), ("GPU", gpus)):
            if each and self.limits and name in self.limits:
                found = min(found, self.limits[name] // each)
        return found


def nodes() -> list[Node]:
    """The nodes of the connected cluster that take work."""
    import ray

    found = [
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0),
            node["Resources"].get("GPU", 0),
            _kinds(node["Resources"]),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]
    return sorted((node for node in found if node.cpus or node.gpus), key=lambda node: node.address)


def _kinds(resources: Mapping[str, float]) -> frozenset[str]:
    """The kinds of GPUs in the resources of a node."""
    return frozenset(name.removeprefix(KIND) for name in resources if name.startswith(KIND))


def autoscaler() -> Autoscaler | None:
    """The autoscaler of the connected cluster; None if its nodes are fixed."""
    import ray

    config = ray._private.state.state.get_cluster_config()  # what Ray Train compares its workers with
    if config is not None and config.node_group_configs:
        groups = tuple(
            (
                Node(
                    "",
                    group.name,
                    group.resources.get("CPU", 0),
                    group.resources.get("GPU", 0),
                    _kinds(group.resources),
                ),
                math.inf if group.max_count < 0 else group.max_count,
            )
            for group in config.node_group_configs
        )
        return Autoscaler(groups, dict(config.max_resources))
    return Autoscaler() if _scales() else None


def _scales() -> bool:
    """Whether Ray's own autoscaler runs, by what it reports. A head that has just started reports nothing."""
    end = time.monotonic() + REPORT_S
    while (found := _reported()) is None and time.monotonic() < end:
        time.sleep(0.5)
    return bool(found)


def _reported() -> bool | None:
    """As `_scales`; None if there is no report yet."""
    import ray

    if (state := _state()) is not None:
        return state.autoscaler_state_version > 0 or None
    client = ray._private.worker.global_worker.gcs_client
    said = client.internal_kv_get(ray._private.ray_constants.DEBUG_AUTOSCALING_STATUS.encode(), None)
    report = json.loads(said or b"{}").get("autoscaler_report")
    if report is None:
        return None
    kinds = [*report.get("active_nodes", {}), *report.get("pending_launches", {})]
    return any(not kind.startswith(_READ_ONLY) for kind in kinds)


def wait_for(
    count: int, cpus: int, gpus: int, tell: Callable[[str], None], gpu_kind: str | None = None
) -> None:
    """Wait until the cluster has room for so many processes, if nothing else were on it.

    Asks the autoscaler for nodes. gpu_kind: None = any. tell: takes the same line again and again. Raises
    RunFailed after WAIT_S, or as soon as the autoscaler says that it has no such nodes.
    """
    from ray.util import placement_group, remove_placement_group

    if sum(node.places(cpus, gpus, gpu_kind) for node in nodes()) >= count:
        return
    each = " and ".join(f"{number} {what}" for number, what in ((cpus, "CPU"), (gpus, "GPU")) if number)
    each = f"{each} ({gpu_kind})" if gpu_kind else each
    kind = {f"{KIND}{gpu_kind}": 0.001} if gpu_kind else {}
    asked = placement_group([{"CPU": cpus, **({"GPU": gpus} if gpus else {}), **kind}] * count)
    started, refused = time.monotonic(), None
    try:
        while (there := sum(node.places(cpus, gpus, gpu_kind) for node in nodes())) < count:
            waited = time.monotonic() - started
            lacks = f"room for {there} of {count} processes with {each} each"
            refused = (refused or waited) if _cannot_add(asked.id.hex()) else None
            if refused is not None and waited - refused > REFUSED_S:
                raise RunFailed(
                    f"the Ray cluster has {lacks}, and its autoscaler has no nodes to add for the others;"
                    " see `ray status`, and ask for fewer, or let it add more"
                )
            if waited > WAIT_S:
                raise RunFailed(
                    f"the Ray cluster has {lacks}, and no nodes came within {WAIT_S // 60} minutes; see"
                    " `ray status` for what the autoscaler waits for, then rerun the command to resume"
                )
            tell(f"waits for nodes: {lacks}")
            asked.wait(_LOOK_EVERY_S)
    finally:
        remove_placement_group(asked)


def _cannot_add(placement_group: str) -> bool:
    """Whether the autoscaler says that no nodes of its kinds hold a placement group; False if unknown."""
    state = _state()
    refused = state.infeasible_gang_resource_requests if state is not None else ()
    return any(placement_group in request.details for request in refused)


def _state() -> Any:
    """What Ray's autoscaler of version 2 reports; None if another one runs, or none."""
    import ray
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = ray._private.worker.global_worker.gcs_client
    if not is_autoscaler_v2(fetch_from_server=True, gcs_client=client):
        return None
    return GetClusterStatusReply.FromString(client.get_cluster_status()).autoscaling_state
