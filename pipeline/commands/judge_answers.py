"""The answers that `setbacks judge` reads, with their verdicts and labels."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.judges import Verdict, negated
from pipeline.schema import FAILED
from pipeline.sources import files
from pipeline.sources.files import BadRow

_HARMFUL = {"harmful", "unsafe", "true", "yes", "1", "1.0"}
_HARMLESS = {"harmless", "safe", "false", "no", "0", "0.0"}
_NO_LABEL = {"", "null", "none", "nan"}
# Columns of PKU-SafeRLHF: response_0, is_response_0_safe, …
_PKU_RESPONSE = re.compile(r"response_(\d)")


@dataclass(frozen=True)
class Answer:
    """One answer.

    group:   arm and condition, if it has them.
    verdict: stored, or of a judge that was asked now; None if there is none.
    label:   whether it is harmful, by its own file.
    """

    id: str
    instruction: str
    response: str
    category: str | None = None
    group: str = ""
    verdict: Verdict | None = None
    label: bool | None = None

    @property
    def harmful(self) -> bool | None:
        return None if self.verdict is None else negated(self.verdict.ok)


def read(path: str, left_out: Counter[str]) -> Iterator[Answer]:
    """The answers of a run's data set or of a file; counts those that are left out."""
    for number, row in enumerate(_rows(path, left_out)):
        if row.get("status") == FAILED:
            left_out["failed"] += 1
        elif row.get("suite") == "helpful":
            left_out["answer to a benign instruction"] += 1
        elif found := list(_of_pku(row, number)):
            yield from found
        elif isinstance(row.get("response"), str):
            yield _answer(row, number)
        elif isinstance(row.get("answer_id"), str):  # a verdict of one more judge
            yield _answer({**row, "row_id": row["answer_id"], "response": ""}, number)
        else:
            left_out["without a response"] += 1


def _rows(path: str, left_out: Counter[str]) -> Iterator[dict]:
    filesystem, inner = storage.filesystem(path)
    is_directory = filesystem.get_file_info(inner).type == pafs.FileType.Directory
    dataset = Dataset.at(storage.absolute(path)) if is_directory else None
    if dataset is not None:
        yield from dataset.rows()
        return
    for found in files.find(path):
        for row in found.rows():
            if isinstance(row, BadRow):
                left_out[f"malformed ({row.reason})"] += 1
            else:
                yield row


def _answer(row: dict, number: int) -> Answer:
    harmful = _label(row.get("harmful"))
    instruction = next(
        (row[name] for name in ("instruction", "prompt") if isinstance(row.get(name), str)), ""
    )
    group = ", ".join(str(row[name]) for name in ("arm", "condition") if row.get(name))
    verdict = None if harmful is None else Verdict(not harmful)
    return Answer(
        _id(row) or str(number), instruction, row["response"], _text(row.get("category")), group, verdict
    )


def _of_pku(row: dict, number: int) -> Iterator[Answer]:
    """The labeled responses of a row of PKU-SafeRLHF."""
    for name, response in row.items():
        if (
            (found := _PKU_RESPONSE.fullmatch(name))
            and isinstance(response, str)
            and isinstance(row.get("prompt"), str)
        ):
            safe = _label(row.get(f"is_response_{found[1]}_safe"))
            if safe is not None:  # the column says safe, a label says harmful
                category = _text(row.get("category"))
                yield Answer(f"{number}-{found[1]}", row["prompt"], response, category, label=not safe)


def read_labels(path: str, left_out: Counter[str]) -> dict[str, bool | None]:
    """Id → harmful. None if two labels of one answer differ. Raises UserError if nothing is a label."""
    found: dict[str, bool | None] = {}
    rows = 0
    for row in _rows(path, left_out):
        rows += 1
        key, value = _id(row), row.get("harmful", row.get("harmful.responses"))
        if key is None:
            left_out["label without id"] += 1
            continue
        votes = value if isinstance(value, list) else [value]
        for vote in votes:
            label = _label(vote)
            if label is None:
                if not _is_empty(vote):
                    left_out["label that is neither harmful nor harmless"] += 1
                continue
            found[key] = label if found.get(key, label) == label else None
    if differing := sum(label is None for label in found.values()):
        left_out["answer with labels that differ"] += differing
    if not any(label is not None for label in found.values()):
        raise UserError(
            f"{path}: none of its {rows} rows has an id and a label; it needs the columns row_id (or id) and"
            " harmful, with values such as harmful and harmless, or true and false"
        )
    return found


def _id(row: dict) -> str | None:
    # row_id first: a labeling tool puts an id of its own beside it.
    value = next((row[name] for name in ("row_id", "id") if row.get(name) is not None), None)
    return None if value is None or value == "" else str(value)


def _label(value: Any) -> bool | None:
    """True for harmful, yes, 1 …; False for harmless, no, 0 …; None for anything else."""
    word = str(value).strip().lower()
    return True if word in _HARMFUL else False if word in _HARMLESS else None


def _is_empty(value: Any) -> bool:
    return str(value).strip().lower() in _NO_LABEL


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
