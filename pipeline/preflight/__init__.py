"""Finds errors before an engine starts, if that is possible: one sentence each, exit code 2."""

import os
from collections.abc import Collection, Iterable
from importlib.util import find_spec

from pipeline import models, pretrained, tracking
from pipeline.adapters import check_adapter
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.judges import Judge
from pipeline.methods.base import Method
from pipeline.preflight.arms import arm_specs as arm_specs
from pipeline.preflight.arms import further_specs as further_specs
from pipeline.preflight.arms import trainings
from pipeline.preflight.fit import (
    check_lengths,
    check_loaded,
    check_precision,
    check_templates,
    others,
    reads_model,
)
from pipeline.preflight.memory import Footprint as Footprint
from pipeline.preflight.memory import check as check_memory  # noqa: F401
from pipeline.preflight.memory import check_cluster as check_cluster
from pipeline.preflight.memory import footprints as footprints
from pipeline.preflight.memory import on_gpus as on_gpus
from pipeline.preflight.run_dir import check_no_password, check_run_dir
from pipeline.preflight.run_dir import date_file as date_file
from pipeline.preflight.run_dir import dated as dated
from pipeline.preflight.sources import check_source, needed_responses, sources
from pipeline.preflight.sources import unreachable as unreachable
from pipeline.registry import Suites, trainable
from pipeline.runtime import environment, imports
from pipeline.runtime.machine import gpu_build
from pipeline.settings.base import PathKind, Source
from pipeline.settings.shown import first_line, shown
from pipeline.settings.walk import paths, sections
from pipeline.sources.counts import Accounts
from pipeline.suites.base import Suite


def check(
    config: Config, stages: set[str], skip: Collection[str] = (), suites: set[str] | None = None
) -> None:
    """Check the needs of stages ("generate", "mix", "train", "evaluate"), except models and cluster.

    skip:   fields of sources that are not checked.
    suites: suites to evaluate; None is all configured ones.
    """
    suites = set(config.suites.items()) if suites is None else suites
    if not config.methods and (needs := sorted(stages & {"generate", "mix", "train"})):
        raise UserError(f"methods is missing: {needs[0]} needs one; without methods, only evaluate can run")
    if not suites and "evaluate" in stages:
        raise UserError(
            f"suites is missing: evaluate needs one of {', '.join(type(config.suites).model_fields)}"
        )
    if stages == {"rejudge"} and not any(s.judges_later for s in config.suites.items().values()):
        raise UserError("suites.NAME.more_judges is missing: rejudge needs a judge there")
    if "train" in stages and config.methods and not config.arms:
        made = " and ".join(schema.name for schema in config.training_sets())
        raise UserError(
            f"arms is missing: train has no arm to train on {made}; give arms"
            if any(map(trainable, config.training_sets()))
            else f"train has nothing to do: nothing is trained on {made}; give {config.run_dir}/{made} to"
            " another run, as the path of its instructions"
        )
    parts = sections(config, Method) | sections(config, Suite)
    for field, part in parts.items():
        try:
            part.prompt_hashes()  # finds a wrong prompt file
        except UserError as e:
            raise type(e)(f"{field}: {e}") from None
    for judge in sections(config, Judge).values():
        judge.prompt_hashes()
    for field, judge in sections(config, Judge).items():
        judge.check(field, config.model)
    check_no_password("run_dir", config.run_dir)
    for field, path in paths(config, PathKind.DATA).items():
        check_no_password(field, path)
    for name, method in config.methods.items() if "generate" in stages else ():
        _check_rows(f"methods.{name}", method)
    needed = needed_responses(config, stages)
    for field, source in sources(config, stages, suites).items():
        check_no_password(f"{field}.path", source.path)
        if field not in skip:
            check_source(field, source, needed.get(field, {}))
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites:
            suite.check(f"suites.{name}", config.model)
            _check_impartial(config, name)
    for field, model in config.read_models().items():
        models.check_model_path(model, field)
    for name in config.suites.items():
        if "evaluate" in stages and name in suites:
            _check_chosen(config, name)
    _check_engines(config, stages, suites)
    check_run_dir(config, stages)
    if stages & {"train", "evaluate"}:
        tracking.check(config.track, config.run_dir)
    if "train" in stages:
        environment.check_threads()
    if stages & {"generate", "train", "evaluate", "rejudge"}:
        environment.check_imports()
        if not os.environ.get("RAY_ADDRESS"):
            environment.check_temporary_directory()


def _check_chosen(config: Config, name: str) -> None:
    """Raises UserError if a suite's judge of harm reads no meaning, and nobody has asked for that.

    The toy's sentences make such a judge right.
    """
    if config.model.path == "toy" or not config.engine.is_model:
        return
    suite = config.suites.items()[name]
    for field in type(suite).model_fields.keys() - suite.model_fields_set:
        judge = getattr(suite, field)
        if isinstance(judge, Judge) and judge.blind:
            raise UserError(
                f"suites.{name}.{field} is missing: its default reads phrases, which says how often answers"
                " refuse and not how often they are harmless; name a judge that asks a model or a guard, or"
                f" set it to {{kind: {judge.kind}}}"
            )


def _check_impartial(config: Config, name: str) -> None:
    """Raises UserError if a judge of a suite that must not be the run's own model is that."""
    for field, judge in config.suites.items()[name].impartial.items():
        if judge.asked is None or config.is_own_model(judge.asked):
            is_it = "is" if judge.asked is None else f"= {judge.asked} is"
            raise UserError(
                f"suites.{name}.{field}.model {is_it} the run's own model, which would judge its own texts;"
                f" name another entry of models, or set suites.{name}.allow_self_judging: true"
            )


def _check_rows(field: str, method: Method) -> None:
    """Raises UserError if a method that makes its own rows has none; sources are checked by themselves."""
    if not sections(method, Source):
        try:
            if next(method.rows(Accounts()), None) is None:
                raise UserError("there is no row to do")
        except UserError as e:
            raise type(e)(f"{field}: {e}") from None


def _check_engines(config: Config, stages: set[str], suites: set[str]) -> None:
    """Raises UserError if an engine cannot do what a stage, a method or a suite asks of it."""
    for field, engine in config.engines(stages).items():
        engine.check(field)
    if "train" in stages:
        for one in map(config.generator, config.methods):
            _check_is_model(one.engine_field, one.engine, "to train on")
    if "generate" in stages:
        for name, method in config.methods.items():
            one = config.generator(name)
            _check_generator(f"methods.{name}", method, one.engine_field, one.engine)
            if one.engine.is_model:
                _check_named(config, ["generate"], f"methods.{name}.")
    if "rejudge" in stages:
        _check_named(config, ["rejudge"], "suites.")
    if "evaluate" in stages:
        _check_named(config, ["evaluate"], "suites.")
        engine, fine_tuned = config.engine, config.arm_names[1:]
        _check_is_model("engine", engine, "to evaluate")
        if fine_tuned and not engine.takes_adapters:
            raise UserError(
                f"engine.kind = {engine.kind}: takes no adapters, and evaluate has {', '.join(fine_tuned)};"
                " set it as methods.NAME.engine, if it is only to generate, and leave engine to the default"
            )
        for name, suite in config.suites.items().items():
            if name in suites and suite.continues_turns:
                engine.check_prefill("engine", f"suites.{name}")
            if name in suites and (forces := suite.forces_first_token):
                engine.check_first_rank("engine", f"suites.{name}.{forces}")
            if name in suites:
                suite.check_engine(f"suites.{name}", engine)


def _check_named(config: Config, stages: list[str], field: str) -> None:
    """Raises UserError if no model writes the texts of an entry of `models` that a section names."""
    for place, name in config.named(stages).items():
        if place.startswith(field):
            one = config.answering(name)
            _check_is_model(one.engine_field, one.engine, f"for {place} to ask")


def _check_is_model(field: str, engine: Engine, purpose: str) -> None:
    if not engine.is_model:
        raise UserError(
            f"{field}.kind = {engine.kind}: no model writes its texts, so there is nothing {purpose};"
            " use `setbacks generate` and `setbacks mix`, or another engine"
        )


def _check_generator(field: str, method: Method, engine_field: str, engine: Engine) -> None:
    """Check a method's own model and adapter, and its prefills, against the engine that generates."""
    if method.continues_turns:
        engine.check_prefill(engine_field, field)
    if not engine.takes_adapters:
        for name in paths(method, PathKind.ADAPTER, field):
            raise UserError(
                f"{name}: {engine_field}.kind = {engine.kind} takes no adapters; leave {name} out, or use"
                " another engine"
            )


def check_suites(config: Config, wanted: Iterable[str]) -> list[str]:
    """The suites to evaluate: those wanted, or all configured ones.

    Raises UserError for an unconfigured suite.
    """
    known = config.suites.items()
    for suite in wanted:
        if suite not in known:
            possible = suite in Suites.model_fields
            remedy = f"give suites.{suite}" if possible else f"it has {', '.join(known) or 'none'}"
            raise UserError(f"--suite {shown(suite, 60)}: the configuration has no such suite; {remedy}")
    return [suite for suite in known if suite in set(wanted)] if wanted else list(known)


def given_adapters(config: Config) -> dict[str, str]:
    """The directories of `adapters`, in a form that means the same in every process."""
    return {name: storage.absolute(path) for name, path in config.adapters.items()}


def directories(config: Config, stages: set[str], model: str) -> dict[str, str]:
    """Local directories, by field, that engines and trainers read on any node.

    `model`: as returned by `model_dir`.
    """
    found = {"model.path": model} if reads_model(config, stages) else {}
    found |= {f"{one.field}.path": models.model_dir(one.model) for one in others(config, stages)}
    if "generate" in stages:
        for name, method in config.methods.items():
            if not config.generator(name).engine.reads_model:
                continue
            found |= {
                field: storage.absolute(path)
                for field, path in paths(method, PathKind.ADAPTER, f"methods.{name}").items()
            }
    if "evaluate" in stages:
        found |= {f"adapters.{name}": path for name, path in given_adapters(config).items()}
    return {field: path for field, path in found.items() if storage.is_local(path) and os.path.isdir(path)}


@pretrained.read_once()
def check_models(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Check that models, adapters and their settings fit together, by files on disk. Raises UserError.

    directory: as returned by `model_dir`. Returns notices: allowed settings that are worth a log line.
    """
    notices = check_precision(config, stages)
    if "train" in stages:
        notices += tracking.unused(config.track) + environment.unused_accelerate()
    if reads_model(config, stages):
        models.check_weights(directory, config.model.revision)
    if "train" in stages:
        check_lora(config, directory)
        for arm, section in config.arms.items():
            if section.train.start:
                notices += check_adapter(
                    f"arms.{arm}.train.start.adapter", section.train.start.adapter, directory
                )
    if "evaluate" in stages:
        for name, path in given_adapters(config).items():
            notices += check_adapter(f"adapters.{name}", path, directory)
        wanted = [suite for name, suite in config.suites.items().items() if name in suites]
        if any(suite.reads_tokenizer for suite in wanted):
            models.load_tokenizer(config.model, directory)
    for one in others(config, stages):
        own = models.model_dir(one.model)
        if own != directory:
            models.check_weights(own, one.model.revision, f"{one.field}.path")
    check_loaded(config, stages, directory)
    notices += check_templates(config, stages, suites, directory)
    notices += check_lengths(config, stages, suites, directory)
    if "generate" in stages:
        for name, method in config.methods.items():
            one = config.generator(name)
            if one.engine.reads_model:
                own = directory if one.field == "model" else models.model_dir(one.model)
                generator = (one.field, one.model, own)
                notices += method.check(f"methods.{name}", config.model, directory, generator, models)
    return notices


def check_build(config: Config, stages: set[str]) -> None:
    """Raises UserError for GPUs on an installation for CPUs, and for a CPU engine on one for GPUs."""
    for field, engine in config.engines(stages).items():
        engine.check_build(field)
    for field_of, train in trainings(config) if "train" in stages else ():
        if train.load_in_4bit and find_spec("bitsandbytes") is None:
            raise UserError(
                f"{field_of('load_in_4bit')} = true: bitsandbytes is not installed; use `pip install"
                " 'setbacks[qlora]'`, or set it to false"
            )
        if train.use_gpu and gpu_build() is None:
            raise UserError(
                f"{field_of('use_gpu')} = true: the installed torch is built for CPUs; set it to false, or"
                " install its CUDA build"
            )


def check_reach(config: Config, stages: set[str], suites: set[str]) -> None:
    """Raises OutOfReach if a suite or a tracker needs a server that does not answer; a plan does not ask."""
    if stages & {"train", "evaluate"}:
        tracking.check_reach(config.track)
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites:
            suite.check_reach(f"suites.{name}")


def check_lora(config: Config, directory: str) -> None:
    """Raises UserError if LoRA settings do not fit the model's modules, before hours of generation."""
    try:
        with imports.quick():
            from pipeline.training.arm import check_lora as fits

            fits(arm_specs(config, directory).values())
    # the hub is unreachable, or transformers does not understand config.json
    except (OSError, ValueError) as e:
        raise UserError(
            f"model.path = {config.model.path}: its configuration cannot be loaded ({first_line(e)})"
        ) from None
