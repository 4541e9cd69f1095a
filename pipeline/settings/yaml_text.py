"""Handwritten YAML: PyYAML's safe subset, without surprising features and without unbounded cost.

A repeated key in a mapping is an error (PyYAML silently keeps the last one). Aliases are expanded up to a
number of nodes, dates are texts, and tags are not constructed: a configuration has texts, numbers, truth
values, null, lists and mappings.
"""

import os
from pathlib import Path
from typing import Any

import yaml

from pipeline.settings.shown import shown

MOST_BYTES = 256 * 2**10
MOST_NODES = 20_000  # with aliases expanded
MOST_LEVELS = 50
_MOST_DIGITS = 400  # Python refuses to print or read more than a few thousand

_PLAIN_TAGS = {"null", "bool", "int", "float", "str", "seq", "map", "merge"}


def read(path: str | Path) -> Any:
    """The value of a YAML file. Raises OSError, UnicodeDecodeError or yaml.YAMLError."""
    # Opening a named pipe without a writer would block forever; with O_NONBLOCK it reads as empty.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    with open(descriptor, "rb") as f:
        content = f.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise yaml.YAMLError(f"it has more than {MOST_BYTES // 2**10} KiB")
    return parse(content.decode("utf-8"))


def parse(text: str) -> Any:
    """The value of a YAML text. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def __init__(self, stream: str):
        super().__init__(stream)
        self._nodes = self._level = 0
        self._sizes: dict[int, int] = {}  # of finished nodes, by their identity

    def compose_node(self, parent, index):
        event, before = self.peek_event(), self._nodes
        self._level += 1
        if self._level > MOST_LEVELS:
            raise _refused(f"it is nested more than {MOST_LEVELS} levels deep", event)
        node = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._sizes:
                raise _refused(f"*{event.anchor} is used inside its own definition", event)
            self._nodes += self._sizes[id(node)]
        else:
            self._nodes += 1
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise _refused(f"it has more than {MOST_NODES} values, with aliases expanded", event)
        return node

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _refused(f"the key {shown(key.value, 60)} appears twice", key)
                seen.add(key.value)
        return node

    def construct_number(self, node):
        """A number of any notation with bounded length: no setting needs 5000 digits."""
        construct = yaml.SafeLoader.yaml_constructors[node.tag]
        try:
            if len(node.value) <= _MOST_DIGITS:
                return construct(self, node)
        except (ValueError, LookupError):  # an explicit tag can precede any text
            pass
        raise _refused(f"{shown(node.value, 40)} is not a number, or a very long one", node)

    def construct_truth(self, node):
        try:
            return self.construct_yaml_bool(node)
        except KeyError:
            raise _refused(f"{node.value} is neither true nor false", node) from None


_Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN_TAGS
} | {
    "tag:yaml.org,2002:int": _Loader.construct_number,
    "tag:yaml.org,2002:float": _Loader.construct_number,
    "tag:yaml.org,2002:bool": _Loader.construct_truth,
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _PLAIN_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refused(why: str, where: yaml.Event | yaml.Node) -> yaml.YAMLError:
    line = where.start_mark.line + 1 if where.start_mark else 0
    return yaml.YAMLError(f"line {line}: {shown(why)}")
