"""`setbacks manifest --slurm`: a run as a batch script for Slurm, sized from the configuration.

The script starts a Ray node on every node of the job's allocation, then the run on the first. Its own part is
`slurm.sh`. See cluster/README.md for its use. Imports neither Ray nor an engine.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.commands.manifest import (
    DATA_CPUS,
    DEADLINE_S,
    GPU_CPUS,
    as_yaml,
    driver_gib,
    gpu_node_gib,
    job_name,
    worker_groups,
)
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.placement import Need, needs

NODE_GPUS = 8  # of a node of the cluster, at most
WARN_S = 180  # before the time limit
_BODY = Path(__file__).with_name("slurm.sh")


@dataclass(frozen=True)
class Nodes:
    """The allocation: so many nodes, all alike."""

    count: int
    cpus: int
    memory_gib: int
    gpus: int
    gpu_kind: str | None = None  # by Ray's name; None = any

    @property
    def slurm_kind(self) -> str | None:
        """The kind of GPU as most sites name it to Slurm: in lower case."""
        return self.gpu_kind and self.gpu_kind.lower()

    @property
    def directives(self) -> list[str]:
        kind = f"{self.slurm_kind}:" if self.slurm_kind else ""
        return [
            f"--nodes={self.count}",
            "--ntasks-per-node=1",
            *([f"--gpus-per-node={kind}{self.gpus}"] if self.gpus else []),
            f"--cpus-per-task={self.cpus}",
            f"--mem={self.memory_gib}G",
        ]


def script(config: Config) -> str:
    """The batch script.

    Raises UserError for an engine that is larger than a node, and for several kinds of GPUs.
    """
    name, nodes = job_name(config.run_dir), allocation(config)
    directives = [
        f"--job-name={name}",
        *nodes.directives,
        f"--time={DEADLINE_S // 60}",
        f"--signal=B:USR1@{WARN_S}",
        "--requeue",
        "--open-mode=append",
        f"--output={name}-%j.log",
    ]
    written = as_yaml(config.model_dump(mode="json", exclude_unset=True))
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            *(f"#SBATCH {directive}" for directive in directives),
            f"# Written by `setbacks manifest --slurm`. Every node has to see {config.run_dir}.",
            "# Submit it with `sbatch` from a shell in which `setbacks` runs: the nodes get its environment.",
            "# It is started again after its time limit (minutes), and after the loss of a node.",
            "# If nodes have several networks: export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0",
            *_named(nodes),
            "",
            "configuration() {",
            "cat <<'CONFIGURATION'",
            written.rstrip("\n"),
            "CONFIGURATION",
            "}",
            "",
            _BODY.read_text(encoding="utf-8"),
        ]
    )


def allocation(config: Config) -> Nodes:
    """Nodes for the most processes of every stage. The driver and Ray's head are on the first of them.

    A job has its nodes from the beginning to the end, so ranges of engines and workers count as their most.
    """
    wanted = needs(config, config.stages)
    on_gpus = [need for need in wanted if need.gpus]
    if not on_gpus:
        cpus = max([DATA_CPUS, *(need.most * need.cpus + 1 for need in wanted)])
        return Nodes(1, cpus, sum(group.most * group.memory_gib for group in worker_groups(config)), 0)
    for need in on_gpus:
        if need.gpus > NODE_GPUS:
            raise UserError(
                f"{need.field}: an engine takes {need.gpus} GPUs of a node, which has {NODE_GPUS}; set"
                f" {need.section}.num_gpus lower, or {need.section}.num_nodes higher"
            )
    kinds = {need.gpu_kind: need for need in on_gpus if need.gpu_kind}
    if len(kinds) > 1:
        asked = ", ".join(f"accelerator_type = {kind} ({need.stage})" for kind, need in kinds.items())
        raise UserError(f"{asked}: the nodes of a Slurm job are all alike; set one kind")
    gpus = min(NODE_GPUS, max(need.most * need.gpus for need in on_gpus))
    gpus = max(gpus, max(need.gpus for need in on_gpus))
    count = max(_nodes(need, gpus) for need in on_gpus)
    memory_gib = gpu_node_gib(config, gpus) + driver_gib(config)
    return Nodes(count, GPU_CPUS * gpus + DATA_CPUS, memory_gib, gpus, next(iter(kinds), None))


def _named(nodes: Nodes) -> list[str]:
    """A line about the kind of GPU, whose name a site chooses."""
    if not nodes.gpu_kind:
        return []
    return [
        f"# Slurm's name of {nodes.gpu_kind} is taken for {nodes.slurm_kind}: compare it with `sinfo -o %G`."
    ]


def _nodes(need: Need, gpus: int) -> int:
    return math.ceil(need.most / (gpus // need.gpus))
