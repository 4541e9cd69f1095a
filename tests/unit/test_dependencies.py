"""What is imported is declared, and what is declared is locked."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, UV = PYPROJECT["project"], PYPROJECT["tool"]["uv"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
HASHES = r"(?: \\\n    --hash=sha256:[0-9a-f]{64})+"
ENTRIES = re.findall(rf"^([a-z0-9-]+)==([^\s;]+)(?: ; .+?)?({HASHES})$", LOCK, re.M)  # name, version, hashes
LOCKED = {canonicalize_name(name) for name, *_ in ENTRIES}
KNOWN = sys.stdlib_module_names | {"pipeline", "tests"}
NEVER = {"torchaudio", "torchcodec"}  # pyproject.toml's overrides
FOR_GPUS = {"torchvision", "triton", "intel-cmplr-lib-ur"}  # packages ask for them, and do without on a CPU


def requirements(*extras: str) -> list[Requirement]:
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(text) for group in groups for text in group]


def names(*extras: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def pinned(variable: str) -> str:
    return re.search(rf"^{variable} := (.+)$", MAKEFILE, re.M)[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that a file imports, wherever in it; no statement stands in an expression."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(level=0):
                yield node.module
            case ast.expr():
                continue
            case _:
                yield from imports(node)


@cache
def imported(package: str) -> dict[str, set[str]]:
    """Third-party top-level modules that the package's files import, and the files."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        for module in imports(ast.parse(path.read_text())):
            found.setdefault(module.partition(".")[0], set()).add(str(path.relative_to(ROOT)))
    return {module: files for module, files in found.items() if module not in KNOWN}


@cache
def installed() -> Mapping[str, list[str]]:
    """The distributions of every module; looking them up reads the files of all that is installed."""
    return importlib.metadata.packages_distributions()


def distributions(module: str) -> set[str]:
    """If it is not installed, because an extra brings it: of its name."""
    return {canonicalize_name(name) for name in installed().get(module, [module])}


# -- imports


@pytest.mark.parametrize(
    "package, extras",
    [("pipeline", ["cpu", "inspect", "object-stores", "qlora", "utility"]), ("tests", ["cpu", "test"])],
)
def test_every_import_is_a_declared_dependency(package, extras):
    declared = names(*extras) | ({"packaging"} if "test" in extras else set())  # pytest depends on it
    modules = imported(package)
    assert not {module: files for module, files in modules.items() if not distributions(module) & declared}


def test_every_declared_dependency_is_imported():
    used = {name for module in imported("pipeline") for name in distributions(module)}
    assert names("cpu") - used == {"tensorboard"}  # which torch.utils.tensorboard imports


# -- the lock


def test_every_line_of_the_lock_is_read_here():
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert len(lines) == sum(1 + hashes.count("--hash") for *_, hashes in ENTRIES) > 100


def test_the_lock_names_no_host_and_no_path():
    assert not re.search(r"://|file:|(?<![\w'])/\w|^-", LOCK, re.M)


def test_only_gpus_have_torchvision():
    """vLLM for GPUs imports it; beside a CPU torch, the package index's build breaks transformers."""
    left_out = {Requirement(text) for text in UV["override-dependencies"]}
    assert {requirement.name for requirement in left_out} == NEVER
    assert not any(requirement.marker.evaluate() for requirement in left_out)
    [recipe] = re.findall(r"^lock: .+\n(?:\t.+\n)+", MAKEFILE, re.M)
    assert "\"torchvision; sys_platform == 'never'\" > $(VENV)/torch.txt" in recipe
    assert "torchvision" not in LOCKED


def test_the_lock_brings_no_torch_and_nothing_of_cuda():
    assert not LOCKED & ({"torch"} | FOR_GPUS | NEVER)
    assert not {name for name in LOCKED if name.startswith(("cuda-", "nvidia-"))}


@pytest.mark.parametrize("requirement", requirements("cpu", "docs", "test"), ids=str)
def test_the_lock_is_within_the_bounds(requirement):
    if requirement.name == "torch":
        versions = [pinned("TORCH")]
    else:
        versions = [version for name, version, *_ in ENTRIES if name == canonicalize_name(requirement.name)]
    assert versions and all(requirement.specifier.contains(version) for version in versions)


def test_the_lock_holds_the_uv_that_installs_it():
    assert [version for name, version, *_ in ENTRIES if name == "uv"] == [pinned("UV")]


def test_the_lock_is_complete():
    """It is installed with --no-deps. Here dependencies are followed, on this platform, as installed."""
    seen: set[tuple[str, str]] = set()
    todo = requirements("cpu", "docs", "test")
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} if name not in FOR_GPUS | NEVER else ():
            if (name, extra) not in seen:
                seen.add((name, extra))
                needed = [Requirement(text) for text in importlib.metadata.requires(name) or []]
                todo += [r for r in needed if r.marker is None or r.marker.evaluate({"extra": extra})]
    assert {name for name, _ in seen} - LOCKED == {"torch"}
    assert len(seen) > 100
