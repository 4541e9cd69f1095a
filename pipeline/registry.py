"""All methods, suites and trainers, by name. Their unions and sections are the registry of plug-ins."""

from typing import Annotated, Any, get_args

from pydantic import Field

from pipeline.methods.base import Method as AnyMethod
from pipeline.methods.chain_of_hindsight import ChainOfHindsight
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.red_team import RedTeam
from pipeline.methods.source_preferences import SourcePreferences
from pipeline.schema import Schema
from pipeline.settings.base import Section
from pipeline.suites.base import Suite
from pipeline.suites.borderline import Borderline
from pipeline.suites.c2_eval import C2Eval
from pipeline.suites.discrimination import Discrimination
from pipeline.suites.goal_hijacking import GoalHijacking
from pipeline.suites.jailbreak import Jailbreak
from pipeline.suites.safety import Safety
from pipeline.suites.utility import Utility
from pipeline.training.base import Train
from pipeline.training.config import Trainer
from pipeline.training.durability import DURABILITY

Method = Annotated[
    MistakeAnalysis | CourseCorrection | CritiqueRevise | ChainOfHindsight | SourcePreferences | RedTeam,
    Field(discriminator="name"),
]


class Suites(Section):
    """The suites for every arm; one engine start serves all. null = not evaluated."""

    safety: Safety | None = Field(None, description="judged answers to instructions; null = not run")
    c2_eval: C2Eval | None = Field(None, description="judged continuations of prefills; null = not run")
    borderline: Borderline | None = Field(
        None, description="answers to prompts that only sound harmful, by compliance; null = not run"
    )
    jailbreak: Jailbreak | None = Field(None, description="judged answers to attacked goals; null = not run")
    goal_hijacking: GoalHijacking | None = Field(
        None, description="answers to prompts with an injected order; null = not run"
    )
    discrimination: Discrimination | None = Field(
        None, description="rated answers, and rated analyses of them by the same arm; null = not run"
    )
    utility: Utility | None = Field(
        None, description="tasks of lm-evaluation-harness, such as mmlu; null = not run"
    )

    def items(self) -> dict[str, Suite]:
        """The suites that are configured, by name."""
        return {name: suite for name in type(self).model_fields if (suite := getattr(self, name)) is not None}

    @classmethod
    def by_name(cls) -> dict[str, type[Suite]]:
        """All suites, by the names of their fields."""
        return {name: _members(field.annotation, Suite)[0] for name, field in cls.model_fields.items()}


def _members(annotation: Any, base: type) -> list[Any]:
    """The classes of a union."""
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, base) else []
    return [cls for part in get_args(annotation) for cls in _members(part, base)]


SUITES: list[type[Suite]] = [
    cls for field in Suites.model_fields.values() for cls in _members(field.annotation, Suite)
]
METHODS: dict[str, type[AnyMethod]] = {
    cls.model_fields["name"].default: cls for cls in _members(Method, AnyMethod)
}
TRAINERS: dict[str, type[Train]] = {
    cls.model_fields["method"].default: cls for cls in _members(Trainer, Train)
}


# All data sets that a run can write.
WRITTEN = tuple(
    dict.fromkeys(
        [method.generated for method in METHODS.values()]
        + [schema for method in METHODS.values() for schema in method.training_sets]
        + [suite.data_schema for suite in SUITES]
        + [suite.verdicts for suite in SUITES]
        + [DURABILITY]
    )
)


def trainable(schema: Schema) -> bool:
    """Whether a trainer accepts this training set."""
    return any(trainer.accepts == schema for trainer in TRAINERS.values())


def trainer_of(schema: Schema) -> str:
    return next(name for name, trainer in TRAINERS.items() if trainer.accepts == schema)


def find(classes: dict[str, Any], name: Any) -> Any:
    """The class of this name; None if there is none, or the name is no text."""
    return classes.get(name) if isinstance(name, str) else None
