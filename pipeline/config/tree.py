"""The whole configuration, and what its sections must agree on."""

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.config.evaluation import Evaluation, Report
from pipeline.config.recipes import CourseCorrection, MistakeAnalysis, Mix, Recipe
from pipeline.settings.base import ArmName, Inference, Model, Name, Section, Source, tag
from pipeline.training.config import DPO, SFT, Training


class Arm(Section):
    """One fine-tuned arm: which examples it sees, and where its training differs from `train`."""

    kinds: list[Literal["analysis", "safe", "helpful"]] | None = Field(None, min_length=1, description="of the mixture; sft only")
    train: Training = Field(description="fields that differ from `train`; merged with it when a configuration is read")


class Config(Section):
    run_dir: Name = Field(description="where everything is written: a directory that every node sees (local, NFS), or s3://, gs://")
    seed: int = Field(0, ge=0, lt=2**63)
    model: Model
    instructions: Source | None = Field(None, description="what `generate` reads; needless where a run only evaluates")
    inference: Inference = Inference()
    recipe: Recipe = MistakeAnalysis()
    mix: Mix | None = Field(None, description="of mistake analysis; course correction's pairs are not mixed with anything")
    train: Training = SFT()
    arms: dict[ArmName, Arm] = Field(description="default: sft and mistake_analysis, or dpo where the recipe is course_correction")
    evaluation: Evaluation
    report: Report = Report()

    @property
    def mistake_analysis(self) -> MistakeAnalysis:
        """The recipe where it is mistake analysis, else its defaults: the hint and the reminder that the safety suite evaluates under."""
        return self.recipe if isinstance(self.recipe, MistakeAnalysis) else MistakeAnalysis()

    def field_of(self, arm: str, name: str) -> str:
        """Where the user most likely wrote a setting of an arm's training: under `train`, unless the arm's own differs."""
        same = getattr(self.train, name, None) == getattr(self.arms[arm].train, name)
        return f"train.{name}" if same else f"arms.{arm}.train.{name}"

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_method(cls, tree: Any) -> Any:
        """Arms, mixture and the arms' training depend on other sections; written out here, so that everything is checked in its place."""
        if not isinstance(tree, dict):
            return tree
        corrects = tag(tree.get("recipe", {}), "name", "mistake_analysis") == "course_correction"
        arms = {} if tree.get("instructions") is None else {"dpo": {}} if corrects else DEFAULT_ARMS
        tree = {"arms": arms, **tree}
        if not corrects and tree.get("mix") is None:
            tree["mix"] = {}
        if isinstance(tree["arms"], dict):
            tree["arms"] = {name: _with_training(arm, tree.get("train", {})) for name, arm in tree["arms"].items()}
        return tree

    @model_validator(mode="after")
    def _method_fits_recipe(self) -> "Config":
        corrects = isinstance(self.recipe, CourseCorrection)
        if corrects and self.mix is not None:
            raise ValueError("mix belongs to mistake_analysis; course_correction trains on its preference pairs alone: leave mix out")
        for name, arm in self.arms.items():
            if corrects and not isinstance(arm.train, DPO):
                raise ValueError(f"arms.{name}: course_correction makes preference pairs, which sft cannot use: set train.method: dpo")
            if not corrects and not isinstance(arm.train, SFT):
                raise ValueError(f"arms.{name}: mistake_analysis makes conversations, which dpo cannot use: set train.method: sft")
            if corrects and arm.kinds is not None:
                raise ValueError(f"arms.{name}.kinds: choose examples of a mixture, and course_correction has none: leave kinds out")
            if not corrects and arm.kinds is None:
                raise ValueError(f"arms.{name}.kinds is missing: say which of analysis, safe and helpful the arm is trained on")
        return self

    @model_validator(mode="after")
    def _arms_have_names_of_their_own(self) -> "Config":
        for name in ("vanilla", *self.evaluation.adapters):
            if name in self.arms:
                taken = "the base model itself" if name == "vanilla" else "also a name in evaluation.adapters"
                raise ValueError(f"arms.{name} is {taken}; give the fine-tuned arm another name")
        if "vanilla" in self.evaluation.adapters:
            raise ValueError("evaluation.adapters.vanilla: vanilla is the base model itself; give the adapter another name")
        return self

    @model_validator(mode="after")
    def _arms_have_examples(self) -> "Config":
        if (mix := self.mix) is None:
            return self
        none = {"analysis": not mix.analysis, "safe": not mix.safe, "helpful": mix.helpful is None or not mix.helpful_ratio}
        for name, arm in self.arms.items():
            if all(none[kind] for kind in arm.kinds):
                raise ValueError(f"arms.{name} would have no training example: mix gives no {' or '.join(arm.kinds)} ones")
        return self


DEFAULT_ARMS = {"sft": {"kinds": ["safe", "helpful"]}, "mistake_analysis": {"kinds": ["safe", "helpful", "analysis"]}}


def _with_training(arm: Any, train: Any) -> Any:
    if not (isinstance(arm, dict) and isinstance(train, dict) and isinstance(arm.get("train", {}), dict)):
        return arm  # wrong in a way that validation will name
    return {**arm, "train": _merged(train, arm.get("train", {}))}


def _merged(base: dict, changes: dict) -> dict:
    both = {
        key: _merged(base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict) and isinstance(changes[key], dict)
    }
    return {**base, **changes, **both}
