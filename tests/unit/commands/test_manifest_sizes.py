"""Memory of pods follows from the model, training pods can be whole nodes, and pods ask for a kind of GPU."""

import json

import pytest

from pipeline.commands import manifest, slurm
from pipeline.errors import UserError
from tests import manifests, scripted

GPU = {"num_gpus": 1, "actors": 8}
TRAIN = {"workers": 8, "use_gpu": True, "batch_size": 16}


def config(path: str = "Qwen/Qwen2.5-7B-Instruct", **changes):
    settings = {"model": {"path": path}, "engine": GPU, "train": TRAIN, **changes}
    return scripted.config(f"{manifest.MOUNT}/runs/mine", **settings)


def groups(made, gpus_per_node: int | None = None) -> dict[str, manifest.Pods]:
    return {group.name: group for group in manifest.worker_groups(made, gpus_per_node)}


def gib(billions: float) -> float:
    return 1.1 * billions * 1e9 * 2 / 2**30


def test_a_trainer_loads_the_model_beside_the_files_in_the_page_cache():
    assert groups(config())["training"].memory_gib == 48 >= 16 + 3 + 2 * gib(7)
    assert groups(config("org/model-32B"))["training"].memory_gib == 152 >= 16 + 3 + 2 * gib(32)
    assert (
        groups(config("org/model-32B", model={"path": "org/model-32B", "dtype": "float32"}))[
            "training"
        ].memory_gib
        == 288
    )


def test_an_engine_reads_the_files_and_keeps_none():
    made = config("meta-llama/Meta-Llama-3-70B-Instruct", engine={"num_gpus": 4, "actors": 2}, arms={})
    pod = groups(made)["generation"]
    assert (pod.gpus, pod.memory_gib) == (4, 176) and pod.memory_gib >= 16 + 4 * 3 + gib(70)


def test_a_name_without_a_size_is_assumed_to_be_of_8b_and_said_to_be():
    text = manifest.manifest(config(f"{manifest.MOUNT}/models/mine"))
    assert groups(config(f"{manifest.MOUNT}/models/mine"))["training"].memory_gib == 56
    [line] = [line for line in text.splitlines() if line.startswith("# Assumed: ")]
    assert "models/mine has 8 billion parameters" in line
    assert "Assumed" not in manifest.manifest(config())
    assert "Assumed" not in manifest.manifest(scripted.config(f"{manifest.MOUNT}/runs/mine"))


def test_the_driver_has_memory_for_the_model_that_it_merges_adapters_into():
    assert groups(config())["data"].memory_gib == manifest.DRIVER_GIB == 8
    merging = config(train={**TRAIN, "merge": True})
    assert groups(merging)["data"].memory_gib == 8 + 18 and 1.2 * gib(7) <= 18
    assert manifest.driver_gib(merging) == 26
    assert slurm.allocation(merging).memory_gib - slurm.allocation(config()).memory_gib == 18


def test_an_engine_on_cpus_has_memory_for_its_model():
    small = scripted.config(
        f"{manifest.MOUNT}/runs/mine", model={"path": "org/small-1.5B", "dtype": "float32"}
    )
    toy = scripted.config(f"{manifest.MOUNT}/runs/mine")
    assert groups(small)["data"].memory_gib - groups(toy)["data"].memory_gib == 7 >= 2 * gib(1.5)


def test_a_node_of_slurm_holds_eight_trainers():
    assert slurm.allocation(config()).memory_gib == 176 + manifest.DRIVER_GIB
    made = config(engine={"num_gpus": 4, "actors": 2}, arms={})
    assert slurm.allocation(made).memory_gib == 56 + manifest.DRIVER_GIB >= 16 + 8 * 3 + gib(7) + 8


def test_an_engine_on_two_nodes_has_a_pod_on_each():
    engine = {"num_gpus": 16, "num_nodes": 2, "actors": 3}
    pods = groups(config(engine=engine, arms={}))["generation"]
    assert (pods.least, pods.most, pods.gpus) == (6, 6, 8) and "an engine's part each" in pods.purpose


# -- whole nodes


def test_training_pods_are_whole_nodes_if_told():
    own = groups(config(), 8)
    training = own["training"]
    assert (training.least, training.gpus, training.cpus) == (1, 8, 64)
    assert training.memory_gib == 176 >= 16 + 8 * 3 + 9 * gib(7)
    assert "8 workers each; 8 engines each at other times" in training.purpose
    assert "generation" not in own, "all engines are in the node"


def test_two_nodes_hold_engines_of_half_a_node():
    made = config(engine={"num_gpus": 4, "actors": 6}, train={**TRAIN, "workers": 16, "batch_size": 16})
    own = groups(made, 8)
    assert (own["training"].least, own["training"].gpus) == (2, 8)
    assert own["generation"].least == 6 - 4


@pytest.mark.parametrize("workers", [6, [4, 8]])
def test_workers_that_fill_no_whole_nodes_are_refused(workers):
    made = config(train={**TRAIN, "workers": workers, "batch_size": 840})
    with pytest.raises(UserError, match=r"--gpus-per-node 8: train.workers = .* does not fill whole nodes"):
        manifest.worker_groups(made, 8)


# -- kinds of GPUs


def rayjob(made) -> dict:
    return manifests.of_kind(manifests.objects(manifest.manifest(made)), "RayJob")


def test_pods_are_on_nodes_of_the_kind_that_is_asked_for():
    made = config(engine={**GPU, "accelerator_type": "L40S"}, train={**TRAIN, "accelerator_type": "H100"})
    found = manifests.objects(manifest.manifest(made))
    assert list(manifests.misfits(found)) == []
    spec = rayjob(made)["spec"]["rayClusterSpec"]
    chosen = {
        group["groupName"]: group["template"]["spec"].get("nodeSelector")
        for group in spec["workerGroupSpecs"]
    }
    assert chosen == {
        "data": None,
        "generation-l40s": {"ray.io/accelerator-type": "L40S"},
        "training": {"ray.io/accelerator-type": "H100"},
    }


def test_engines_of_another_kind_are_not_counted_into_training_pods():
    made = config(engine={**GPU, "accelerator_type": "L40S"}, train={**TRAIN, "accelerator_type": "H100"})
    assert groups(made)["generation-l40s"].least == 8
    same = config(engine={**GPU, "accelerator_type": "H100"}, train={**TRAIN, "accelerator_type": "H100"})
    assert "generation-h100" not in groups(same)


def test_rays_autoscaler_reads_the_kind_of_a_group():
    from ray.autoscaler._private.kuberay.autoscaling_config import _get_ray_resources_from_group_spec

    made = config(engine={**GPU, "accelerator_type": "L40S"})
    [group] = [
        group
        for group in rayjob(made)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        if group["groupName"].startswith("generation")
    ]
    found = _get_ray_resources_from_group_spec(group, False)
    assert found["accelerator_type:L40S"] == 1 and found["GPU"] == 1
    assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {"accelerator_type:L40S": 1}


def test_compilers_use_the_cpus_of_the_pod():
    for group in rayjob(config())["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        [container] = group["template"]["spec"]["containers"]
        variables = {one["name"]: one["value"] for one in container["env"]}
        threads = variables.get("TORCHINDUCTOR_COMPILE_THREADS")
        assert threads == ("8" if "nvidia.com/gpu" in container["resources"]["limits"] else None)
