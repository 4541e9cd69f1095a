"""The whole configuration, and consistency checks between its sections.

Each section is defined next to the code that it configures: methods, suites and trainers are listed in
`pipeline.registry`, arms in `pipeline.arms`; `pipeline.settings` has the base of all sections.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from pipeline import old_keys
from pipeline.arms import Arm, Replica, check_arm, default_arms, replicas_of, with_ask, with_training
from pipeline.inference import DEFAULT, Engine
from pipeline.inference.base import Engine as AnyEngine
from pipeline.inference.unasked import UNASKED
from pipeline.methods.base import Method as AnyMethod
from pipeline.registry import Method, Suites, trainable
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
    Seed,
    Source,
)
from pipeline.settings.file import dump as dump
from pipeline.settings.walk import paths, sections
from pipeline.suites import VANILLA
from pipeline.tracking import Kind as TrackerKind
from pipeline.training.config import SFT, Trainer
from pipeline.training.durability import Durability, Further


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
    seed: Seed = Field(0, description="seed of sampling, mixtures and training order")
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
            for made, replica in replicas_of(name, arm, self.seed).items()
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
            name: (arm.train, list(replicas_of(name, arm, self.seed))) for name, arm in self.arms.items()
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
            tree = {**tree, "arms": default_arms(tree)}
        if isinstance(tree["arms"], dict):
            tree = {
                **tree,
                "arms": {
                    name: with_ask(with_training(str(name), arm, tree.get("train", {})), tree.get("methods"))
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
            check_arm(name, arm, self.methods)
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
            names = replicas_of(arm, section, self.seed)
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
