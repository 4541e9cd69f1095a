"""`setbacks manifest`: a run as Kubernetes objects, a RayJob for KubeRay sized from the configuration.

See cluster/README.md for its use.

The configuration determines the number of pods; their size follows from the constants below, and from the
number of parameters that a model's name says. These are assumptions: read and edit a manifest before you
apply it. The manifest does not depend on this machine, so the same configuration gives the same manifest
everywhere. Imports neither Ray nor an engine.
"""

import hashlib
import json
import math
import posixpath
import re
from dataclasses import dataclass

import yaml

from pipeline import __version__, memory, placement
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.placement import Need
from pipeline.settings.base import Model, PathKind, Source
from pipeline.settings.walk import paths, sections

RAY_VERSION = "2.60.0"  # of the image: cluster/Dockerfile
MOUNT = "/mnt/setbacks"  # mount point of the shared volume in every pod
CLAIM = SECRET = "setbacks"  # name of the volume's claim and of the secret with tokens and keys
CONFIG_FILE = "/etc/setbacks/config.yaml"

HEAD_CPUS, HEAD_GIB = 2, 8
DATA_CPUS, DRIVER_GIB = 4, 8  # the driver mixes, tokenizes and reports; its libraries alone need 2 GiB
PROCESS_GIB = 3  # of an engine or a trainer, besides weights and cache
GPU_CPUS = 8  # per GPU
GPU_POD_GIB = 16  # of a pod with GPUs, for Ray's object store and its own processes
STEP_GIB = 8  # memory of pods is a multiple of this
ASSUMED_BILLIONS = 8  # of parameters, if a model's name does not say them
NAMES_ROUND = 1.1  # Qwen2.5-7B has 7.6 billion
MERGING = 1.2  # times the weights: the driver holds the base model while it folds the adapter in

IDLE_S = 300  # pods above a group's minimum are removed after this long without work
TTL_S = 60  # the cluster is deleted this long after the job; the volume keeps all files
RETRIES = 2  # each on a new cluster, resuming from committed rows
DEADLINE_S = 3 * 24 * 3600  # longer jobs are killed
STOP_S = 15  # from `ray job stop` to the kill; setbacks needs up to 8 s to stop cleanly, Ray's default is 3 s
USER, GROUP = 1000, 100  # of Ray's images
# On a node with GPUs, NVIDIA's runtime shows all of them to a container that asks for none.
NO_GPU = {"NVIDIA_VISIBLE_DEVICES": "void"}
LONGEST_NAME = 40  # KubeRay refuses a RayJob with more than 47 characters

Volumes = dict[str, tuple[str, dict]]  # name → mount path and source


@dataclass(frozen=True)
class Pods:
    """A group of identical pods. If `least` and `most` differ, Ray's autoscaler chooses their number."""

    name: str
    purpose: str
    least: int
    most: int
    cpus: int
    memory_gib: int
    gpus: int = 0
    gpu_kind: str | None = None  # by Ray's name; None = any

    @property
    def amounts(self) -> dict[str, str]:
        """Resources of a container and its Ray node: KubeRay starts each node with the container's limits."""
        gpus = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        return {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi", **gpus}

    @property
    def start(self) -> dict[str, str]:
        """Parameters of `ray start`: `num-gpus` is 0 without GPUs, since Ray counts the node's otherwise.

        A node finds the kind of its GPUs itself, but the autoscaler has to know it before. KubeRay's format.
        """
        if not self.gpus:
            return {"num-gpus": "0"}
        kind = json.dumps({f"accelerator_type:{self.gpu_kind}": 1})
        return {"resources": json.dumps(kind)} if self.gpu_kind else {}

    def __str__(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        gpus = f", {self.gpus} {self.gpu_kind + ' ' if self.gpu_kind else ''}GPU" if self.gpus else ""
        return f"{self.name:<10}  {count} × {self.cpus} CPU, {self.memory_gib} GiB{gpus}: {self.purpose}"


HEAD = Pods("head", "Ray's own services, no work", 1, 1, HEAD_CPUS, HEAD_GIB)


def manifest(
    config: Config, image: str | None = None, *, interactive: bool = False, gpus_per_node: int | None = None
) -> str:
    """The YAML of a RayJob that runs the configuration, and its ConfigMap; if `interactive`, of a RayCluster.

    image:         of every pod; by default `setbacks:VERSION-gpu` or `-cpu`, as the configuration needs.
    gpus_per_node: of pods for training, which are whole nodes then; None = see `_training`.

    Raises UserError for a path that pods cannot see, for an image that is not pinned, and for workers that
    fill no whole nodes.
    """
    _check_paths(config)
    groups = worker_groups(config, gpus_per_node)
    image = image or f"setbacks:{__version__}-{'gpu' if any(group.gpus for group in groups) else 'cpu'}"
    _check_image(image)
    name = job_name(config.run_dir)
    volumes = {
        "shared": (
            MOUNT,
            {"persistentVolumeClaim": {"claimName": CLAIM}} if _shares_volume(config) else {"emptyDir": {}},
        )
    }
    if interactive:
        objects = [_object("ray.io/v1", "RayCluster", name, spec=_cluster(groups, image, volumes))]
    else:
        # defaults come from the code in the image
        written = config.model_dump(mode="json", exclude_unset=True)
        settings = _object("v1", "ConfigMap", name, data={posixpath.basename(CONFIG_FILE): as_yaml(written)})
        volumes["config"] = (posixpath.dirname(CONFIG_FILE), {"configMap": {"name": name}})
        objects = [settings, _object("ray.io/v1", "RayJob", name, spec=_job(groups, image, volumes))]
    comment = [
        f"Written by `setbacks manifest`, for run_dir {config.run_dir}.",
        *map(str, (HEAD, *groups)),
        *_assumed(config),
    ]
    return "".join(f"# {line}\n" for line in comment) + "---\n".join(as_yaml(o) for o in objects)


def job_name(run_dir: str) -> str:
    """A valid Kubernetes name for the run's objects: /mnt/setbacks/runs/mine_7b → setbacks-mine-7b."""
    place = run_dir.rpartition("://")[2].removeprefix(MOUNT).strip("/").removeprefix("runs/")
    name = "-".join(["setbacks", *re.findall("[a-z0-9]+", place.lower())])
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.blake2b(run_dir.encode(), digest_size=4).hexdigest()}"


# -- how many pods, and how large


def worker_groups(config: Config, gpus_per_node: int | None = None) -> list[Pods]:
    """The groups besides the head: CPU pods (driver, CPU processes), GPU pods of engines and trainers.

    gpus_per_node: of pods for training, which are whole nodes then. Raises UserError if workers fill none.
    """
    needs = placement.needs(config, config.stages)
    engines = [need for need in needs if need.gpus and need.kind == placement.ENGINES]
    trainers = [need for need in needs if need.gpus and need.kind == placement.WORKERS]
    cache_gib = max((engine.cache_gib for engine in config.engines(config.stages).values()), default=0)
    on_cpus = [need for need in needs if not need.gpus]
    groups = [_data(on_cpus, driver_gib(config), _cpu_process_gib(config, cache_gib))]
    training = [_training(config, trainers, engines, gpus_per_node)] if trainers else []
    for kind in dict.fromkeys(need.gpu_kind for need in engines):
        alike = [need for need in engines if need.gpu_kind == kind]
        pods = _generation(config, alike, [one for one in training if one.gpu_kind == kind])
        if pods.most:
            groups.append(pods)
    return [*groups, *training]


def _generation(config: Config, engines: list[Need], training: list[Pods]) -> Pods:
    """Pods of engines on one kind of GPU. training: pods of trainers on the same kind, if any.

    A pod holds one of the largest engines, or several smaller ones, such as a judge's.
    """
    gpus, kind = max(need.gpus for need in engines), engines[0].gpu_kind
    least, most = (
        max(math.ceil(count / (gpus // need.gpus)) for count, need in counts)
        for counts in (
            [(need.least, need) for need in engines],
            [(need.most, need) for need in engines],
        )
    )
    purpose = "an engine each" if all(need.nodes == 1 for need in engines) else "an engine's part each"
    for pods in training:
        if pods.gpus % gpus == 0:
            # Not more: the autoscaler would start pods for trainers while engines still let go of their GPUs.
            held = pods.least * (pods.gpus // gpus)
            least, most = max(0, least - held), max(0, most - held)
            purpose += ", for those that find no place in the training group"
    name = "generation" + (f"-{_label(kind)}" if kind else "")
    return Pods(name, purpose, least, most, GPU_CPUS * gpus, _engine_gib(config, gpus), gpus, kind)


def _data(processes: list[Need], driver_gib: int, process_gib: int) -> Pods:
    """Ray may place one process per spare CPU on the driver's pod, so the pod has memory for all of them."""
    least, most = _span(processes)
    beside = min(DATA_CPUS - 1, most)
    purpose = "the driver, which mixes, packs and reports" + ("; engines and trainers" if beside else "")
    fewest, largest = (max(1, math.ceil(count / max(1, beside))) for count in (least, most))
    return Pods("data", purpose, fewest, largest, DATA_CPUS, driver_gib + beside * process_gib)


def _training(config: Config, workers: list[Need], engines: list[Need], gpus_per_node: int | None) -> Pods:
    """Pods of whole nodes if their GPUs are given, else of an engine's size if the workers fill such pods,
    else of one GPU.

    Ray places by resources, not by group. An engine can therefore use training pods of its size while no
    training runs, and one set of GPUs serves both. Workers in one pod reach each other over NVLink, and
    those of different pods over the network, even on the same node.
    """
    least, most = _span(workers)
    kind = workers[0].gpu_kind
    engine_gpus = max((need.gpus for need in engines if need.gpu_kind == kind), default=0)
    if gpus_per_node and (least % gpus_per_node or most % gpus_per_node):
        told = f"{least}" if least == most else f"{least} to {most}"
        raise UserError(
            f"--gpus-per-node {gpus_per_node}: {workers[0].field} = {told} does not fill whole nodes; set a"
            f" multiple of {gpus_per_node}, or leave it out for pods of single GPUs"
        )
    fits = engine_gpus and least % engine_gpus == most % engine_gpus == 0
    gpus = gpus_per_node or (engine_gpus if fits else 1)
    shared = engine_gpus and gpus % engine_gpus == 0
    purpose = f"{gpus} worker{'s' * (gpus > 1)} each"
    if shared:
        each = gpus // engine_gpus
        purpose += f"; {'an engine' if each == 1 else f'{each} engines'} each at other times"
    memory_gib = max(_training_gib(config, gpus), _engine_gib(config, gpus) if shared else 0)
    return Pods("training", purpose, least // gpus, most // gpus, GPU_CPUS * gpus, memory_gib, gpus, kind)


# -- host memory


def driver_gib(config: Config) -> int:
    """Of the pod with the driver, which holds the base model while it merges adapters into it."""
    merges = "train" in config.stages and any(arm.train.merge for arm in config.arms.values())
    return DRIVER_GIB + (math.ceil(MERGING * weights_gib(config.model)) if merges else 0)


def weights_gib(model: Model) -> float:
    """Of a model's weights, by the number of parameters that its name says; the toy's are none."""
    if model.path == "toy":
        return 0
    billions = memory.parameters_by_name(model.path) or ASSUMED_BILLIONS
    return NAMES_ROUND * billions * 1e9 * memory.BYTES.get(model.dtype, 2) / memory.GIB


def gpu_node_gib(config: Config, gpus: int) -> int:
    """Of a node that holds trainers, or engines, on all of its GPUs."""
    trains = "train" in config.stages and any(arm.train.use_gpu for arm in config.arms.values())
    return max(_engine_gib(config, gpus), _training_gib(config, gpus) if trains else 0)


def _engine_gib(config: Config, gpus: int) -> int:
    """Of a pod with so many GPUs for engines, whose processes read the weights through one page cache."""
    sizes = [
        weights_gib(one.model)
        for one in config.used(config.stages)
        if one.engine.reads_model and one.engine.gpus
    ]
    return _rounded(GPU_POD_GIB + PROCESS_GIB * gpus + max(sizes, default=0))


def _training_gib(config: Config, gpus: int) -> int:
    """Of a pod with so many workers. Each loads the whole model into its memory, and then onto its GPU.

    Workers of a sharded model read their parts onto their GPUs.
    """
    trained = [*(arm.train for arm in config.arms.values()), *(one.own for one in config.further.values())]
    sharded = all(train.fsdp for train in trained)
    copies = 1 if sharded else gpus + 1  # the files once, in the page cache
    return _rounded(GPU_POD_GIB + PROCESS_GIB * gpus + copies * weights_gib(config.model))


def _cpu_process_gib(config: Config, cache_gib: int) -> int:
    """Of an engine or a trainer on CPUs."""
    used = _models(config, on_gpus=False)
    named = [weights_gib(model) for model in used if memory.parameters_by_name(model.path)]
    return PROCESS_GIB + cache_gib + math.ceil(max(named, default=0))


def _models(config: Config, *, on_gpus: bool) -> list[Model]:
    """The models that engines read, on GPUs or on CPUs."""
    used = (one for one in config.used(config.stages) if one.engine.reads_model)
    return [one.model for one in used if bool(one.engine.gpus) is on_gpus]


def _rounded(gib: float) -> int:
    return math.ceil(gib / STEP_GIB) * STEP_GIB


def _assumed(config: Config) -> list[str]:
    """A line for each model on GPUs whose name does not say its size."""
    used = _models(config, on_gpus=True)
    if any(arm.train.use_gpu for arm in config.arms.values()):
        used.append(config.model)
    return [
        f"Assumed: {path} has {ASSUMED_BILLIONS} billion parameters, which its name does not say. If it has"
        " more, raise the memory of pods with GPUs."
        for path in dict.fromkeys(model.path for model in used)
        if path != "toy" and memory.parameters_by_name(path) is None
    ]


def _label(kind: str) -> str:
    """A kind of GPU as a part of a group's name."""
    return "-".join(re.findall("[a-z0-9]+", kind.lower()))


def _span(needs: list[Need]) -> tuple[int, int]:
    """The largest minimum and maximum of the needs: stages and arms run in sequence."""
    return max((need.least for need in needs), default=0), max((need.most for need in needs), default=0)


# -- what pods would not see


def _check_paths(config: Config) -> None:
    for field, path in _paths(config).items():
        elsewhere = not storage.is_local(path) or path.startswith(("hub:", "toy:"))
        if not elsewhere and not posixpath.normpath(path).startswith(f"{MOUNT}/"):
            raise UserError(
                f"{field} = {path}: pods share only the volume at {MOUNT}; "
                f"use a path on the volume, such as {field}={MOUNT}/"
                f"{'runs/' if field == 'run_dir' else ''}{posixpath.basename(path.rstrip('/'))}"
            )


def _shares_volume(config: Config) -> bool:
    """Whether any path is on the shared volume.

    If all paths are on object stores and hubs, pods have no volume and cache locally.
    """
    return any(path.startswith(f"{MOUNT}/") for path in _paths(config).values())


def _paths(config: Config) -> dict[str, str]:
    """File-system paths of the configuration, by field."""
    models = {f"{field}.path": model.path for field, model in config.read_models().items()}
    sources = {f"{field}.path": source.path for field, source in sections(config, Source).items()}
    return {
        "run_dir": config.run_dir,
        **{field: path for field, path in models.items() if path.startswith((".", "/", "~"))},
        **sources,
        **paths(config, PathKind.PROMPTS),
        **{field: path for field, path in paths(config, PathKind.DATA).items() if path != "toy"},
        **paths(config, PathKind.ADAPTER),
    }


def _check_image(image: str) -> None:
    place, slash, last = image.rpartition("/")
    name, _, tag = last.partition(":")
    if not tag or tag == "latest":
        pinned = f"{place}{slash}{name}:{__version__}-gpu"
        raise UserError(f"--image {image}: is not pinned and can change; add a tag, such as {pinned}")


# -- the objects


def _object(version: str, kind: str, name: str, **content) -> dict:
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "setbacks"}},
        **content,
    }


def _job(groups: list[Pods], image: str, volumes: Volumes) -> dict:
    submitter = _pod("ray-job-submitter", image, {"cpu": "500m", "memory": "1Gi"})
    submitter["containers"][0]["env"] = _environment(NO_GPU)
    return {
        "entrypoint": f"setbacks run {CONFIG_FILE}",
        "entrypointNumCpus": 1,  # places the driver on a worker, because the head offers no CPU
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": TTL_S,
        "backoffLimit": RETRIES,
        "activeDeadlineSeconds": DEADLINE_S,
        "submitterPodTemplate": {"spec": {"restartPolicy": "Never", **submitter}},
        "rayClusterSpec": _cluster(groups, image, volumes),
    }


def _cluster(groups: list[Pods], image: str, volumes: Volumes) -> dict:
    autoscaler = {
        "idleTimeoutSeconds": IDLE_S,
        "resources": _resources({"cpu": "500m", "memory": "512Mi"}),
        "securityContext": CONTAINER_SECURITY,
    }
    scales = any(group.least < group.most for group in groups)
    return {
        "rayVersion": RAY_VERSION,
        # else anyone who reaches the dashboard can run code; KubeRay creates and distributes the token
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": scales,
        **({"autoscalerOptions": autoscaler} if scales else {}),
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", **HEAD.start},
            "template": {"spec": _ray_pod("ray-head", image, HEAD, volumes)},
        },
        "workerGroupSpecs": [
            {
                "groupName": group.name,
                "replicas": group.least,
                "minReplicas": group.least,
                "maxReplicas": group.most,
                "rayStartParams": group.start,
                "template": {
                    "spec": {
                        "automountServiceAccountToken": False,
                        **_ray_pod("ray-worker", image, group, volumes),
                    }
                },
            }
            for group in groups
        ],
    }


def _ray_pod(container: str, image: str, group: Pods, volumes: Volumes) -> dict:
    """A pod of the cluster. It has no probes, so KubeRay adds those that fit the Ray version."""
    environment = {"HF_HOME": f"{MOUNT}/huggingface", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)}
    if group.gpus:
        # Else an engine compiles with as many processes as the node has CPUs, up to 32, for each of its GPUs.
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(GPU_CPUS)
    pod = _pod(container, image, group.amounts)
    pod["containers"][0] |= {
        "env": _environment(environment | ({} if group.gpus else NO_GPU)),
        "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
    }
    pod["volumes"] = [{"name": name, **source} for name, (_, source) in volumes.items()]
    if group.gpus:
        if group.gpu_kind:  # a label for nodes, of Ray's naming: see cluster/README.md
            pod["nodeSelector"] = {"ray.io/accelerator-type": group.gpu_kind}
        pod["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def _pod(container: str, image: str, amounts: dict[str, str]) -> dict:
    return {
        "securityContext": POD_SECURITY,
        "containers": [
            {
                "name": container,
                "image": image,
                "resources": _resources(amounts),
                "securityContext": CONTAINER_SECURITY,
            }
        ],
    }


def _environment(variables: dict[str, str]) -> list[dict]:
    return [{"name": name, "value": value} for name, value in variables.items()]


def _resources(amounts: dict[str, str]) -> dict:
    return {"requests": amounts, "limits": amounts}


CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": GROUP,
    "fsGroup": GROUP,
    "fsGroupChangePolicy": "OnRootMismatch",  # avoids a scan of the whole volume at every start
    "seccompProfile": {"type": "RuntimeDefault"},
}


# -- as text


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text literally, and repeats values instead of using anchors."""

    def ignore_aliases(self, _data) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def as_yaml(value: dict) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=140)
