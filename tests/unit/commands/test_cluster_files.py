"""The image and the submission script in cluster/: what can be known of them without a builder and without a
cluster."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.commands.manifest import GROUP, RAY_VERSION, USER

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()


# -- the image


def test_hadolint_finds_nothing_in_the_image():
    hadolint = Path(sys.executable).parent / "hadolint"  # comes with the extra `test`
    done = subprocess.run([hadolint, CLUSTER / "Dockerfile"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_for_gpus_holds_one_cuda():
    """That of PyTorch's packages; Ray's image for GPUs has the toolkit of an older one."""
    assert re.findall(r"^FROM rayproject/ray:\S+?-(\w+) AS (\w+)$", DOCKERFILE, re.M) == [
        ("cpu", "cpu"),
        ("cpu", "gpu"),
    ]


def test_the_image_has_the_pinned_versions():
    makefile = (ROOT / "Makefile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {
        re.split(r"[\[=<>]", pin)[0]: pin.partition("==")[2].removesuffix(".*")
        for pin in project["dependencies"]
    }
    (ray, python), (torch,) = (
        re.findall(r"^ARG RAY=([\d.]+)-py(\d+)$", DOCKERFILE, re.M)[0],
        re.findall(r"torch==([\d.]+)", DOCKERFILE),
    )
    assert ray == RAY_VERSION and ray.startswith(f"{pins['ray']}.")
    assert torch == re.search(r"^TORCH := (.+)$", makefile, re.M)[1] and torch.startswith(f"{pins['torch']}.")
    assert set(re.findall(r"uv==([\d.]+)", DOCKERFILE)) == {re.search(r"^UV := (.+)$", makefile, re.M)[1]}
    assert f"{python[0]}.{python[1:]}" == project["requires-python"].removeprefix(">=").partition(",")[0]
    assert (
        set(re.findall(r"'\.\[(\w+)\]'", DOCKERFILE))
        == {"cpu", "gpu"}
        <= set(project["optional-dependencies"])
    )


def test_the_image_is_not_roots():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.M)[1:]
    assert [stage.splitlines()[0].split(" AS ")[1] for stage in stages] == ["cpu", "gpu"]
    for stage in stages:
        assert re.findall(r"^USER (.+)$", stage, re.M)[-1] == f"{USER}:{GROUP}"


def test_what_is_copied_is_there_and_goes_to_the_builder():
    sent = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {
        source
        for line in re.findall(r"^COPY --chown=1000:100 (.+)$", DOCKERFILE, re.M)
        for source in line.split()[:-1]
    }
    assert "*" in sent
    assert copied == {"pyproject.toml", "requirements.lock", "README.md", "LICENSE", "pipeline"}
    for source in copied:
        assert (ROOT / source).exists() and f"!{source}" in sent


# -- submission


@pytest.mark.parametrize("name", ["runtime_env.yaml", "runtime_env_install.yaml"])
def test_results_and_environments_are_not_uploaded(name, tmp_path):
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package
    from ray.runtime_env import RuntimeEnv

    settings = yaml.safe_load((CLUSTER / name).read_text())
    RuntimeEnv(**settings)  # raises for what Ray does not know
    for path in (
        "runs/old/big",
        ".git/objects/o",
        ".venv/bin/python",
        "configs/mine.yaml",
        "pipeline/x.py",
        "data/runs.txt",
    ):
        (tmp_path / "project" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / path).write_text("x")
    package = tmp_path / "package.zip"
    excludes = [*get_runtime_env_default_excludes(), *settings["excludes"]]
    create_package(str(tmp_path / "project"), package, include_gitignore=True, excludes=excludes)
    files = {path for path in zipfile.ZipFile(package).namelist() if not path.endswith("/")}
    assert files == {"configs/mine.yaml", "pipeline/x.py", "data/runs.txt"}


FAKE_RAY = """#!/usr/bin/env bash
# A cluster of one job, whose state lies in a file; says what Ray 2.60 says.
echo "$@" >> "$HERE/calls"
state=$(cat "$HERE/state" 2>/dev/null || echo absent)
case "$2 $state" in
  "status absent") echo "RuntimeError: Request failed with status code 404: Job does not exist." >&2; exit 1 ;;
  "status SUCCEEDED") echo "Job '$3' succeeded" >&2 ;;
  "status STOPPED") echo "Job '$3' was stopped" ;;
  "status "*) echo "Status for job '$3': $state" ;;
  "delete RUNNING" | "submit RUNNING" | "submit STOPPED") exit 1 ;;
  delete*) rm "$HERE/state" ;;
  submit*) echo RUNNING > "$HERE/state" ;;
  logs*) echo "${ENDS:-SUCCEEDED}" > "$HERE/state" ;;
esac
"""


@pytest.fixture
def submit(tmp_path):
    """Run submit.sh against the fake: returns its exit status and what it called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ray").write_text(FAKE_RAY)
    (tmp_path / "bin" / "ray").chmod(0o755)
    (tmp_path / "mine.yaml").write_text("run_dir: /mnt/setbacks/runs/mine\n")

    def run(
        *arguments: str, state: str | None = None, ends: str = "SUCCEEDED"
    ) -> tuple[int, list[list[str]]]:
        (tmp_path / "calls").write_text("")
        if state:
            (tmp_path / "state").write_text(state)
        environment = {
            **os.environ,
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "HERE": str(tmp_path),
            "ENDS": ends,
        }
        done = subprocess.run(
            [CLUSTER / "submit.sh", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            timeout=30,
        )
        return done.returncode, [line.split() for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def submitted(calls: list[list[str]]) -> str | None:
    """The id under which a job was submitted."""
    return next((call[call.index("--submission-id") + 1] for call in calls if call[1] == "submit"), None)


def test_a_job_is_submitted_once_and_followed(submit):
    code, calls = submit("mine.yaml", "seed=1")
    assert code == 0
    (job,) = (call for call in calls if call[1] == "submit")
    assert job[-5:] == ["--", "setbacks", "run", "mine.yaml", "seed=1"]
    assert re.fullmatch("setbacks-mine-[0-9a-f]{8}", submitted(calls))
    code, calls = submit("mine.yaml", "seed=1", state="RUNNING")
    assert (code, submitted(calls)) == (0, None)
    assert ["job", "logs", "--follow"] in [call[:3] for call in calls]


def test_a_job_that_has_ended_goes_on_under_its_id(submit):
    first = submitted(submit("mine.yaml")[1])
    for state in ("STOPPED", "FAILED", "SUCCEEDED"):
        assert submitted(submit("mine.yaml", state=state)[1]) == first


def test_another_configuration_is_another_job(submit):
    ids = {
        submitted(submit("mine.yaml", *values, state="SUCCEEDED")[1])
        for values in ((), ("seed=1",), ("seed=2",))
    }
    assert len(ids) == 3


@pytest.mark.parametrize("ends", ["STOPPED", "FAILED"])
def test_a_job_that_does_not_succeed_is_not_a_success(submit, ends):
    assert submit("mine.yaml", ends=ends)[0] == 1


@pytest.mark.parametrize("arguments", [(), ("absent.yaml",), ("../mine.yaml",), ("/etc/hostname",)])
def test_a_file_that_does_not_go_along_is_not_submitted(submit, arguments):
    code, calls = submit(*arguments)
    assert code != 0 and calls == []
