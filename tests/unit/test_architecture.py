"""The house: arrows between modules go one way, nothing below the root configuration knows it, and nothing
above it names a plug-in."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pipeline
from pipeline.inference import ENGINES
from pipeline.registry import METHODS, SUITES, Suites

PACKAGE = Path(pipeline.__file__).parent
# From the ground up: a room imports those before it, and none after it.
FLOORS = [
    {"errors", "chat", "schema", "thoughts"},
    {"settings"},
    {"data", "prompts"},
    {"runtime", "tracking"},
    {"toy", "report"},
    {"sources", "pretrained", "templates"},
    {"models", "adapters", "memory"},
    {"inference", "judges", "training", "gates"},
    {"methods"},
    {"suites"},
    {"old_keys"},
    {"registry"},
    {"arms"},
    {"config"},
    {"fingerprints", "placement", "origin", "usable", "passes"},
    {"sampling"},
    {"preflight"},
    {"commands"},
    {"run"},
    {"making", "fitting"},
    {"experiment"},
    {"preview"},
    {"cli"},
]
# The rooms that may know methods and suites by name: theirs, old keys, the registry, and the toy, whose sentences
# answer their prompts.
PLUG_INS = {"methods", "suites", "old_keys", "registry", "toy"}
# Read off the registry. A name without an underscore may be a word of the language, such as "safety".
CLASSES = [cls.__name__ for cls in [*METHODS.values(), *SUITES]]
NAMES = re.compile(
    rf"\b({'|'.join([*CLASSES, *(name for name in [*METHODS, *Suites.model_fields] if '_' in name)])})\b"
)
# Engines: their own modules, the registry, and the module that answers old keys. A kind that is
# also a library's name may be meant as that.
NAME_ENGINES = re.compile(rf"pipeline\.(inference|old_keys|inference\.({'|'.join(ENGINES)})(_model)?)")
ENGINE_CLASSES = {cls.__name__ for cls in ENGINES.values()}
LIBRARIES = {library for cls in ENGINES.values() for library in cls.libraries}
SELECTED = re.compile(rf"\bkind: ({'|'.join(ENGINES)})\b")


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("pipeline", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.AST, known: dict[str, Path]) -> Iterator[str]:
    """The modules of ours that a module imports, wherever in it; what only a type checker imports is left
    out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue  # no statement stands in an expression
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pipeline":
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        else:
            yield from imports(node, known)


def graph(known: dict[str, Path]) -> dict[str, set[str]]:
    found = {}
    for name, path in known.items():
        found[name] = set(imports(parsed(path), known)) - {name, "pipeline"}
    return found


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or by way of others."""
    reached = {name: {name} for name in arrows}
    changed = True
    while changed:
        changed = False
        for name, targets in arrows.items():
            new = set().union(*(reached[target] for target in targets)) if targets else set()
            if not new <= reached[name]:
                reached[name] |= new
                changed = True
    groups = defaultdict(list)
    for name in arrows:
        groups[frozenset(other for other in reached[name] if name in reached[other])].append(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "cli"


def climbing(arrows: dict[str, set[str]]) -> list[str]:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    return [
        f"{name} imports {target}"
        for name, targets in arrows.items()
        for target in targets
        if room(name) != room(target) and floor[room(name)] <= floor[room(target)]
    ]


@pytest.fixture(scope="module")
def arrows():
    return graph(modules())


def test_every_room_has_its_floor(arrows):
    assert {room(name) for name in arrows if name != "pipeline"} == set().union(*FLOORS)


def test_no_module_imports_itself_by_way_of_others(arrows):
    assert circles(arrows) == []


def test_no_import_climbs(arrows):
    assert climbing(arrows) == []


def test_a_circle_and_a_climbing_import_are_seen(arrows):
    """The checks above can fail."""
    planted = arrows | {"pipeline.data.storage": arrows["pipeline.data.storage"] | {"pipeline.config"}}
    assert any(
        "pipeline.config" in circle and "pipeline.data.storage" in circle for circle in circles(planted)
    )
    assert "pipeline.data.storage imports pipeline.config" in climbing(planted)


def test_nothing_below_the_root_configuration_imports_it(arrows):
    above = set().union(*FLOORS[FLOORS.index({"config"}) + 1 :])
    assert {room(name) for name, targets in arrows.items() if "pipeline.config" in targets} <= above


def test_nothing_but_the_plug_ins_and_their_registry_names_one():
    named = {
        name: sorted(set(NAMES.findall(text)))
        for name, path in modules().items()
        if name != "pipeline"
        and room(name) not in PLUG_INS
        and NAMES.search(text := path.read_text(encoding="utf-8"))
    }
    assert named == {}


def engines_named(tree: ast.AST, known: dict[str, Path]) -> set[str]:
    """The engines that a module names in code: their modules, classes and kinds. Prose is left out."""
    found = {name for name in imports(tree, known) if name.removeprefix("pipeline.inference.") in ENGINES}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
        if (text in ENGINES and text not in LIBRARIES) or SELECTED.search(text):
            found.add(text)
        for name in (getattr(node, field, None) for field in ("id", "attr", "name")):
            if name in ENGINE_CLASSES:
                found.add(name)
    return found


def test_nothing_but_engines_and_their_registry_names_one():
    known = modules()
    named = {
        name: found
        for name, path in known.items()
        if not NAME_ENGINES.fullmatch(name) and (found := engines_named(parsed(path), known))
    }
    assert named == {}


@pytest.mark.parametrize(
    "line",
    [
        "from pipeline.inference.openai import EndpointModel",
        "from pipeline.inference import Dummy as words",
        "isinstance(engine, inference.VLLM)",
        "x = engine.kind == 'openai'",
        "raise ValueError(f'{field}: set engine: {{kind: dummy}}')",
    ],
)
def test_a_named_engine_is_seen(line):
    """The check above can fail."""
    assert engines_named(ast.parse(line), modules())


@pytest.mark.parametrize("line", ["import vllm", "LOGGERS = ['vllm']", "'An OpenAI-compatible server.'"])
def test_a_library_and_a_protocol_are_not_engines(line):
    assert not engines_named(ast.parse(line), modules())
