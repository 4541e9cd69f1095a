"""Measured errors of judges: files that `setbacks judge --keep` writes and the report reads.

A file has the judge's fingerprint, so that an error of another judge, prompt or model is never used.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict

from pipeline import fingerprints
from pipeline.config import Config, load
from pipeline.data import records, storage
from pipeline.errors import UserError
from pipeline.report.agreement import Agreement

DIRECTORY = "judge_errors"  # of a run


def config_of(answers_path: str) -> Config | None:
    """The configuration of the run that a data set lies in; None if there is none, or it cannot be read."""
    run_dir = storage.absolute(answers_path).rstrip("/").rpartition("/")[0]
    path = storage.join(run_dir, "config.yaml")
    if not storage.is_local(path) or not storage.exists(path):
        return None
    try:
        return load(path)
    except UserError:
        return None


def of_stored(path: str) -> dict:
    """The fingerprint of the judge whose verdicts a run stored in a data set. Raises UserError."""
    run_dir, _, name = storage.absolute(path).rstrip("/").rpartition("/")
    place = storage.join(run_dir, ".state", name, "fingerprint.json")
    known = records.read(place) or {}
    if "judge" in known:
        return {key: known[key] for key in ("judge", "prompts", "model")}
    if (config := config_of(path)) is not None:
        now = fingerprints.fingerprints(config).get(name)
        suite = next((s for s in config.suites.items().values() if s.data_schema.name == name), None)
        same = now is not None and {**now, "made_from": known.get("made_from")} == known
        if suite is not None and suite.harm_judge is not None and same:
            judge = suite.harm_judge
            return fingerprints.of_judge(judge, fingerprints.asked_by(config, judge))
    raise UserError(
        f"{path}: it is not known which judge gave these verdicts, so its error cannot be kept; use"
        " --judge, or the data set of a run whose config.yaml is unchanged"
    )


def dumped(judge: dict, error: Agreement, labels: str) -> str:
    """The content of a file."""
    return json.dumps({"judge": judge, "labels": labels, "counts": asdict(error)}, indent=1) + "\n"


def read(run_dir: str, files: Iterable[str]) -> list[tuple[dict, Agreement]]:
    """The judges' fingerprints and errors: those of the run, then those of other files. Raises UserError."""
    directory = storage.join(run_dir, DIRECTORY)
    paths = [storage.join(directory, name) for name in sorted(storage.sizes(directory))]
    found = []
    for path in [*paths, *map(storage.absolute, files)]:
        try:
            kept = json.loads(storage.read_text(path))
            found.append((kept["judge"], Agreement(**kept["counts"])))
        except (OSError, ValueError, LookupError, TypeError) as e:
            raise UserError(
                f"{path}: not a file that `setbacks judge --keep` wrote ({type(e).__name__}); take it away"
            ) from None
    return found


def of_judge(found: list[tuple[dict, Agreement]], judge: dict) -> Agreement | None:
    """The last error that was measured for exactly this judge; None if there is none."""
    same = [error for known, error in found if known == json.loads(json.dumps(judge))]
    return same[-1] if same else None
