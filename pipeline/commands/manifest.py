"""`setbacks manifest`: a run as Kubernetes objects, a RayJob for KubeRay sized from the configuration.

See cluster/README.md for its use.

The configuration determines the number of pods; the constants below determine their size. The constants are
assumptions: read and edit a manifest before you apply it. The manifest does not depend on this machine, so
the same configuration gives the same manifest everywhere. Imports neither Ray nor an engine.
"""

import hashlib
import math
import posixpath
import re
from dataclasses import dataclass

import yaml

from pipeline import __version__, placement
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.placement import Need
from pipeline.settings.base import PathKind, Source
from pipeline.settings.walk import paths, sections

RAY_VERSION = "2.60.0"  # of the image: cluster/Dockerfile
MOUNT = "/mnt/setbacks"  # mount point of the shared volume in every pod
CLAIM = SECRET = "setbacks"  # name of the volume's claim and of the secret with tokens and keys
CONFIG_FILE = "/etc/setbacks/config.yaml"

HEAD_CPUS, HEAD_GIB = 2, 8
DATA_CPUS, DRIVER_GIB = 4, 8  # the driver mixes, tokenizes and reports; its libraries alone need 2 GiB
CPU_PROCESS_GIB = 3  # a toy model's engine without KV cache, or its trainer
# per GPU: 16 GiB of weights (8B parameters, bfloat16), doubled during loading; 16 GiB for Ray and Python
GPU_CPUS, GPU_GIB = 8, 48

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

    @property
    def amounts(self) -> dict[str, str]:
        """Resources of a container and its Ray node: KubeRay starts each node with the container's limits."""
        gpus = {"nvidia.com/gpu": str(self.gpus)} if self.gpus else {}
        return {"cpu": str(self.cpus), "memory": f"{self.memory_gib}Gi", **gpus}

    @property
    def start(self) -> dict[str, str]:
        """Parameters of `ray start`: without GPUs, Ray is told so, else it counts those of the node."""
        return {} if self.gpus else {"num-gpus": "0"}

    def __str__(self) -> str:
        count = f"{self.least}" if self.least == self.most else f"{self.least} to {self.most}"
        gpus = f", {self.gpus} GPU" if self.gpus else ""
        return f"{self.name:<10}  {count} × {self.cpus} CPU, {self.memory_gib} GiB{gpus}: {self.purpose}"


HEAD = Pods("head", "Ray's own services, no work", 1, 1, HEAD_CPUS, HEAD_GIB)


def manifest(config: Config, image: str | None = None, *, interactive: bool = False) -> str:
    """The YAML of a RayJob that runs the configuration, and its ConfigMap; if `interactive`, of a RayCluster.

    image: of every pod; by default `setbacks:VERSION-gpu` or `-cpu`, as the configuration needs.
    Raises UserError for a path that pods cannot see, and for an image that is not pinned.
    """
    _check_paths(config)
    groups = worker_groups(config)
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
    comment = [f"Written by `setbacks manifest`, for run_dir {config.run_dir}.", *map(str, (HEAD, *groups))]
    return "".join(f"# {line}\n" for line in comment) + "---\n".join(as_yaml(o) for o in objects)


def job_name(run_dir: str) -> str:
    """A valid Kubernetes name for the run's objects: /mnt/setbacks/runs/mine_7b → setbacks-mine-7b."""
    place = run_dir.rpartition("://")[2].removeprefix(MOUNT).strip("/").removeprefix("runs/")
    name = "-".join(["setbacks", *re.findall("[a-z0-9]+", place.lower())])
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.blake2b(run_dir.encode(), digest_size=4).hexdigest()}"


# -- how many pods, and how large


def worker_groups(config: Config) -> list[Pods]:
    """The groups besides the head: CPU pods (driver, CPU processes), GPU pods of engines and trainers."""
    needs = placement.needs(config, config.stages)
    engines = [need for need in needs if need.gpus and need.kind == placement.ENGINES]
    trainers = [need for need in needs if need.gpus and need.kind == placement.WORKERS]
    engine_gpus = max((need.gpus for need in engines), default=0)
    cache_gib = max((engine.cache_gib for engine in config.engines(config.stages).values()), default=0)
    groups = [_data([need for need in needs if not need.gpus], CPU_PROCESS_GIB + cache_gib)]
    training = _training(trainers, engine_gpus) if trainers else None
    if engines:
        # a pod holds one of the largest engines, or several smaller ones, such as a judge's
        least, most = (
            max(math.ceil(count / (engine_gpus // need.gpus)) for count, need in counts)
            for counts in (
                [(need.least, need) for need in engines],
                [(need.most, need) for need in engines],
            )
        )
        purpose = "an engine each"
        if training and training.gpus == engine_gpus:
            least = max(0, least - training.least)
            purpose += ", for those that find no place in the training group"
        groups.append(
            Pods(
                "generation", purpose, least, most, GPU_CPUS * engine_gpus, GPU_GIB * engine_gpus, engine_gpus
            )
        )
    return [*groups, training] if training else groups


def _data(processes: list[Need], process_gib: int) -> Pods:
    """Ray may place one process per spare CPU on the driver's pod, so the pod has memory for all of them."""
    least, most = _span(processes)
    beside = min(DATA_CPUS - 1, most)
    purpose = "the driver, which mixes, packs and reports" + ("; engines and trainers" if beside else "")
    fewest, largest = (max(1, math.ceil(count / max(1, beside))) for count in (least, most))
    return Pods("data", purpose, fewest, largest, DATA_CPUS, DRIVER_GIB + beside * process_gib)


def _training(workers: list[Need], engine_gpus: int) -> Pods:
    """Pods of an engine's size if the workers fill such pods, else pods of one GPU.

    Ray places by resources, not by group. An engine can therefore use training pods of its size while no
    training runs, and one set of GPUs serves both.
    """
    least, most = _span(workers)
    fits = engine_gpus and least % engine_gpus == most % engine_gpus == 0
    gpus = engine_gpus if fits else 1
    purpose = f"{gpus} worker{'s' * (gpus > 1)} each" + ("; an engine each at other times" if fits else "")
    return Pods("training", purpose, least // gpus, most // gpus, GPU_CPUS * gpus, GPU_GIB * gpus, gpus)


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
    pod = _pod(container, image, group.amounts)
    pod["containers"][0] |= {
        "env": _environment(environment | ({} if group.gpus else NO_GPU)),
        "envFrom": [{"secretRef": {"name": SECRET, "optional": True}}],
        "volumeMounts": [{"name": name, "mountPath": path} for name, (path, _) in volumes.items()],
    }
    pod["volumes"] = [{"name": name, **source} for name, (_, source) in volumes.items()]
    if group.gpus:
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
