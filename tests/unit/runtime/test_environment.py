"""Environment variables that would end a run late are one sentence before it starts, or change nothing."""

import os
from pathlib import Path

import pytest

from pipeline import preflight
from pipeline.errors import UserError
from pipeline.runtime import environment, session
from pipeline.training import workers
from tests.scripted import config


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in ("RAY_TMPDIR", "TMPDIR", "RAY_ADDRESS", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def told(tmp_path) -> str:
    with pytest.raises(UserError) as caught:
        preflight.check(config(tmp_path / "run"), {"generate"})
    assert "\n" not in str(caught.value) and "set RAY_TMPDIR to a short path" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_temporary_directory_too_long_for_sockets_is_refused_by_preflight(tmp_path, monkeypatch, variable):
    longest = 107 - len(environment._SOCKET)
    for length, refused in ((longest, False), (longest + 1, True)):
        monkeypatch.setenv(variable, "/tmp/" + "x" * (length - 5))
        if refused:
            assert told(tmp_path).startswith(f"{variable} = /tmp/xxx") and "too long" in told(tmp_path)
        else:
            environment.check_temporary_directory()
    monkeypatch.setenv(variable, "/tmp/" + "ä" * (longest - 5))
    assert "too long" in told(tmp_path), "bytes count, not characters"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("/dev/null", "/dev/null is not a directory"),
        ("/dev/null/x", "/dev/null is not a directory"),
        ("tmp", "abs"),
    ],
)
def test_a_temporary_directory_that_cannot_be_one_is_refused(tmp_path, monkeypatch, place, reason):
    monkeypatch.setenv("TMPDIR", place)
    assert reason in told(tmp_path)


def test_a_temporary_directory_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(os, "access", lambda path, _mode: str(path) != "/tmp")
    assert "/tmp is not writable" in told(tmp_path)


def test_a_missing_temporary_directory_is_made_by_ray(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp/to/be/made")
    environment.check_temporary_directory()


def test_rays_own_variable_comes_first_and_an_empty_one_is_none(monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/null")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    environment.check_temporary_directory()
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setenv("RAY_TMPDIR", "")
    environment.check_temporary_directory()


def test_empty_variables_are_not_passed_on_to_ray(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setattr("ray.init", lambda **_: seen.append("TMPDIR" in os.environ))
    monkeypatch.setattr("ray.nodes", lambda: [])
    monkeypatch.setattr(session.attempt, "metrics", lambda _urls: None)
    with session.ray_session(str(tmp_path)):
        pass
    assert seen == [False]


def test_on_a_cluster_the_temporary_directory_is_the_clusters(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/null")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    preflight.check(config(tmp_path / "run"), {"generate"})


def test_stages_without_ray_need_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/dev/null")
    preflight.check(config(tmp_path / "run"), {"mix"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("VLLM_PORT", "abc"),
        ("VLLM_LOGGING_LEVEL", "loud"),
        ("VLLM_WORKER_MULTIPROC_METHOD", "teleport"),
        ("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "soon"),
        ("VLLM_CONFIGURE_LOGGING", "perhaps"),
    ],
)
def test_a_value_that_vllm_does_not_take_is_refused(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"{name}.*unset it") as caught:
        environment.check_vllm_variables()
    assert "\n" not in str(caught.value)


def test_values_that_vllm_takes_and_names_that_it_ignores_pass(monkeypatch):
    for name, value in {"VLLM_LOGGING_LEVEL": "debug", "VLLM_PORT": "5000", "VLLM_OLD_OPTION": "1"}.items():
        monkeypatch.setenv(name, value)
    environment.check_vllm_variables()


@pytest.mark.parametrize("value", ["abc", "0", "-3", "4,2", "1.5", "٣"])
def test_a_number_of_threads_that_is_none_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(UserError, match=r"OMP_NUM_THREADS = .*not a number of threads; unset it"):
        preflight.check(config(tmp_path / "run"), {"train"})


@pytest.mark.parametrize("value", ["", "1", " 4 "])
def test_a_number_of_threads_passes(monkeypatch, value):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    environment.check_threads()


def test_variables_of_accelerate_change_no_training_and_are_told(monkeypatch):
    """Left alone, ACCELERATE_MIXED_PRECISION trains in bfloat16 although `bf16: false`, and others end workers."""
    for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
        monkeypatch.delenv(name)
    assert environment.unused_accelerate() == []
    odd = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_USE_CPU": "maybe", "FSDP_VERSION": "2"}
    for name, value in odd.items():
        monkeypatch.setenv(name, value)
    [notice] = environment.unused_accelerate()
    assert notice.startswith("ACCELERATE_MIXED_PRECISION, ACCELERATE_USE_CPU, FSDP_VERSION: not used")
    seen: list[list[str]] = []
    monkeypatch.setattr("pipeline.training.loop.train", lambda _: seen.append(environment.of_accelerate()))
    workers._train({"jobs": []})
    assert seen == [[]]


@pytest.mark.parametrize("listed", [None, "", "mine", "mine,setbacks_cpu_lora"])
def test_a_list_of_plugins_does_not_turn_off_our_own(monkeypatch, listed):
    import tomllib

    from pipeline.inference import cpu_lora, vllm_start

    monkeypatch.setattr(os, "environ", dict(os.environ))
    os.environ.pop("VLLM_PLUGINS", None)
    if listed is not None:
        os.environ["VLLM_PLUGINS"] = listed
    vllm_start.set_environment(0, 1)
    found = os.environ.get("VLLM_PLUGINS")
    assert found is None if listed is None else found.split(",").count(cpu_lora.PLUGIN) == 1
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert cpu_lora.PLUGIN in project["entry-points"]["vllm.general_plugins"]
