"""The files that may take longest begin first: begun last, one of them would run alone."""

from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    most = defaultdict[Path, float](float)  # seconds that a test of the file may take
    for item in items:
        if mark := item.get_closest_marker("timeout"):
            most[item.path] = max(most[item.path], mark.args[0])
    items.sort(key=lambda item: -most[item.path] if HERE in item.path.parents else float("-inf"))
