"""Placement of a run on a Ray cluster: needs of each stage, room on the nodes, files that all nodes see.

Ray places by resources alone and waits forever for resources that no node has. This module reports missing
resources before anything starts.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace

from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.inference.beside import NoRoom, Place, Standing, standing
from pipeline.inference.pool import ModelSpec
from pipeline.runtime import imports
from pipeline.runtime.attempt import attempts_dir
from pipeline.runtime.machine import gpu_build
from pipeline.runtime.nodes import Autoscaler, Node, autoscaler, nodes
from pipeline.runtime.session import LEAST_LOGICAL_CPUS
from pipeline.settings.base import span
from pipeline.settings.shown import first_line
from pipeline.training.config import Train

ENGINES, WORKERS = "engines", "workers"  # kinds of processes
ANSWER_S = 60  # for a node to answer; setbacks starts a process on it
SETUP_S = 600  # Ray's own limit for the packages of a job on a node


@dataclass(frozen=True)
class Need:
    """Processes of one kind that run at the same time, each on one node; of an engine on several nodes, its
    part on each of them."""

    stage: str
    kind: str
    field: str  # the field that sets their number
    least: int
    most: int
    cpus: int
    gpus: int
    gpu_kind: str | None = None  # by Ray's name; None = any
    nodes: int = 1  # of an engine

    @property
    def told(self) -> str:
        return self.kind if self.nodes == 1 else f"parts of {self.kind} on {self.nodes} nodes"

    @property
    def each(self) -> str:
        told = " and ".join(
            f"{count} {what}" for count, what in ((self.cpus, "CPU"), (self.gpus, "GPU")) if count
        )
        return f"{told} ({self.gpu_kind})" if self.gpu_kind else told

    @property
    def section(self) -> str:
        """The section that decides it."""
        return self.field.rpartition(".")[0]

    @property
    def span(self) -> str:
        return f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"

    def places(self, node: Node) -> int:
        """Number of these processes that fit on the node."""
        return node.places(self.cpus, self.gpus, self.gpu_kind)


def needs(config: Config, stages: Iterable[str]) -> list[Need]:
    """Needs of each stage that runs on Ray.

    Stages, passes of different models, methods of different engines, and arms can run in sequence, so no two
    needs have to be met together (see `side_by_side`). A server that judges is asked by the actors of other
    engines and needs no place.
    """
    found = []
    for stage in [stage for stage in ("generate", "evaluate", "rejudge") if stage in stages]:
        for field, engine in config.passes(stage).items():
            least, most = (count * engine.nodes for count in span(engine.actors))
            share = engine.gpus // engine.nodes
            found.append(
                Need(stage, ENGINES, f"{field}.actors", least, most, 1, share, engine.gpu_kind, engine.nodes)
            )
        if stage == "generate" and "train" in stages:
            found += _training(config)
    return found if "generate" in stages or "train" not in stages else [*_training(config), *found]


def _training(config: Config) -> list[Need]:
    alike: dict[tuple[tuple[int, int], bool, str | None], list[str]] = {}
    trained: list[tuple[str, Train]] = [(name, arm.train) for name, arm in config.arms.items()]
    for name, train in [*trained, *(("durability", one.own) for one in config.further.values())]:
        names = alike.setdefault((span(train.workers), train.use_gpu, train.gpu_kind), [])
        if name not in names:
            names.append(name)
    return [
        Need(
            f"train {', '.join(names)}",
            WORKERS,
            "train.workers",
            *workers,
            *((0, 1) if use_gpu else (1, 0)),
            kind,
        )
        for (workers, use_gpu, kind), names in alike.items()
    ]


def check_cluster(
    config: Config,
    stages: Iterable[str],
    run_dir: str,
    read: dict[str, str],
    log: Callable[[str], None] = print,
) -> None:
    """Check that the connected cluster has room for each stage's minimum, and that its nodes see the files.

    log: takes a line for each stage that waits for nodes of the autoscaler. Raises UserError.
    """
    cluster = nodes()
    for notice in check(config, stages, cluster, autoscaler):
        log(notice)
    if len(cluster) > 1:
        check_files(run_dir, read, cluster)


def check(
    config: Config,
    stages: Iterable[str],
    cluster: list[Node],
    scaler: Callable[[], Autoscaler | None] = lambda: None,
) -> list[str]:
    """A notice for each stage that waits for nodes.

    scaler: finds the autoscaler; called if nodes lack. Raises UserError if the cluster, with nothing else on
    it and with all nodes that its autoscaler may add, is too small for the minimum of a stage.
    """
    notices = []
    for need in needs(config, stages):
        room = sum(need.places(node) for node in cluster)
        if room >= need.least:
            continue
        has = ", ".join(map(str, cluster)) or "no node that takes work"
        takes = f"{need.field}: {need.stage} takes {need.least} {need.told} with {need.each} each"
        grows = scaler()
        most = grows.places(need.cpus, need.gpus, need.gpu_kind) if grows else room
        if most < need.least:
            may = f", and for {most:g} with all nodes that its autoscaler may add" if grows else ""
            raise UserError(
                f"{takes}, and the Ray cluster ({has}) has room for {room}{may}; "
                f"{_remedy(need, [*cluster, *(grows.nodes if grows else ())])}"
            )
        notices.append(f"{takes}; the Ray cluster ({has}) has room for {room}, and waits for more nodes")
    return notices


def _remedy(need: Need, cluster: Sequence[Node]) -> str:
    """What to change, if nodes have no room. cluster: nodes that are there or may be added."""
    most = max((int(node.gpus) for node in cluster if node.places(0, 1, need.gpu_kind)), default=0)
    if need.kind == ENGINES and 0 < most < need.gpus:
        gpus = need.gpus * need.nodes
        spans = next(
            count for count in range(need.nodes + 1, gpus + 1) if gpus % count == 0 and gpus // count <= most
        )
        fewer = most * need.nodes
        return (
            f"a node has at most {most}: set {need.section}.num_nodes: {spans}, so that nodes share an"
            f" engine, or {need.section}.num_gpus to at most {fewer}, or add nodes with {need.gpus} GPUs"
        )
    return f"ask for fewer{', set num_gpus or use_gpu for CPUs' if need.gpus else ''}, or add nodes"


def told(config: Config, stages: Iterable[str], cluster: list[Node]) -> list[str]:
    """Lines of `setbacks plan` on a cluster: its nodes, and for each stage the processes per node."""
    lines = [f"{len(cluster)} nodes take work: {', '.join(map(str, cluster))}"]
    for need in needs(config, stages):
        places = {node.address: count for node in cluster if (count := need.places(node))}
        room = sum(places.values())
        where = ", ".join(f"{count} on {address}" for address, count in places.items()) or "nowhere"
        lines.append(
            f"{need.stage}: {need.span} {need.told} with {need.each} each; room for {room} ({where})"
        )
    return lines


# -- models side by side


def this_machine() -> list[Node]:
    """The node of the Ray that a run starts on this machine, by the installed torch. Imports it on a machine
    with GPUs."""
    gpus = 0
    if gpu_build() is not None:
        with imports.quick():
            import torch

        gpus = torch.cuda.device_count()
    return [Node("", "this machine", max(LEAST_LOGICAL_CPUS, os.cpu_count() or 1), gpus)]


def side_by_side(engines: Sequence[Engine], cluster: Iterable[Node]) -> list[list[Place]] | None:
    """Places for the actors of each engine but the first, whose actors are the pool. None = no room.

    There is room if the most actors of all engines fit on the nodes at the same time, with nothing else
    there. An actor that computes with all cores of its node has one for itself, without GPUs if there are
    such. There is none beside others for an engine on several nodes.
    """
    free, used = list(cluster), list[str]()
    wanted = [(engine, number) for number, engine in enumerate(engines) if number]
    if any(engine.nodes > 1 for engine, _ in wanted):
        return None
    places: dict[int, list[Place]] = {number: [] for _, number in wanted}
    for engine, number in sorted(wanted, key=lambda one: (-one[0].gpus, not one[0].fills_node)):
        for _ in range(span(engine.actors)[1]):
            node = _closest(engine, free, used)
            if node is None:
                return None
            cpus = node.cpus if engine.fills_node else 1
            places[number].append(Place(node.address, cpus, engine.gpus, engine.gpu_kind))
            used.append(node.address)
            free[free.index(node)] = replace(node, cpus=node.cpus - cpus, gpus=node.gpus - engine.gpus)
    pool = engines[0]
    room = sum(_room(pool, node, used) for node in free)
    return [*places.values()] if room >= span(pool.actors)[1] * pool.nodes else None


def standing_beside(config: Config, stage: str, cluster: Iterable[Node]) -> set[str]:
    """The fields of the engines that a run of a stage would start beside the pool of others."""
    found, turns, cluster = set[str](), set[str](), list(cluster)
    for group in config.asked_together(stage):
        _, *others = group
        (found if side_by_side([*group.values()], cluster) else turns).update(others)
    return found - turns


def _closest(engine: Engine, free: list[Node], used: list[str]) -> Node | None:
    """The node with the least room for one more actor of an engine, so that larger ones keep theirs."""
    fitting = [node for node in free if _room(engine, node, used)]
    return min(fitting, key=lambda node: (node.gpus, node.cpus), default=None)


def _room(engine: Engine, node: Node, used: list[str]) -> int:
    """How many more actors of an engine a node takes. used: the addresses of nodes with actors."""
    if engine.fills_node:
        return int(node.cpus >= 1 and node.address not in used)
    return Need("", ENGINES, "", 1, 1, 1, engine.gpus // engine.nodes, engine.gpu_kind).places(node)


@contextmanager
def beside(specs: Sequence[ModelSpec]) -> Iterator[dict[ModelSpec, Standing]]:
    """Engines of all these models but the first, beside whose pool they stand; none if there is no room.

    The cluster must be connected.
    """
    found = side_by_side([spec.engine for spec in specs], nodes())
    with ExitStack() as stack:
        engines: dict[ModelSpec, Standing] = {}
        if found is not None:
            with suppress(NoRoom):  # somebody else uses it
                engines = stack.enter_context(standing(dict(zip(specs[1:], found, strict=True))))
        yield engines


# -- files


def check_files(run_dir: str, read: dict[str, str], cluster: list[Node]) -> None:
    """Check that every node can write to this attempt's run directory and has the local directories to read.

    read: field → path, without object stores and hubs. Raises UserError, naming node and path.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=0)(_missing)
    answer_s, installs = ANSWER_S + _setup_s(), bool(_setup_s())
    asked = {
        node: (
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
                run_dir, read
            )
        )
        for node in cluster
    }
    for node, answer in asked.items():
        try:
            missing = ray.get(answer, timeout=answer_s)
        except ray.exceptions.RuntimeEnvSetupError as e:
            raise UserError(
                f"node {node.address} cannot set up the job's runtime environment ({first_line(e)}); see"
                " runtime_env_setup-*.log on it, or use an image with the packages"
            ) from None
        except ray.exceptions.RayTaskError as e:
            raise UserError(
                f"node {node.address} cannot run setbacks ({type(e.cause).__name__}: {e.cause}); "
                "install the same version on it, or submit the code with --working-dir"
            ) from None
        # the node is gone or too busy to answer: Ray continues without it
        except ray.exceptions.RayError as e:
            if isinstance(e, ray.exceptions.GetTimeoutError):
                raise UserError(
                    f"node {node.address} did not answer within {answer_s} s"
                    f"{', in which it was to install packages' if installs else ''}; see its log, or take it"
                    " out of the cluster"
                ) from None
            continue
        for field, (path, why) in missing.items():
            raise UserError(
                f"{field} = {path}: {why} on node {node.address}; "
                "use a path that every node sees (NFS, an object store), or copy it to the node"
            )


def _setup_s() -> int:
    """Seconds that a node may take to install the job's packages before it answers; 0 if there are none."""
    import ray

    environment = ray.get_runtime_context().runtime_env
    if not {"pip", "uv", "conda"} & set(environment):
        return 0
    return int((environment.get("config") or {}).get("setup_timeout_seconds", SETUP_S))


def _missing(run_dir: str, read: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Runs on a node. Returns field → path and what is wrong with it."""
    import os
    import secrets

    for field, path in read.items():
        if not os.path.isdir(path):
            return {field: (path, "does not exist")}
    if not storage.sizes(attempts_dir(run_dir)):
        return {"run_dir": (run_dir, "is another directory, or does not exist,")}
    probe = storage.join(run_dir, ".state", f"written-{secrets.token_hex(4)}")
    try:
        storage.write_text(probe, "")
        storage.remove(probe)
    except OSError as e:
        return {"run_dir": (run_dir, f"cannot be written ({e.strerror or e})")}
    return {}
