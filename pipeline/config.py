"""The whole configuration, and consistency checks between its sections.

The unions here are the registry of methods, suites and trainers. Each section is defined next to the code
that it configures; `pipeline.settings` has the base of all sections.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, Field, model_validator

from pipeline import old_keys
from pipeline.inference import DEFAULT, Engine
from pipeline.inference.base import Engine as AnyEngine
from pipeline.inference.unasked import UNASKED
from pipeline.methods.base import Method as AnyMethod
from pipeline.methods.chain_of_hindsight import ChainOfHindsight
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.red_team import RedTeam
from pipeline.methods.source_preferences import SourcePreferences
from pipeline.schema import STAGES, Schema
from pipeline.settings import file
from pipeline.settings.base import (
    AdapterPath,
    ArmName,
    Model,
    ModelName,
    Name,
    NameKind,
    NameOrEmpty,
    Natural,
    Section,
    Source,
    tag,
)
from pipeline.settings.file import dump as dump
from pipeline.settings.walk import paths, sections
from pipeline.suites import VANILLA
from pipeline.suites.asked import Ask
from pipeline.suites.base import Suite
from pipeline.suites.borderline import Borderline
from pipeline.suites.c2_eval import C2Eval
from pipeline.suites.discrimination import Discrimination
from pipeline.suites.goal_hijacking import GoalHijacking
from pipeline.suites.jailbreak import Jailbreak
from pipeline.suites.safety import Safety
from pipeline.suites.utility import Utility
from pipeline.tracking import Kind as TrackerKind
from pipeline.training.config import SFT, Train, Trainer
from pipeline.training.durability import DURABILITY, Durability, Further

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


class NamedModel(Model):
    """A model beside the run's own: a judge, or the aligned model of course correction. It has an engine of
    its own. A server is an entry whose engine is a client of it, and which has no path."""

    path: NameOrEmpty = Field(
        "", description="`toy`, a local directory or a hub id; left out if the engine is a server"
    )
    engine: Engine = Field(
        DEFAULT,
        description=(
            "what answers for this model. If the cluster has room for the engines of all models, they stand"
            " side by side; else it has a pass of its own over the rows, after the engines before it have"
            " ended. A server is asked by the actors of whatever engine runs"
        ),
    )

    @property
    def model(self) -> Model:
        """The model without its engine."""
        return Model.model_construct(**{name: getattr(self, name) for name in Model.model_fields})

    def determines(self) -> dict:
        """What determines its texts, for fingerprints."""
        return (self.model.identity() if self.engine.reads_model else {}) | self.engine.determines()

    @model_validator(mode="after")
    def _has_files_if_read(self) -> "NamedModel":
        if self.engine.reads_model and not self.path:
            raise ValueError(
                "path is missing: give the model's directory or hub id, or the engine of a server"
            )
        if self.path and not self.engine.reads_model and self.engine.is_model:
            raise ValueError(
                f"path = {self.path}: engine.kind = {self.engine.kind} has its own model; leave path out"
            )
        return self


@dataclass(frozen=True)
class Answering:
    """A model and the engine that answers for it, with their paths in the configuration."""

    field: str
    model: Model
    engine_field: str
    engine: AnyEngine


class Arm(Section):
    """One fine-tuned arm: its kinds of examples, and the training fields that differ from `train`."""

    kinds: list[str] | None = Field(
        None,
        min_length=1,
        description="kinds of examples to train on; pairs of one kind need not name it",
    )
    train: Trainer = Field(
        description=(
            "fields that differ from `train`; merged with it when a configuration is read. `seeds` may also"
            " stand in the arm itself, as arms.NAME.seeds"
        ),
    )
    ask: Ask | None = Field(
        None,
        description=(
            "how every suite asks the arm: a text in the place of the last user turn, which stands in it"
            " as `{{ instruction }}`; left out = as the methods that make its kinds want it; null = as other"
            " arms"
        ),
    )


@dataclass(frozen=True)
class Replica:
    """An adapter to train: an arm with one of its training seeds."""

    arm: str
    section: Arm
    seed: int


class Report(Section):
    """What the report shows."""

    examples: Natural = Field(6, description="masked examples shown")
    judge_errors: list[Name] = Field(
        [],
        description=(
            "files of `setbacks judge --keep` with measured errors of judges, beside those in"
            " RUN/judge_errors; one that was measured for another judge, prompt or model is not used"
        ),
    )


def _each_once(names: list[str]) -> list[str]:
    if len(set(names)) < len(names):
        raise ValueError("names a tracker twice; name each once")
    return names


class Config(Section):
    """One run: what is generated, trained and evaluated, and where the results go."""

    run_dir: Name = Field(
        description="output directory: a directory that every node sees (local, NFS), or s3://, gs://",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of sampling, mixtures and training order")
    model: Model = Field(description="the base model, which generates, is trained and is evaluated")
    engine: Engine = Field(DEFAULT, description="what answers in `generate` and `evaluate`")
    models: dict[ModelName, NamedModel] = Field(
        {}, description="other models and servers, which judges and methods name"
    )
    methods: dict[ArmName, Method] = Field(
        {},
        description="methods that generate data and training sets; empty if a run only evaluates",
    )
    train: Trainer = Field(SFT(), description="how arms are trained, unless an arm says otherwise")
    arms: dict[ArmName, Arm] = Field(
        description="adapters to train; left out = the default arms of the methods",
    )
    durability: Durability | None = Field(
        None, description="a second fine-tuning of the arms, each evaluated after N steps; null = none"
    )
    suites: Suites = Field(Suites(), description="what `evaluate` runs")
    adapters: dict[ArmName, AdapterPath] = Field(
        {},
        description="directories of other adapters of the model, evaluated with the arms",
    )
    report: Report = Field(Report(), description="what the report shows")
    track: Annotated[list[TrackerKind], AfterValidator(_each_once)] = Field(
        [],
        description=(
            "trackers to which training and results are reported; [] = nothing is sent anywhere, whatever"
            " keys the environment holds. See docs/tracking.md"
        ),
    )
    gpu_memory_gib: float | None = Field(
        None,
        gt=0,
        description=(
            "memory of each GPU, compared with what engines and trainers need; null = by the kind that the"
            " cluster, or accelerator_type, names"
        ),
    )

    def only(self, suites: Iterable[str]) -> "Config":
        """The configuration without the suites that are not among these."""
        kept, wanted = self.suites.items(), set(suites)
        return self.model_copy(
            update={"suites": Suites(**{name: suite for name, suite in kept.items() if name in wanted})}
        )

    @property
    def replicas(self) -> dict[str, Replica]:
        """The adapters to train, by name: the arm's own, or NAME_seedN for each of several seeds."""
        return {
            made: replica
            for name, arm in self.arms.items()
            for made, replica in _replicas(name, arm, self.seed).items()
        }

    @property
    def arm_names(self) -> list[str]:
        """All evaluated adapters, the base model first."""
        return [VANILLA, *self.replicas, *self.further, *self.adapters]

    @property
    def further(self) -> dict[str, Further]:
        """The adapters that are trained further, by name: those of every seed of an arm."""
        if self.durability is None:
            return {}
        arms = {VANILLA: (self.train, [VANILLA])} | {
            name: (arm.train, list(_replicas(name, arm, self.seed))) for name, arm in self.arms.items()
        }
        return {one.name: one for one in self.durability.further(arms)}

    def stage_names(self, name: str) -> list[str]:
        """The names under which the adapters after a replica's stages are evaluated, at most; the last stage
        is the replica itself."""
        train = self.replicas[name].section.train
        gaps = [m.widest_gap for m in self.methods.values() if train.accepts in m.training_sets]
        return [f"{name}_stage{number}" for number in range(1, train.most_stages(max(gaps, default=1)))]

    def adapter_field(self, name: str) -> str:
        """The section that an evaluated adapter is of: `arms.sft` of `sft_seed1` and `sft_stage2` too."""
        if name in self.adapters:
            return f"adapters.{name}"
        begun = self.further[name].arm if name in self.further else name
        for made, replica in self.replicas.items():
            if begun == made or begun in self.stage_names(made):
                return f"arms.{replica.arm}"
        return "durability"

    @property
    def asks(self) -> dict[str, str]:
        """The adapters (after stages, or trained further, too) that are asked with a text of their own, and
        that text."""
        further = self.further.values()
        return {
            made: replica.section.ask
            for name, replica in self.replicas.items()
            if replica.section.ask
            for made in (name, *self.stage_names(name), *(one.name for one in further if one.arm == name))
        }

    @property
    def stages(self) -> list[str]:
        """The stages that the configuration has work for, in their order."""
        trained = all(self.generator(name).engine.is_model for name in self.methods)
        # Without methods only `evaluate` is left; preflight reports why it cannot run.
        evaluated = not self.methods or (self.engine.is_model and (trained or not self.arms))
        suites = self.suites.items().values()
        work = {
            "train": trained and self.arms,
            "evaluate": evaluated and suites,
            "rejudge": evaluated and any(suite.judges_later for suite in suites),
            "report": True,
        }
        return [stage for stage in STAGES if work.get(stage, self.methods)]

    def answering(self, name: str | None) -> Answering:
        """An entry of `models`; None is the run's own model."""
        if name is None:
            return Answering("model", self.model, "engine", self.engine)
        named = self.models[name]
        return Answering(f"models.{name}", named.model, f"models.{name}.engine", named.engine)

    def is_own_model(self, name: str) -> bool:
        """Whether an entry of `models` is the run's own model: the same files, or the same server's."""
        own, other = self.answering(None), self.answering(name)
        if own.engine.reads_model != other.engine.reads_model:
            return False
        if own.engine.reads_model:
            return (own.model.path, own.model.revision) == (other.model.path, other.model.revision)
        return own.engine.determines() == other.engine.determines()

    def generator(self, method: str) -> Answering:
        """What a method generates with."""
        section = self.methods[method]
        found = self.answering(section.generator[0])
        own: AnyEngine | None = section.engine
        if not section.asks_model and self.engine.is_model:
            own = UNASKED
        return found if own is None else replace(found, engine_field=f"methods.{method}.engine", engine=own)

    def named(self, stages: Iterable[str]) -> dict[str, str]:
        """The entries of `models` that the stages use, by the field that names them."""
        found: dict[str, str] = {}
        for name, method in self.methods.items() if "generate" in stages else ():
            found |= paths(method, NameKind.MODEL, f"methods.{name}")
        for name, suite in self.suites.items().items():
            again = tuple(f"suites.{name}.more_judges.{judge}." for judge in suite.judges_later)
            for field, model in paths(suite, NameKind.MODEL, f"suites.{name}").items():
                if ("rejudge" if field.startswith(again) else "evaluate") in stages:
                    found[field] = model
        return found

    def used(self, stages: Iterable[str]) -> list[Answering]:
        """The models that answer in the stages, with their engines; one that is used twice is in it twice."""
        stages = set(stages)
        found = [self.generator(name) for name in self.methods] if "generate" in stages else []
        suites = self.suites.items().values()
        asked_again = any(judge.tokens() for suite in suites for judge in suite.judges_later.values())
        if "evaluate" in stages or ("rejudge" in stages and asked_again):
            found.append(self.answering(None))
        return found + [self.answering(name) for name in dict.fromkeys(self.named(stages).values())]

    def engines(self, stages: Iterable[str]) -> dict[str, AnyEngine]:
        """The engines that the stages use, by field."""
        return {one.engine_field: one.engine for one in self.used(stages)}

    def passes(self, stage: str) -> dict[str, AnyEngine]:
        """The engines that take turns in a stage, by field, in the order of their first turns."""
        named = {self.answering(name).engine_field for name in self.named([stage]).values()}
        first = {self.generator(name).engine_field for name in self.methods} if stage == "generate" else set()
        if stage == "rejudge":
            first = named  # a server that judges alone has actors of its own
        return {
            field: engine
            for field, engine in self.engines([stage]).items()
            if field in first or not (engine.is_client and field in named)
        }

    def asked_together(self, stage: str) -> list[dict[str, AnyEngine]]:
        """The engines that rows of a stage ask, by field, a group per own model, which is the first.

        Only groups of several. A server needs no engine, and a judge of `rejudge` is asked alone.
        """
        owns: dict[str, Answering] = {}
        if stage == "generate":
            owns = {f"methods.{name}.": self.generator(name) for name in self.methods}
        elif stage == "evaluate":
            owns = {"suites.": self.answering(None)}
        found: dict[str, dict[str, AnyEngine]] = {}
        for place, own in owns.items():
            group = found.setdefault(own.engine_field, {own.engine_field: own.engine})
            for field, name in self.named([stage]).items():
                one = self.answering(name)
                if field.startswith(place) and not one.engine.is_client:
                    group[one.engine_field] = one.engine
        return [group for group in found.values() if len(group) > 1]

    def read_models(self) -> dict[str, Model]:
        """The models whose files a stage reads, by field."""
        stages = self.stages
        found = {one.field: one.model for one in self.used(stages) if one.engine.reads_model}
        suites = self.suites.items().values() if "evaluate" in stages else ()
        if "train" in stages or any(suite.reads_tokenizer for suite in suites):
            found = {"model": self.model} | found
        return found

    def trained_on(self) -> dict[str, Source]:
        """The sources of the methods, by field."""
        return {
            field: source
            for name, method in self.methods.items()
            for field, source in sections(method, Source, f"methods.{name}").items()
        }

    def field_of(self, arm: str, name: str) -> str:
        """The likely field of an arm's training setting: under `train`, unless the arm's value differs."""
        same = getattr(self.train, name, None) == getattr(self.arms[arm].train, name)
        return f"train.{name}" if same else f"arms.{arm}.train.{name}"

    def training_sets(self) -> dict[Schema, dict[str, AnyMethod]]:
        """The training sets of the arms (without arms: of all methods), with the methods that make them.

        A set that no trainer accepts is among them: it is made for other runs.
        """
        used = {arm.train.accepts for arm in self.arms.values()}
        named = {kind for arm in self.arms.values() for kind in arm.kinds or ()}
        found: dict[Schema, dict[str, AnyMethod]] = {}
        for name, method in self.methods.items():
            for schema in method.training_sets:
                kinds = set(method.example_kinds.get(schema.name, ()))
                if kinds and kinds <= method.if_named - named:
                    continue
                if schema in used or not used or not trainable(schema):
                    found.setdefault(schema, {})[name] = method
        return found

    @model_validator(mode="before")
    @classmethod
    def _written_out(cls, tree: Any) -> Any:
        """Complete arms and their training, which depend on other sections, before validation."""
        if not isinstance(tree, dict):
            return tree
        tree = old_keys.answered(tree)
        if "arms" not in tree:
            tree = {**tree, "arms": _default_arms(tree)}
        if isinstance(tree["arms"], dict):
            tree = {
                **tree,
                "arms": {
                    name: _with_ask(
                        _with_training(str(name), arm, tree.get("train", {})), tree.get("methods")
                    )
                    for name, arm in tree["arms"].items()
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
    def _seen_by_methods(self) -> "Config":
        for name, suite in self.suites.items().items():
            if suite.exclude_seen and not self.methods:
                raise ValueError(
                    f"suites.{name}.exclude_seen compares with the instructions of methods, and the run has"
                    " none: leave it out"
                )
        return self

    @model_validator(mode="after")
    def _names_of_models_are_known(self) -> "Config":
        for field, name in self.named(STAGES).items():
            if name not in self.models:
                known = f"known are {', '.join(self.models)}" if self.models else "there are none"
                raise ValueError(f"{field} = {name}: models has no such entry; {known}")
        for name, method in self.methods.items():
            if method.engine is not None and (used := method.generator[0]) is not None:
                raise ValueError(
                    f"methods.{name}.engine: {name} generates with models.{used}, which has its own engine;"
                    f" leave it out, or set models.{used}.engine"
                )
        return self

    @model_validator(mode="after")
    def _judges_have_data_sets_of_their_own(self) -> "Config":
        makers: dict[str, str] = {}
        for name, suite in self.suites.items().items():
            for judge in suite.judges_later:
                field, made = f"suites.{name}.more_judges.{judge}", suite.verdicts_name(judge)
                if (other := makers.setdefault(made, field)) != field:
                    raise ValueError(f"{field} and {other} both make {made}: give one of them another name")
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
    def _further_arms_begin_from_arms(self) -> "Config":
        if self.durability is None:
            return self
        if not self.arms:
            raise ValueError("durability trains arms further: give arms, or leave it out")
        for arm in self.durability.arms:
            if arm not in (VANILLA, *self.arms):
                known = ", ".join([VANILLA, *self.arms])
                raise ValueError(f"durability.arms: {arm} is not an arm of this run; known are {known}")
        self.durability.check(self.further.values(), self.train)
        for name in self.further:
            if name in self.arms or name in self.adapters or len(name) > 60:
                raise ValueError(
                    f"durability: {name} would be an arm's name that is taken or too long; rename the arm"
                )
        return self

    @model_validator(mode="after")
    def _arms_have_names_of_their_own(self) -> "Config":
        for name in (VANILLA, *self.adapters):
            if name in self.arms:
                taken = "the base model itself" if name == VANILLA else "also a name in adapters"
                raise ValueError(f"arms.{name} is {taken}; give the fine-tuned arm another name")
        for arm, section in self.arms.items():
            names = _replicas(arm, section, self.seed)
            stages = [stage for name in names for stage in self.stage_names(name)]
            for made in [name for name in (*names, *stages) if name != arm]:
                if made in self.arms or made in self.adapters:
                    of = "arms" if made in self.arms else "adapters"
                    raise ValueError(
                        f"{of}.{made} is also the name of an adapter that arms.{arm} makes of its"
                        " seeds or stages; give it another name"
                    )
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


def _replicas(name: str, arm: Arm, seed: int) -> dict[str, Replica]:
    """An arm's adapters, by name. seed: the run's."""
    seeds = arm.train.seeds or [seed]
    return {name if len(seeds) == 1 else f"{name}_seed{one}": Replica(name, arm, one) for one in seeds}


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
        for name, arm in method.arms_by_default(section).items():
            given = _known(TRAINERS, tag(train, "method", "sft")) if isinstance(train, dict | Train) else None
            fits = given is None or given.accepts in method.training_sets
            trainer = {} if fits else {"train": {"method": _trainer_of(method.training_sets[0])}}
            if fits and given is not None and not method.example_kinds.get(given.accepts.name):
                arm = {key: value for key, value in arm.items() if key != "kinds"}
            arms[name] = {**arm, **trainer}
    return arms


def _known(classes: dict[str, Any], name: Any) -> Any:
    return classes.get(name) if isinstance(name, str) else None


def trainable(schema: Schema) -> bool:
    """Whether a trainer accepts this training set."""
    return any(trainer.accepts == schema for trainer in TRAINERS.values())


def _trainer_of(schema: Schema) -> str:
    return next(name for name, trainer in TRAINERS.items() if trainer.accepts == schema)


def _check_arm(name: str, arm: Arm, methods: Mapping[str, AnyMethod]) -> None:
    """Raises ValueError if no method makes the arm's training set, or examples of the arm's kinds."""
    makers = [method for method in methods.values() if arm.train.accepts in method.training_sets]
    if not makers:
        made = sorted({schema.name for method in methods.values() for schema in method.training_sets})
        accepted = [set for method in methods.values() for set in method.training_sets if trainable(set)]
        if not accepted:
            raise ValueError(
                f"arms.{name}: nothing is trained on {' and '.join(made)}, and the methods make nothing else:"
                " leave arms out, or give a method that makes training examples"
            )
        trainer = _trainer_of(accepted[0])
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


def _with_training(name: str, arm: Any, train: Any) -> Any:
    """An arm merged with `train`.

    An arm with another training method takes only the fields common to both.
    """
    if not (isinstance(arm, dict) and isinstance(train, dict) and isinstance(arm.get("train", {}), dict)):
        return arm  # invalid; validation reports it
    own = arm.get("train", {})
    if "seeds" in arm:
        if "seeds" in own:
            raise ValueError(f"arms.{name}.seeds and arms.{name}.train.seeds are the same setting: give one")
        own = {**own, "seeds": arm["seeds"]}
        arm = {key: value for key, value in arm.items() if key != "seeds"}
    if own.get("method", base := train.get("method", "sft")) != base:
        train = {
            key: value
            for key, value in train.items()
            if key in Train.model_fields and key not in _OF_THE_METHOD
        }
    return {**arm, "train": _merged(train, own)}


def _with_ask(arm: Any, methods: Any) -> Any:
    """An arm with `ask`, if it does not say how it is asked and a method that makes one of its kinds does."""
    if not isinstance(arm, dict) or "ask" in arm or not isinstance(arm.get("kinds"), list):
        return arm
    for section in methods.values() if isinstance(methods, dict) else ():
        method = (
            _known(METHODS, tag(section, "name", None)) if isinstance(section, dict | AnyMethod) else None
        )
        for kind, text in method.asks(section).items() if method else ():
            if kind in arm["kinds"]:
                return {**arm, "ask": text}
    return arm


# meaning or scale differs between methods
_OF_THE_METHOD = {"method", "epochs", "learning_rate", "batch_size", "max_length"}


def _merged(base: dict, changes: dict) -> dict:
    both = {
        key: _merged(base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict) and isinstance(changes[key], dict)
    }
    return {**base, **changes, **both}
