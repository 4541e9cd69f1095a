"""The whole configuration: every field, its unit, its default, its validation. The only place with defaults.

tree.py        Config, and what its sections must agree on
base.py        model, sources, engines, sampling
judges.py      judges of responses and of continuations
recipes.py     what `generate` does, one section per method
evaluation.py  the suites every arm is put through
file.py        reading it from YAML: every wrong key or value becomes one sentence
"""

from pipeline.config.base import Columns, Draw, Dummy, Endpoint, Inference, Model, Section, Source
from pipeline.config.evaluation import CourseCorrectionSuite, Evaluation, Report
from pipeline.config.file import dump, load
from pipeline.config.judges import CorrectionJudge, CorrectionPhrases, Judge, RatingJudge, RefusalJudge, ToyJudge, YesNoJudge
from pipeline.config.recipes import Aligned, CourseCorrection, Hint, MistakeAnalysis, Mix, Recipe
from pipeline.config.tree import Arm, Config
from pipeline.training.config import DPO, SFT, Lora, Start, Train, Training
