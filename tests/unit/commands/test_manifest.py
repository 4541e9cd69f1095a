"""What `setbacks manifest` prints and what lies in cluster/overlays: checked against KubeRay's own schemas,
and for what no schema can say."""

import copy
import itertools
import json
import shlex
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import jsonschema
import pytest

from pipeline import __version__, cli
from pipeline.commands.manifest import CONFIG_FILE, MOUNT, job_name, manifest, worker_groups
from pipeline.config import load
from pipeline.errors import UserError
from tests import manifests, scripted
from tests.manifests import closed, find_faults, objects, of_kind, pods, render

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared" / "data" / "kuberay"
OVERLAYS = {
    "gpu": "configs/mistake_analysis_7b.yaml",
    "cpu": "configs/quickstart.yaml",
    "interactive": "configs/mistake_analysis_7b.yaml",
}
FILES = {"gpu": "rayjob.yaml", "cpu": "rayjob.yaml", "interactive": "raycluster.yaml"}
GPU = {"num_gpus": 1}
SERVER = {"kind": "openai", "url": "http://server/v1", "model": "m"}


def example(path: str, *more: str):
    of_other_runs = {"red_team_next": ["suites.safety.harmful.path={}/runs/red_team/requests"]}
    changes = [change.format(MOUNT) for change in of_other_runs.get(Path(path).stem, [])]
    return load(ROOT / path, [f"run_dir={MOUNT}/runs/{Path(path).stem}", *changes, *more])


def config(**changes):
    return scripted.config(**{"run_dir": f"{MOUNT}/runs/mine", **changes})


# -- what may be wrong with a manifest


@pytest.fixture(scope="session")
def misfits():
    """The places where objects do not fit the schemas of Kubernetes and, if they are here, KubeRay's."""
    kinds = ("RayJob", "RayCluster") if SCHEMAS.is_dir() else ()
    validators = {
        kind: jsonschema.Draft202012Validator(
            closed(json.loads((SCHEMAS / f"{kind}_v1.schema.json").read_text()))
        )
        for kind in kinds
    }
    return lambda found: [
        *manifests.misfits(found),
        *(
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
            for o in found
            if o["kind"] in validators
            for error in validators[o["kind"]].iter_errors(o)
        ),
    ]


@pytest.fixture
def faults(monkeypatch):
    ran = []
    monkeypatch.setattr(cli, "_run", lambda config, *_rest: ran.append(config))

    def parses(entrypoint: str) -> bool:
        ran.clear()
        monkeypatch.setattr(sys, "argv", shlex.split(entrypoint))
        with suppress(SystemExit):
            cli.main()
        return sys.argv[0] == "setbacks" and ran == [CONFIG_FILE]

    return lambda found: list(find_faults(found, parses))


# -- nothing is wrong with ours

CONFIGS = {path.stem: path for path in sorted((ROOT / "configs").glob("*.yaml"))}
RANGES = dict(
    engine={"actors": [2, 6], "num_gpus": 2}, train={"workers": [1, 2], "use_gpu": True, "batch_size": 16}
)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_sound(overlay, misfits, faults):
    found = render(CLUSTER / "overlays" / overlay)
    assert misfits(found) == []
    assert faults(found) == []
    (claim,) = {
        volume["persistentVolumeClaim"]["claimName"]
        for volume in volumes_of(found)
        if "persistentVolumeClaim" in volume
    }
    assert claim == of_kind(found, "PersistentVolumeClaim")["metadata"]["name"]


def volumes_of(found: list[dict]) -> list[dict]:
    resource = next(o for o in found if o["kind"] in ("RayJob", "RayCluster"))
    return [volume for pod in pods(resource) for volume in pod.get("volumes", ())]


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("name", [*CONFIGS, "ranges"])
def test_printed_manifests_are_sound(name, interactive, misfits, faults):
    found = objects(
        manifest(
            config(**RANGES) if name == "ranges" else example(f"configs/{name}.yaml"), interactive=interactive
        )
    )
    assert [o["kind"] for o in found] == (["RayCluster"] if interactive else ["ConfigMap", "RayJob"])
    assert misfits(found) == []
    assert faults(found) == []


def test_on_an_object_store_no_volume_is_shared(misfits, faults):
    """Nothing waits for a claim that nobody has made; the store's keys come from the secret."""
    found = objects(manifest(config(run_dir="s3://bucket/runs/mine")))
    assert misfits(found) == [] and faults(found) == []
    assert [volume for volume in volumes_of(found) if "persistentVolumeClaim" in volume] == []
    assert {volume["name"] for volume in volumes_of(found) if "emptyDir" in volume} == {"shared"}


@pytest.mark.parametrize("name", [*CONFIGS, "text"])
def test_the_config_map_holds_the_configuration(name, tmp_path):
    text = config(
        recipe={"hint": {"text": "Two lines, “quoted”: \n  --- \n# no comment", "position": "system"}}
    )
    wanted = text if name == "text" else example(f"configs/{name}.yaml")
    (tmp_path / "config.yaml").write_text(
        of_kind(objects(manifest(wanted)), "ConfigMap")["data"]["config.yaml"]
    )
    assert load(tmp_path / "config.yaml") == wanted


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_files_in_cluster_are_what_is_printed(overlay):
    path = CLUSTER / "overlays" / overlay / FILES[overlay]
    assert path.read_text() == manifest(example(OVERLAYS[overlay]), interactive=overlay == "interactive"), (
        f"print it again: setbacks manifest {OVERLAYS[overlay]} run_dir=… > {path}"
    )


def test_no_secret_is_in_a_manifest(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-verysecret")
    text = manifest(config(recipe={"engine": SERVER}))
    assert "verysecret" not in text
    assert "secretRef" in text


# -- what is wrong is found


def set_at(path: str, value):
    def change(found: list[dict]) -> None:
        *parents, leaf = [int(step) if step.isdigit() else step for step in path.split("/")]
        tree = of_kind(found, "RayJob")["spec"]
        for step in parents:
            tree = tree[step]
        tree[leaf] = value

    return change


BY_SCHEMA = {
    "misspelt field": set_at("shutdownAfterJobFinish", True),
    "misspelt deep down": set_at(
        "rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/volumeMount", []
    ),
    "number as text": set_at("backoffLimit", "2"),
    "no such amount": set_at(
        "rayClusterSpec/headGroupSpec/template/spec/containers/0/resources/limits/memory", "8GiB"
    ),
    "missing name": (
        lambda found: of_kind(found, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop(
            "groupName"
        )
    ),
}
BY_US = {
    "ttlSecondsAfterFinished without": set_at("shutdownAfterJobFinishes", False),
    "entrypoint": set_at("entrypoint", f"setbacks ruin {CONFIG_FILE}"),
    "Ray would give out": set_at(
        "rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/resources/limits/cpu", "16"
    ),
    "GPUs: replicas": set_at("rayClusterSpec/workerGroupSpecs/2/replicas", 4),
    "GPUs: maxReplicas": lambda found: [
        group.update(maxReplicas=1)
        for group in of_kind(found, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    ],
    "run_dir": set_at(
        "rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/volumeMounts/0/mountPath",
        "/mnt/elsewhere",
    ),
    "rayVersion": set_at("rayClusterSpec/rayVersion", "2.50.0"),
    "image": set_at("rayClusterSpec/headGroupSpec/template/spec/containers/0/image", "setbacks:latest"),
    "the head takes work": set_at("rayClusterSpec/headGroupSpec/rayStartParams", {}),
    "volumes": set_at("rayClusterSpec/workerGroupSpecs/0/template/spec/volumes", []),
    "written out": set_at(
        "rayClusterSpec/workerGroupSpecs/0/template/spec/containers/0/env/0",
        {"name": "HF_TOKEN", "value": "hf_x"},
    ),
    "nothing would scale": set_at("rayClusterSpec/enableInTreeAutoscaling", False),
}


@pytest.fixture
def sound():
    """With a group that an autoscaler may add to."""
    return copy.deepcopy(
        objects(manifest(example("configs/mistake_analysis_7b.yaml", "engine.actors=[8,10]")))
    )


@pytest.mark.parametrize("what", BY_SCHEMA)
def test_the_schema_catches(what, sound, misfits):
    if what != "misspelt deep down" and not SCHEMAS.is_dir():
        pytest.skip("KubeRay's schemas are not here")
    BY_SCHEMA[what](sound)
    assert misfits(sound)


def test_a_pod_that_kubernetes_would_refuse_is_found(sound):
    set_at("rayClusterSpec/headGroupSpec/template/spec/containers/0/env/0/valeu", "1")(sound)
    [told] = manifests.misfits(sound)
    assert told.startswith("Pod ") and "valeu" in told


@pytest.mark.parametrize("name", CONFIGS)
def test_a_pod_without_gpus_sees_none(name):
    """On a node with GPUs, NVIDIA's runtime would show it all of them, and Ray would give them out."""
    resource = of_kind(objects(manifest(example(f"configs/{name}.yaml"))), "RayJob")
    cluster = resource["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    started = {id(group["template"]["spec"]): group["rayStartParams"] for group in groups}
    for pod in pods(resource):
        container = pod["containers"][0]
        has = "nvidia.com/gpu" in container["resources"]["limits"]
        shown = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"]
        assert shown is not has
        if id(pod) in started:
            assert (started[id(pod)].get("num-gpus") == "0") is not has


@pytest.mark.parametrize("what", BY_US)
def test_our_checks_catch(what, sound, faults):
    BY_US[what](sound)
    assert [fault for fault in faults(sound) if what in fault]


# -- sizes follow from the configuration


def sizes(**changes) -> dict[str, tuple]:
    return {group.name: (group.least, group.most, group.gpus) for group in worker_groups(config(**changes))}


def test_engines_and_trainers_share_gpus_of_one_size():
    train = {"workers": 8, "use_gpu": True}
    assert sizes(engine={"actors": 8, **GPU}, train=train) == {
        "data": (1, 1, 0),
        "training": (8, 8, 1),
    }, "no pods that an autoscaler could start for trainers while engines let go of their GPUs"
    assert sizes(engine={"actors": [10, 12], **GPU}, train=train)["generation"] == (2, 4, 1)
    assert sizes(engine={"actors": 4, "num_gpus": 2}, train=train) == {
        "data": (1, 1, 0),
        "training": (4, 4, 2),
    }


def test_engines_that_find_no_place_among_trainers_have_their_own():
    train = {"workers": 2, "use_gpu": True}
    assert sizes(engine={"actors": 2, "num_gpus": 4}, train=train) == {
        "data": (1, 1, 0),
        "generation": (2, 2, 4),
        "training": (2, 2, 1),
    }
    assert sizes(engine={"actors": [1, 3], **GPU}) == {"data": (1, 1, 0), "generation": (1, 3, 1)}


def test_at_the_start_there_are_the_gpus_that_a_run_checks_for():
    """`setbacks run` refuses a cluster whose nodes have fewer GPUs than the largest stage's least."""
    for actors, gpus, workers in itertools.product((1, 3, (2, 8)), (1, 2, 4), (1, 2, 8, (2, 4))):
        train = {
            "workers": list(workers) if isinstance(workers, tuple) else workers,
            "use_gpu": True,
            "batch_size": 48,
        }
        engine = {"actors": list(actors) if isinstance(actors, tuple) else actors, "num_gpus": gpus}
        groups = worker_groups(config(engine=engine, train=train))
        fewest = (
            (actors[0] if isinstance(actors, tuple) else actors) * gpus,
            workers[0] if isinstance(workers, tuple) else workers,
        )
        assert sum(group.least * group.gpus for group in groups) >= max(fewest)
        assert sum(group.least * (group.gpus // gpus) for group in groups) >= fewest[0] // gpus, (
            "an engine's GPUs are in one pod"
        )


def test_the_largest_arm_counts():
    arms = {"a": {"kinds": ["safe"], "train": {"workers": 4}}, "b": {"kinds": ["safe"]}}
    assert sizes(train={"workers": 2, "use_gpu": True}, arms=arms)["training"] == (4, 4, 1)


def test_without_gpus_there_is_one_group():
    assert sizes() == {"data": (1, 1, 0)}
    assert sizes(engine={"actors": [2, 9]}, train={"workers": 4, "batch_size": 16}) == {"data": (2, 3, 0)}
    assert sizes(engine=GPU, recipe={"engine": {**SERVER, "actors": 2}})["data"] == (1, 1, 0)


def test_there_is_memory_for_as_many_processes_as_ray_may_place():
    (one,), (many,) = (
        worker_groups(config()),
        worker_groups(config(engine={"actors": 9, "kv_cache_gib": 4})),
    )
    assert (one.cpus, one.memory_gib) == (4, 8 + 1 * 4)
    assert (many.cpus, many.memory_gib) == (4, 8 + 3 * 7)


def test_objects_are_named_after_the_run_directory():
    assert job_name(f"{MOUNT}/runs/Mine_7B/") == "setbacks-mine-7b"
    assert job_name("s3://bucket/runs/mine") == "setbacks-bucket-runs-mine"
    long = [job_name(f"{MOUNT}/runs/{'x' * 60}{n}") for n in range(2)]
    assert len(set(long)) == 2 and all(len(name) <= 40 for name in long)


# -- what is refused


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"run_dir": "runs/mine"}, f"run_dir = runs/mine: .* such as run_dir={MOUNT}/runs/mine$"),
        ({"run_dir": f"{MOUNT}/../home/mine"}, "run_dir = "),
        (
            {"instructions": {"path": "data/asks.jsonl"}},
            (
                "methods.mistakes.instructions.path = data/asks.jsonl: .*"
                f" methods.mistakes.instructions.path={MOUNT}/asks.jsonl$"
            ),
        ),
        ({"model": {"path": "~/models/mine"}}, "model.path = ~/models/mine: "),
        ({"train": {"start": {"adapter": "adapters/a"}}}, "train.start.adapter = adapters/a: "),
        (
            {"evaluation": {"harmful": {"path": "toy:harmful-heldout"}, "adapters": {"a": "b/c"}}},
            "adapters.a = b/c: ",
        ),
    ],
)
def test_what_pods_would_not_see_is_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        manifest(scripted.config(**{"run_dir": f"{MOUNT}/runs/mine", **changes}))


@pytest.mark.parametrize(
    "image, name", [("registry:5000/setbacks", "registry:5000/setbacks"), ("setbacks:latest", "setbacks")]
)
def test_an_image_without_a_tag_is_refused(image, name):
    with pytest.raises(
        UserError, match=f"--image {image}: is not pinned and can change; .* {name}:{__version__}-gpu$"
    ):
        manifest(config(), image)


def test_every_pod_runs_the_given_image():
    digest = "registry/setbacks@sha256:0123"
    job = of_kind(objects(manifest(config(), digest)), "RayJob")
    assert {pod["containers"][0]["image"] for pod in pods(job)} == {digest}


def test_neither_ray_nor_an_engine_is_imported():
    code = (
        "import pipeline.commands.manifest, sys; sys.exit(len({'ray', 'torch', 'vllm', 'transformers'} &"
        " set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)
