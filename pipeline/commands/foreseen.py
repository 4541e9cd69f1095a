"""The optimizer steps of trainings whose sets are not yet written.

The recipes run on the first rows of their sources, and get texts of a fixed length in the place of a model's.
What `mix` and the trainers make of that has the steps of a training, about: once with short texts, once with
long ones.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain, cycle, islice

import pyarrow.parquet as pq

from pipeline.commands import recording
from pipeline.commands.recording import RecordingChat
from pipeline.config import Arm, Config
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.methods.base import Method
from pipeline.schema import OK, Schema
from pipeline.sources.counts import Accounts
from pipeline.templates import ChatTemplate
from pipeline.training import equal

ROWS = 300  # of a method that are tried
MOST_COUNTED = 10_000  # of the other rows, if a plan has not counted them
SHORT = 30  # words of a short text
LONG = 4  # long texts: as many of them are as long as an item of training may be
_FILE = "data.parquet"
# In the place of what a model writes: words as long, and in as few tokens, as those of most answers.
_WORDS = [
    *("this", "answer", "is", "harmful", "because", "it", "tells", "how", "to", "do", "what", "would"),
    *("hurt", "other", "people", "and", "a", "safe", "answer", "would", "say", "no", "and", "say", "why"),
]


def steps(
    config: Config, template: ChatTemplate | None, rows: Mapping[str, int | None]
) -> dict[str, tuple[int, int]]:
    """Arm → its steps with short texts, and with long ones; without arms of which that cannot be foreseen.

    rows: method → how many instructions its source has; None = not counted. A method that is not among them
    has sources out of reach.
    """
    if template is None:
        return {}
    fits = min((arm.train.max_length for arm in config.arms.values()), default=0)
    short, long = (_steps(config, template, rows, most) for most in (SHORT, max(SHORT, fits // LONG)))
    return {arm: (min(short[arm], long[arm]), max(short[arm], long[arm])) for arm in short if arm in long}


def _steps(
    config: Config, template: ChatTemplate, rows: Mapping[str, int | None], most_words: int
) -> dict[str, int]:
    own: dict[str, int] = {}
    for schema, methods in config.training_sets().items():
        if not rows.keys() >= methods.keys() or not _arms(config, schema):
            continue
        made, factor = [], 1.0
        for name, method in methods.items():
            left = _rows(method)
            used = list(islice(left, ROWS))
            with suppress(UserError):  # a source of `mix` that preflight does not read
                made += _examples(config, method, schema, used, most_words)
            instructions = rows[name]
            every = (
                len(used) + sum(1 for _ in islice(left, MOST_COUNTED))
                if instructions is None
                else instructions * method.samples
            )
            factor = max(factor, every / max(1, len(used)))
        own |= {arm: round(factor * count) for arm, count in _trained_on(config, template, schema, made)}
    alike = [equal.Arm(config.arms[arm].train, count) for arm, count in own.items()]
    return {arm: equal.target(equal.Arm(config.arms[arm].train, own[arm]), alike) for arm in own}


def _trained_on(
    config: Config, template: ChatTemplate, schema: Schema, rows: list[dict]
) -> Iterator[tuple[str, int]]:
    """The arms that train on these rows, with their steps."""
    with tempfile.TemporaryDirectory() as directory:
        pq.write_table(schema.table(rows), os.path.join(directory, _FILE))
        for arm, section in _arms(config, schema).items():
            dataset = Dataset(directory, {_FILE: None})
            with suppress(UserError):  # of texts that no model wrote, nothing may be left
                found = section.train.prepare(template, dataset, section.kinds, config.seed)
                yield arm, equal.steps(found.runs, section.train)


def _arms(config: Config, schema: Schema) -> dict[str, Arm]:
    return {name: arm for name, arm in config.arms.items() if arm.train.accepts == schema}


def _rows(method: Method) -> Iterator[dict]:
    return (row for row in method.rows(Accounts()) if row.get("status") == OK)


def _examples(
    config: Config, method: Method, schema: Schema, rows: list[dict], most_words: int
) -> list[dict]:
    """The training rows that would be made of these rows."""

    def writes(step: str, most_tokens: int) -> str:
        return " ".join(islice(chain([step], cycle(_WORDS)), min(most_tokens, most_words)))

    recipe = method.model_copy(update={"gates": None}).recipe(config.seed)  # the texts would not pass
    empty = dict.fromkeys(method.generated.names)
    results = recording.run(recipe, ((row, RecordingChat(writes)) for row in rows))
    made = [
        {**empty, **{key: value for key, value in row.items() if key in empty}, "status": OK} | result
        for row, result in zip(rows, results, strict=True)
    ]
    return list(method.examples(schema, made, Counter(), config.seed, Accounts()))
