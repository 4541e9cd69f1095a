"""The whole configuration, and consistency checks between its sections.

The unions here are the registry of methods, suites and trainers. Each section is defined next to the code
that it configures; `pipeline.settings` has the base of all sections.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, model_validator

from pipeline.inference import DEFAULT, Engine
from pipeline.inference.base import Engine as AnyEngine
from pipeline.inference.unasked import UNASKED
from pipeline.methods.base import Method as AnyMethod
from pipeline.methods.chain_of_hindsight import ChainOfHindsight
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.source_preferences import SourcePreferences
from pipeline.schema import STAGES, Schema
from pipeline.settings import file
from pipeline.settings.base import AdapterPath, ArmName, Model, Name, Natural, Section, tag
from pipeline.settings.file import dump as dump
from pipeline.settings.walk import sections
from pipeline.suites import VANILLA
from pipeline.suites.base import Suite
from pipeline.suites.c2_eval import C2Eval
from pipeline.suites.safety import Safety
from pipeline.training.config import SFT, Train, Trainer

Method = Annotated[
    MistakeAnalysis | CourseCorrection | CritiqueRevise | ChainOfHindsight | SourcePreferences,
    Field(discriminator="name"),
]


class Suites(Section):
    """The suites for every arm; one engine start serves all. null = not evaluated."""

    safety: Safety | None = Field(None, description="judged answers to instructions; null = not run")
    c2_eval: C2Eval | None = Field(None, description="judged continuations of prefills; null = not run")

    def items(self) -> dict[str, Suite]:
        """The suites that are configured, by name."""
        return {name: suite for name in type(self).model_fields if (suite := getattr(self, name)) is not None}


class Arm(Section):
    """One fine-tuned arm: its kinds of examples, and the training fields that differ from `train`."""

    kinds: list[str] | None = Field(
        None,
        min_length=1,
        description="kinds of examples to train on; pairs of one kind need not name it",
    )
    train: Trainer = Field(
        description="fields that differ from `train`; merged with it when a configuration is read",
    )


class Report(Section):
    """What the report shows."""

    examples: Natural = Field(6, description="masked examples shown")


class Config(Section):
    """One run: what is generated, trained and evaluated, and where the results go."""

    run_dir: Name = Field(
        description="output directory: a directory that every node sees (local, NFS), or s3://, gs://",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of sampling, mixtures and training order")
    model: Model = Field(description="the base model, which generates, is trained and is evaluated")
    engine: Engine = Field(DEFAULT, description="what answers in `generate` and `evaluate`")
    methods: dict[ArmName, Method] = Field(
        {},
        description="methods that generate data and training sets; empty if a run only evaluates",
    )
    train: Trainer = Field(SFT(), description="how arms are trained, unless an arm says otherwise")
    arms: dict[ArmName, Arm] = Field(
        description="adapters to train; left out = the default arms of the methods",
    )
    suites: Suites = Field(Suites(), description="what `evaluate` runs")
    adapters: dict[ArmName, AdapterPath] = Field(
        {},
        description="directories of other adapters of the model, evaluated with the arms",
    )
    report: Report = Field(Report(), description="what the report shows")

    @property
    def arm_names(self) -> list[str]:
        """All evaluated arms and adapters, the base model first."""
        return [VANILLA, *self.arms, *self.adapters]

    @property
    def stages(self) -> list[str]:
        """The stages that the configuration has work for, in their order."""
        trained = all(engine.is_model for _, engine in map(self.engine_of, self.methods))
        # Without methods only `evaluate` is left; preflight reports why it cannot run.
        evaluated = not self.methods or (self.engine.is_model and (trained or not self.arms))
        work = {
            "train": trained and self.arms,
            "evaluate": evaluated and self.suites.items(),
            "report": True,
        }
        return [stage for stage in STAGES if work.get(stage, self.methods)]

    def engine_of(self, method: str) -> tuple[str, AnyEngine]:
        """The engine that a method generates with: (its field, the engine)."""
        own = self.methods[method].engine
        if not self.methods[method].asks_model and self.engine.is_model:
            return f"methods.{method}.engine", UNASKED
        return ("engine", self.engine) if own is None else (f"methods.{method}.engine", own)

    def engines(self, stages: Iterable[str]) -> dict[str, AnyEngine]:
        """The engines that the stages use, by field."""
        stages = set(stages)
        found = dict(map(self.engine_of, self.methods)) if "generate" in stages else {}
        return {**found, "engine": self.engine} if "evaluate" in stages else found

    def models(self) -> dict[str, Model]:
        """The models whose files a stage reads, by field."""
        stages = self.stages
        reads = "train" in stages or any(engine.reads_model for engine in self.engines(stages).values())
        if "evaluate" in stages:
            reads = reads or any(suite.reads_tokenizer for suite in self.suites.items().values())
        found = {"model": self.model} if reads else {}
        for name, method in self.methods.items():
            if self.engine_of(name)[1].reads_model:
                found |= sections(method, Model, f"methods.{name}")
        return found

    def field_of(self, arm: str, name: str) -> str:
        """The likely field of an arm's training setting: under `train`, unless the arm's value differs."""
        same = getattr(self.train, name, None) == getattr(self.arms[arm].train, name)
        return f"train.{name}" if same else f"arms.{arm}.train.{name}"

    def training_sets(self) -> dict[Schema, dict[str, AnyMethod]]:
        """The training sets of the arms (without arms: of all methods), with the methods that make them."""
        used = {arm.train.accepts for arm in self.arms.values()}
        found: dict[Schema, dict[str, AnyMethod]] = {}
        for name, method in self.methods.items():
            for schema in method.training_sets:
                if schema in used or not used:
                    found.setdefault(schema, {})[name] = method
        return found

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, tree: Any) -> Any:
        """Complete arms and their training, which depend on other sections, before validation."""
        if not isinstance(tree, dict):
            return tree
        for key, place in _MOVED.items():
            if _holds(tree, key.split(".")):
                raise ValueError(f"{key} is no longer a key: {place}")
        if (
            tag(tree.get("model"), "path", None) == "dummy"
            and tag(tree.get("engine"), "kind", None) != "dummy"
        ):
            raise ValueError("model.path = 'dummy' is no longer a model: set engine: {kind: dummy}")
        if "arms" not in tree:
            tree = {**tree, "arms": _default_arms(tree)}
        if isinstance(tree["arms"], dict):
            tree = {
                **tree,
                "arms": {
                    name: _with_training(arm, tree.get("train", {})) for name, arm in tree["arms"].items()
                },
            }
        return tree

    @model_validator(mode="after")
    def _something_to_do(self) -> "Config":
        if not self.methods and not self.suites.items():
            raise ValueError(
                "nothing would be done: give methods (to generate and train) or suites (to evaluate)"
            )
        if self.arms and not self.methods:
            raise ValueError(
                "arms need a method that makes their training sets: give methods, or name finished adapters"
                " in adapters"
            )
        return self

    @model_validator(mode="after")
    def _methods_make_different_data_sets(self) -> "Config":
        makers: dict[str, str] = {}
        for name, method in self.methods.items():
            if (other := makers.setdefault(method.generated.name, name)) != name:
                raise ValueError(
                    f"methods.{name} and methods.{other} both make {method.generated.name}: use a run"
                    " directory for each"
                )
        return self

    @model_validator(mode="after")
    def _arms_have_examples(self) -> "Config":
        for name, arm in self.arms.items():
            _check_arm(name, arm, self.methods)
        return self

    @model_validator(mode="after")
    def _arms_have_names_of_their_own(self) -> "Config":
        for name in (VANILLA, *self.adapters):
            if name in self.arms:
                taken = "the base model itself" if name == VANILLA else "also a name in adapters"
                raise ValueError(f"arms.{name} is {taken}; give the fine-tuned arm another name")
        if VANILLA in self.adapters:
            raise ValueError(
                "adapters.vanilla: vanilla is the base model itself; give the adapter another name"
            )
        return self


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML configuration and apply `key.sub=value` overrides (values are YAML: `3`, `true`, `[1, 2]`).

    Raises UserError (one sentence) if the file is missing or unreadable, or a key or value is wrong.
    """
    return file.load(Config, path, overrides)


# Keys of older configurations, and their new place.
_MOVED = {
    "instructions": "it moved to the method that reads it, as methods.NAME.instructions",
    "recipe": "each method has a name, as methods.NAME: {name: mistake_analysis, …}",
    "mix": "it moved to mistake analysis, as methods.NAME.mix",
    "evaluation": "it became suites.safety, suites.c2_eval (for course_correction) and adapters",
    "model.dummy": "it became an engine, as engine: {kind: dummy, latency_s: …, failures: …, tokens: …}",
    "inference.endpoint": (
        "it became an engine, as methods.NAME.engine: {kind: openai, url: …, model: …} for a server that only"
        " generates, or as engine"
    ),
    "inference": "it became engine, with the same fields, as engine: {kind: vllm, actors: …, num_gpus: …}",
}


def _holds(tree: Any, keys: list[str]) -> bool:
    """Whether parsed YAML has a value under these keys."""
    return isinstance(tree, dict) and keys[0] in tree and (not keys[1:] or _holds(tree[keys[0]], keys[1:]))


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
    )
)


def _default_arms(tree: dict) -> dict:
    """The default arms of the methods, in the form of parsed YAML."""
    methods, train = tree.get("methods"), tree.get("train", {})
    arms: dict[str, dict] = {}
    for section in methods.values() if isinstance(methods, dict) else ():
        method = (
            _known(METHODS, tag(section, "name", None)) if isinstance(section, dict | AnyMethod) else None
        )
        if method is None:
            continue  # invalid; validation reports it
        for name, arm in method.default_arms.items():
            given = _known(TRAINERS, tag(train, "method", "sft")) if isinstance(train, dict | Train) else None
            fits = given is None or given.accepts in method.training_sets
            trainer = {} if fits else {"train": {"method": _trainer_of(method.training_sets[0])}}
            if fits and given is not None and not method.example_kinds.get(given.accepts.name):
                arm = {key: value for key, value in arm.items() if key != "kinds"}
            arms[name] = {**arm, **trainer}
    return arms


def _known(classes: dict[str, Any], name: Any) -> Any:
    return classes.get(name) if isinstance(name, str) else None


def _trainer_of(schema: Schema) -> str:
    return next(name for name, trainer in TRAINERS.items() if trainer.accepts == schema)


def _check_arm(name: str, arm: Arm, methods: Mapping[str, AnyMethod]) -> None:
    """Raises ValueError if no method makes the arm's training set, or examples of the arm's kinds."""
    makers = [method for method in methods.values() if arm.train.accepts in method.training_sets]
    if not makers:
        made = sorted({schema.name for method in methods.values() for schema in method.training_sets})
        trainer = _trainer_of(next(iter(methods.values())).training_sets[0])
        raise ValueError(
            f"arms.{name}: {arm.train.method} trains on {arm.train.accepts.name}, and the methods make"
            f" {' and '.join(made)}: set train.method: {trainer}"
        )
    if refused := arm.train.refuses(max(method.widest_gap for method in makers)):
        raise ValueError(f"arms.{name}.train.{refused}")
    known = [kind for method in makers for kind in method.example_kinds.get(arm.train.accepts.name, ())]
    if arm.kinds is None:
        if len(known) > (0 if arm.train.needs_kinds else 1):
            raise ValueError(
                f"arms.{name}.kinds is missing: say which of {', '.join(known)} the arm is trained on"
            )
        return
    if not known:
        raise ValueError(
            f"arms.{name}.kinds: {arm.train.accepts.name} has no kinds of examples: leave kinds out"
        )
    if unknown := [kind for kind in arm.kinds if kind not in known]:
        raise ValueError(
            f"arms.{name}.kinds: {unknown[0]} is not a kind of example; known are {', '.join(known)}"
        )
    if not any(kind in (method.kinds or ()) for method in makers for kind in arm.kinds):
        raise ValueError(
            f"arms.{name} would have no training example: mix gives no {' or '.join(arm.kinds)} ones"
        )


def _with_training(arm: Any, train: Any) -> Any:
    """An arm merged with `train`.

    An arm with another training method takes only the fields common to both.
    """
    if not (isinstance(arm, dict) and isinstance(train, dict) and isinstance(arm.get("train", {}), dict)):
        return arm  # invalid; validation reports it
    own = arm.get("train", {})
    if own.get("method", base := train.get("method", "sft")) != base:
        train = {
            key: value
            for key, value in train.items()
            if key in Train.model_fields and key not in _OF_THE_METHOD
        }
    return {**arm, "train": _merged(train, own)}


# meaning or scale differs between methods
_OF_THE_METHOD = {"method", "epochs", "learning_rate", "batch_size", "max_length"}


def _merged(base: dict, changes: dict) -> dict:
    both = {
        key: _merged(base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict) and isinstance(changes[key], dict)
    }
    return {**base, **changes, **both}
