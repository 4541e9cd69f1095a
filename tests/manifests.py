"""Kubernetes manifests as tests need them: rendered, a schema without loopholes, Kubernetes' own schemas, and
what no schema can say."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import kubernetes_validate.utils
import yaml

from pipeline import __version__
from pipeline.commands.manifest import RAY_VERSION
from pipeline.config import Config

# Else it reads two megabytes of Kubernetes' definitions again for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)


def objects(text: str) -> list[dict]:
    return list(yaml.load_all(text, yaml.CSafeLoader))


def of_kind(found: list[dict], kind: str) -> dict:
    return next(o for o in found if o["kind"] == kind)


def render(directory: Path) -> list[dict]:
    """What `kubectl kustomize` makes of a directory; kubectl comes with the extra `test`."""
    kubectl = Path(sys.executable).parent / "kubectl"
    done = subprocess.run([kubectl, "kustomize", directory], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


# -- what may be wrong


def closed(schema):
    """The schema with what it leaves open forbidden: a field that it does not name is a typing error."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        schema.setdefault("additionalProperties", False)
    return schema


def misfits(found: list[dict]) -> Iterator[str]:
    """Where objects of Kubernetes itself, and every pod, do not fit its strict schemas."""
    for o in found:
        if not o["kind"].startswith("Ray"):
            yield from _misfit(o)
            continue
        for number, pod in enumerate(pods(o)):
            name = f"{o['metadata']['name']}-{number}"
            yield from _misfit({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})


def _misfit(o: dict) -> Iterator[str]:
    try:
        kubernetes_validate.validate(o, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as e:
        yield f"{o['kind']} {'.'.join(map(str, e.path))}: {e.message}"


def find_faults(found: list[dict], parses: Callable[[str], bool]) -> Iterator[str]:
    """What KubeRay's operator, Kubernetes or Ray would refuse or misunderstand, one line each.

    `parses`: whether a command is one of ours.
    """
    resource = next(o for o in found if o["kind"] in ("RayJob", "RayCluster"))
    spec = resource["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", resource["metadata"]["name"]):
        yield "name"
    if resource["kind"] == "RayJob":
        if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
            yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
        if not parses(spec["entrypoint"]):
            yield "entrypoint"
        yield from faults_of_sizes(
            cluster, Config.model_validate(yaml.safe_load(of_kind(found, "ConfigMap")["data"]["config.yaml"]))
        )
    if cluster["rayVersion"] != RAY_VERSION:
        yield "rayVersion"
    if cluster["headGroupSpec"]["rayStartParams"].get("num-cpus") != "0":
        yield "the head takes work"
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] or not group["maxReplicas"]:
            yield f"{group['groupName']}: replicas"
    scales = any(group["minReplicas"] < group["maxReplicas"] for group in cluster["workerGroupSpecs"])
    if scales and not cluster["enableInTreeAutoscaling"]:
        yield "nothing would scale the groups"
    for pod in pods(resource):
        yield from faults_of_pod(pod, found)


def faults_of_sizes(cluster: dict, config: Config) -> Iterator[str]:
    """Where the cluster has not what the configuration asks for."""
    groups = [(group, group["template"]["spec"]["containers"][0]) for group in cluster["workerGroupSpecs"]]
    gpus = [
        (group, int(container["resources"]["limits"].get("nvidia.com/gpu", 0))) for group, container in groups
    ]
    asked = [
        *((engine.actors, engine.gpus) for engine in config.engines(config.stages).values()),
        *((arm.train.workers, int(arm.train.use_gpu)) for arm in config.arms.values()),
    ]
    for count, each in asked:
        least, most = count if isinstance(count, tuple) else (count, count)
        for bound, wanted in {"replicas": least, "maxReplicas": most}.items():
            if each and sum(group[bound] * (in_pod // each) for group, in_pod in gpus) < wanted:
                yield f"GPUs: {bound} of all groups make fewer than {wanted} times {each}"
    for _, container in groups:
        if "://" not in config.run_dir and not any(
            config.run_dir.startswith(f"{mount['mountPath']}/") for mount in container.get("volumeMounts", ())
        ):
            yield "run_dir: on no volume"


def pods(resource: dict) -> list[dict]:
    """The specifications of all pods of a RayJob or RayCluster."""
    spec = resource["spec"]
    cluster = spec.get("rayClusterSpec", spec)
    templates = [
        cluster["headGroupSpec"]["template"],
        *(group["template"] for group in cluster["workerGroupSpecs"]),
    ]
    return [
        template["spec"]
        for template in [
            *templates,
            *([spec["submitterPodTemplate"]] if "submitterPodTemplate" in spec else []),
        ]
    ]


def faults_of_pod(pod: dict, found: list[dict]) -> Iterator[str]:
    (container,) = pod["containers"]
    name, resources, names = container["name"], container["resources"], {o["metadata"]["name"] for o in found}
    if resources["requests"] != resources["limits"]:
        yield f"{name}: Ray would give out what Kubernetes has not granted"
    if not pod["securityContext"]["runAsNonRoot"] or not pod["securityContext"]["runAsUser"]:
        yield f"{name}: root"
    if container["image"].rpartition(":")[2] not in (f"{__version__}-gpu", f"{__version__}-cpu"):
        yield f"{name}: image"
    if "nvidia.com/gpu" in resources["limits"] and container["image"].endswith("-cpu"):
        yield f"{name}: a GPU for an image without CUDA"
    if {"livenessProbe", "readinessProbe", "startupProbe"} & set(container):
        yield f"{name}: a probe instead of KubeRay's own"
    volumes = {volume["name"]: volume for volume in pod.get("volumes", ())}
    if {mount["name"] for mount in container.get("volumeMounts", ())} != set(volumes):
        yield f"{name}: volumes"
    for volume in volumes.values():
        if "configMap" in volume and volume["configMap"]["name"] not in names:
            yield f"{name}: no such ConfigMap"
    for variable in container.get("env", ()):
        if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]) and "value" in variable:
            yield f"{name}: {variable['name']} written out"
