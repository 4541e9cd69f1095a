"""What the tests of attempts share: their states and their files."""

import json
from pathlib import Path

from pipeline.runtime.attempt import history


def states(run_dir) -> list[str]:
    return [one["state"] for one in history(str(run_dir))]


def file_of(run_dir, number: int) -> Path:
    return Path(run_dir, ".state", "attempts", f"{number:04d}.json")


def change(run_dir, number: int, **facts) -> None:
    file = file_of(run_dir, number)
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
