"""What is done with one row, one file per method; and what each method makes on its way from instructions to a training set."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pipeline.config import Config
from pipeline.schema import CORRECTIONS, MISTAKES, PREFERENCES, SFT, Schema
from pipeline.sources import instructions


@dataclass(frozen=True)
class Method:
    """`generate` runs `recipe(config)` over the instructions into data set `generated`; `mix` makes `training_set` of its rows.

    examples: rows of the training set from (config, rows of the generated data set, reasons of what is left out: a Counter to fill).
    nothing:  why a training set can be empty, for the message that says so.
    """

    generated: Schema
    recipe: Callable[[Config], Callable]
    training_set: Schema
    examples: Callable[[Config, Iterable[dict], Counter], Iterator[dict]]
    nothing: str


def method(config: Config) -> Method:
    return {"mistake_analysis": _MISTAKE_ANALYSIS, "course_correction": _COURSE_CORRECTION}[config.recipe.name]


def _analyse(config: Config) -> Callable:
    from pipeline.recipes.mistake_analysis import MistakeAnalysisRecipe

    return MistakeAnalysisRecipe(config.recipe)


def _mixture(config: Config, rows: Iterable[dict], _drops: Counter) -> Iterator[dict]:
    from pipeline.recipes import mixture

    return mixture.examples(config, rows, instructions.well_formed(config.mix.helpful))


def _correct(config: Config) -> Callable:
    from pipeline.recipes.course_correction import CourseCorrectionRecipe

    return CourseCorrectionRecipe(config.recipe, config.seed)


def _pairs(_config: Config, rows: Iterable[dict], drops: Counter) -> Iterator[dict]:
    from pipeline.recipes import course_correction

    return course_correction.pairs(rows, drops)


_MISTAKE_ANALYSIS = Method(MISTAKES, _analyse, SFT, _mixture, "no mistake was analysed and no source has a safe response")
_COURSE_CORRECTION = Method(CORRECTIONS, _correct, PREFERENCES, _pairs, "no request kept two responses that differ")
