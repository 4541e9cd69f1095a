"""What is imported is declared, and what is declared is locked: pyproject.toml, requirements.lock and the Makefile agree."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()
LOCK = (ROOT / "requirements.lock").read_text()
ENTRIES = re.findall(r"^([a-z0-9-]+)==([^\s;]+)(?: ; (.+?))?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", LOCK, re.M)
LOCKED = {canonicalize_name(name) for name, *_ in ENTRIES}
DISTRIBUTIONS = importlib.metadata.packages_distributions()
NEVER = {"torchvision", "torchaudio", "torchcodec"}  # pyproject.toml's overrides
LEFT_OUT = {"torch", "triton", "intel-cmplr-lib-ur"}  # what is installed first, and what packages ask for that only GPUs need


def requirements(*extras: str) -> list[Requirement]:
    texts = PROJECT["dependencies"] + [text for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    return [Requirement(text) for text in texts]


def names(*extras: str) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements(*extras)}


def pinned(variable: str) -> str:
    return re.search(rf"^{variable} := (.+)$", MAKEFILE, re.M)[1]


def imported(package: str) -> dict[str, set[str]]:
    """Third-party top-level modules that the package's files import, and the files."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import():
                    modules = [alias.name for alias in node.names]
                case ast.ImportFrom(level=0):
                    modules = [node.module]
                case _:
                    continue
            for module in {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"pipeline", "tests"}:
                found.setdefault(module, set()).add(str(path.relative_to(ROOT)))
    return found


def distributions(module: str) -> set[str]:
    return {canonicalize_name(name) for name in DISTRIBUTIONS.get(module, [])}


# -- imports


@pytest.mark.parametrize("package, extras", [("pipeline", ["cpu"]), ("tests", ["cpu", "test"])])
def test_every_import_is_a_declared_dependency(package, extras):
    ours = {"packaging"} if package == "tests" else set()  # pytest depends on it
    undeclared = {module: files for module, files in imported(package).items() if not distributions(module) & (names(*extras) | ours)}
    assert not undeclared


def test_every_declared_dependency_is_imported():
    used = {name for module in imported("pipeline") for name in distributions(module)}
    assert names("cpu") - used == {"tensorboard"}  # which torch.utils.tensorboard imports


# -- the lock


def test_every_line_of_the_lock_is_read_here():
    assert len(ENTRIES) > 100
    assert len(ENTRIES) + sum(hashes.count("--hash") for *_, hashes in ENTRIES) == len(re.findall(r"^(?!#)", LOCK.rstrip("\n"), re.M))


def test_the_lock_names_no_host_and_no_path():
    assert not re.search(r"://|file:|(?<![\w'])/\w|^-", LOCK, re.M)


def test_the_lock_brings_no_torch_and_nothing_of_cuda():
    assert not {name for name in LOCKED if name in LEFT_OUT | NEVER or re.match("(cuda|nvidia)-", name)}


@pytest.mark.parametrize("requirement", requirements("cpu", "test"), ids=str)
def test_the_lock_is_within_the_bounds(requirement):
    if requirement.name == "torch":
        versions = [pinned("TORCH")]
    else:
        versions = [version for name, version, *_ in ENTRIES if name == canonicalize_name(requirement.name)]
    assert versions and all(requirement.specifier.contains(version) for version in versions)


def test_the_lock_holds_the_uv_that_installs_it():
    assert [version for name, version, *_ in ENTRIES if name == "uv"] == [pinned("UV")]


def test_the_lock_is_complete():
    """It is installed without looking at dependencies. Here they are followed, on this platform, through what is installed."""
    seen, todo = set(), [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements("cpu", "test")]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen or name in NEVER | LEFT_OUT - {"torch"}:
            continue
        seen.add((name, extras))
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                todo.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    assert {name for name, _ in seen} - LOCKED == {"torch"}
    assert len(seen) > 100
