"""The whole configuration: every field, its unit, its default, its validation.

tree.py        Config, and what its sections must agree on
recipes.py     what `generate` does, one section per method
evaluation.py  the suites every arm is put through

What all sections build on is `pipeline.settings`; the trainers' sections are `pipeline.training.config`.
"""

from collections.abc import Sequence
from pathlib import Path

from pipeline.config.evaluation import CourseCorrectionSuite, Evaluation, Report
from pipeline.config.recipes import Aligned, CourseCorrection, Hint, MistakeAnalysis, Mix, Recipe
from pipeline.config.tree import Arm, Config
from pipeline.settings import file
from pipeline.settings.base import Columns, Draw, Dummy, Endpoint, Inference, Model, Section, Source
from pipeline.settings.file import dump
from pipeline.training.config import DPO, SFT, Lora, Start, Train, Training


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key.sub=value` overrides (values are YAML: `3`, `true`, `[1, 2]`).

    Raises UserError (one sentence) if the file is missing or unreadable, or a key or value is wrong.
    """
    return file.load(Config, path, overrides)
