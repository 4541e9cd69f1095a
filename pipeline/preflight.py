"""Finds errors before an engine starts, if that is possible: one sentence each, exit code 2."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import models, sampling
from pipeline.config import Answering, Config, Suites
from pipeline.data import storage
from pipeline.errors import OutOfReach, UserError
from pipeline.inference.base import Engine
from pipeline.judges import Judge
from pipeline.methods.base import Method
from pipeline.runtime import environment, imports
from pipeline.runtime.machine import cpu_has_bf16, gpu_build
from pipeline.settings.base import Draw, Model, PathKind, Section, Source
from pipeline.settings.shown import first_line
from pipeline.settings.walk import paths, sections
from pipeline.sources import instructions
from pipeline.suites.base import Suite
from pipeline.templates import ChatTemplate, probe

if TYPE_CHECKING:
    from pipeline.training.arm import ArmSpec

MIN_FREE_BYTES = 256 * 2**20


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
    for part in (*config.methods.values(), *config.suites.items().values()):
        part.prompt_hashes()  # finds a wrong prompt file
    for judge in sections(config, Judge).values():
        judge.prompt_hashes()
    for field, judge in sections(config, Judge).items():
        judge.check(field, config.model)
    _check_no_password("run_dir", config.run_dir)
    needed = _needed_responses(config, stages)
    for field, source in sources(config, stages, suites).items():
        _check_no_password(f"{field}.path", source.path)
        if field not in skip:
            _check_source(field, source, needed.get(field, {}))
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites:
            suite.check(f"suites.{name}", config.model)
    for field, model in config.read_models().items():
        models.check_model_path(model, field)
    _check_engines(config, stages, suites)
    check_run_dir(config, stages)
    if "train" in stages:
        environment.check_threads()
    if stages & {"generate", "train", "evaluate", "rejudge"}:
        environment.check_imports()
        if not os.environ.get("RAY_ADDRESS"):
            environment.check_temporary_directory()


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
        engine, fine_tuned = config.engine, [*config.arms, *config.adapters]
        _check_is_model("engine", engine, "to evaluate")
        if fine_tuned and not engine.takes_adapters:
            raise UserError(
                f"engine.kind = {engine.kind}: takes no adapters, and evaluate has {', '.join(fine_tuned)};"
                " set it as methods.NAME.engine, if it is only to generate, and leave engine to the default"
            )
        for name, suite in config.suites.items().items():
            if name in suites and suite.continues_turns:
                engine.check_prefill("engine", f"suites.{name}")


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


def dated(config: Config, *, anew: bool = False) -> Config:
    """The configuration with the date that chat templates take for today's.

    A run directory keeps the day on which it began, so that it is resumed with the same prompts on any day.
    anew: whether all that the directory holds is made again, so that the configuration may name another day.
    Raises UserError if it names another day otherwise.
    """
    path = date_file(config)
    try:
        recorded = date.fromisoformat(storage.read_text(path)) if storage.exists(path) else None
    except ValueError:
        raise UserError(
            f"{path} holds no date: write the day on which the run began into it, as 2026-01-31"
        ) from None
    named = config.model.date
    if recorded and named and named != recorded and not anew:
        raise UserError(
            f"model.date = {named}: the run directory {config.run_dir} was begun with {recorded}; leave it"
            " out, choose another run_dir, or make all of it anew with --overwrite"
        )
    day = (named or recorded) if anew else (recorded or named)
    model = config.model.model_copy(update={"date": day or date.today()})
    return config.model_copy(update={"model": model})


def date_file(config: Config) -> str:
    """The file in the run directory that keeps its date."""
    return storage.join(storage.absolute(config.run_dir), ".state", "date")


def check_suites(config: Config, wanted: Iterable[str]) -> list[str]:
    """The suites to evaluate: those wanted, or all configured ones.

    Raises UserError for an unconfigured suite.
    """
    known = config.suites.items()
    for suite in wanted:
        if suite not in known:
            possible = list(Suites.model_fields)
            remedy = f"give suites.{suite}" if suite in possible else f"known are {' and '.join(possible)}"
            raise UserError(f"--suite {suite}: the configuration has no such suite; {remedy}")
    return [suite for suite in known if suite in set(wanted)] if wanted else list(known)


def _check_no_password(field: str, path: str) -> None:
    """Raises UserError for a password in a path (s3://…): configuration, cards and reports store paths."""
    userinfo = path.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if ":" in userinfo:
        remedy = "remove it and set credentials in the environment"
        raise UserError(f"{field}: contains a password, which would be stored; {remedy}")


def _check_source(field: str, source: Source, needs: Mapping[str, str]) -> None:
    """Check one source. needs: response that at least one row must have → remedy for the message."""
    try:
        instructions.check(source)
        for response, asker in needs.items():
            try:
                instructions.check(source, [response])
            except instructions.NoResponse as e:
                raise type(e)(f"{e}{asker}") from None
    except UserError as e:
        raise type(e)(f"{field}: {e}") from None


def _needed_responses(config: Config, stages: set[str]) -> dict[str, dict[str, str]]:
    """Field of a source → response that at least one of its rows must have → remedy for the message."""
    needed: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for name, method in config.methods.items():
        if method.needs_unsafe:
            needed[f"methods.{name}.instructions"]["unsafe_response"] = ""
        if method.needs_safe:
            needed[f"methods.{name}.instructions"]["safe_response"] = ""
        for kind in sorted(method.made_from.keys() & (method.kinds or ())) if "mix" in stages else ():
            arms = [arm for arm, section in config.arms.items() if kind in (section.kinds or ())]
            if arms:
                source, response = method.made_from[kind]
                remedy = f"; or leave {kind} out of arms.{arms[0]}.kinds" + (
                    f" (and of {', '.join(arms[1:])})" if arms[1:] else ""
                )
                needed[f"methods.{name}.{source}"].setdefault(response, remedy)
    for name, suite in config.suites.items().items():
        for source in suite.needs_unsafe:
            needed[f"suites.{name}.{source}"]["unsafe_response"] = ""
    return needed


def _used(config: Config, stages: set[str], suites: set[str]) -> dict[str, Section]:
    """The sections that the stages and suites read, by field name."""
    found: dict[str, Section] = {}
    if stages & {"generate", "mix"}:
        found |= {f"methods.{name}": method for name, method in config.methods.items()}
    if stages & {"evaluate", "rejudge"}:
        found |= {f"suites.{name}": suite for name, suite in config.suites.items().items() if name in suites}
    return found


def check_run_dir(config: Config, stages: set[str]) -> None:
    """Raises UserError if the run directory cannot be created or written, or its disk is nearly full."""
    if not storage.is_local(config.run_dir):
        storage.filesystem(config.run_dir)
        return
    place = Path(storage.absolute(config.run_dir))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"run_dir = {config.run_dir}: {place} is not a directory; choose another run_dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(
            f"run_dir = {config.run_dir}: {place} is not writable; choose another run_dir or change its"
            " permissions"
        )
    free = storage.free_bytes(config.run_dir)
    if free is not None and free < MIN_FREE_BYTES:
        raise UserError(
            f"run_dir = {config.run_dir}: only {free / 2**20:.0f} MiB are free on its disk, "
            f"at least {MIN_FREE_BYTES / 2**20:.0f} are needed"
        )


def unreachable(config: Config, stages: set[str]) -> dict[str, str]:
    """Sources on servers that do not answer (such as without network), and why.

    `plan` works without them, `run` does not. Any other error of a source is left to `check`.
    """
    found = {}
    for field, source in sources(config, stages, set(config.suites.items())).items():
        if source.path.startswith("hub:") or "://" in source.path:
            try:
                instructions.check(source)
            except OutOfReach as e:
                found[field] = str(e)
            except UserError:
                continue
    return found


def sources(config: Config, stages: set[str], suites: set[str]) -> dict[str, Source]:
    """The instruction sources that the stages and suites read, by field name."""
    found: dict[str, Source] = {}
    for field, section in _used(config, stages, suites).items():
        mixing: frozenset[str] = getattr(section, "mixing", frozenset())
        for name, source in sections(section, Source, field).items():
            stage = "mix" if name.removeprefix(f"{field}.").split(".")[0] in mixing else "generate"
            if stage in stages or not field.startswith("methods."):
                found[name] = source
    return found


def given_adapters(config: Config) -> dict[str, str]:
    """The directories of `adapters`, in a form that means the same in every process."""
    return {name: storage.absolute(path) for name, path in config.adapters.items()}


def directories(config: Config, stages: set[str], model: str) -> dict[str, str]:
    """Local directories, by field, that engines and trainers read on any node.

    `model`: as returned by `model_dir`.
    """
    found = {"model.path": model} if _reads_model(config, stages) else {}
    found |= {f"{one.field}.path": models.model_dir(one.model) for one in _others(config, stages)}
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


def check_models(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Check that models, adapters and their settings fit together, by files on disk. Raises UserError.

    directory: as returned by `model_dir`. Returns notices: allowed settings that are worth a log line.
    """
    notices = _check_precision(config, stages)
    if "train" in stages:
        notices += environment.unused_key() + environment.unused_accelerate()
    if _reads_model(config, stages):
        models.check_weights(directory, config.model.revision)
    if "train" in stages:
        check_lora(config, directory)
        for arm, section in config.arms.items():
            if section.train.start:
                notices += models.check_adapter(
                    f"arms.{arm}.train.start.adapter", section.train.start.adapter, directory
                )
    if "evaluate" in stages:
        for name, path in given_adapters(config).items():
            notices += models.check_adapter(f"adapters.{name}", path, directory)
        wanted = [suite for name, suite in config.suites.items().items() if name in suites]
        if any(suite.reads_tokenizer for suite in wanted):
            models.load_tokenizer(config.model, directory)
    for one in _others(config, stages):
        own = models.model_dir(one.model)
        if own != directory:
            models.check_weights(own, one.model.revision, f"{one.field}.path")
    _check_loaded(config, stages, directory)
    notices += _check_templates(config, stages, suites, directory)
    notices += _check_lengths(config, stages, suites, directory)
    if "generate" in stages:
        for name, method in config.methods.items():
            one = config.generator(name)
            if one.engine.reads_model:
                own = directory if one.field == "model" else models.model_dir(one.model)
                generator = (one.field, one.model, own)
                notices += method.check(f"methods.{name}", config.model, directory, generator, models)
    return notices


def _others(config: Config, stages: set[str]) -> list[Answering]:
    """The entries of `models` whose files the stages read."""
    found = {one.field: one for one in config.used(stages) if one.engine.reads_model and one.field != "model"}
    return list(found.values())


def _reads_model(config: Config, stages: set[str]) -> bool:
    """Whether the stages read the files of the run's model."""
    return "train" in stages or any(
        one.engine.reads_model for one in config.used(stages) if one.field == "model"
    )


def check_build(config: Config, stages: set[str]) -> None:
    """Raises UserError for GPUs on an installation for CPUs, and for a CPU engine on one for GPUs."""
    for field, engine in config.engines(stages).items():
        engine.check_build(field)
    if "train" in stages and gpu_build() is None:
        for name, arm in config.arms.items():
            if arm.train.use_gpu:
                raise UserError(
                    f"{config.field_of(name, 'use_gpu')} = true: the installed torch is built for CPUs; set"
                    " it to false, or install its CUDA build"
                )


def _check_templates(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Render what the stages will render, with texts that can be found again. Returns notices.

    Raises UserError for a conversation that a chat template cannot render, or of which it drops a text.
    """
    asked: dict[tuple[Model, str], dict[tuple[str, ...], str]] = {}
    own = (config.model, "model")

    def asks(one: Answering, conversations: dict[tuple[str, ...], str]) -> None:
        if one.engine.reads_model:
            place = (one.model, one.field)
            asked[place] = conversations | asked.get(place, {})

    for name, method in config.methods.items() if "generate" in stages else ():
        asks(config.generator(name), _asking(f"methods.{name}", method))
    for name, suite in config.suites.items().items():
        if "evaluate" in stages and name in suites:
            asks(config.answering(None), _asking(f"suites.{name}", suite))
    for field, judge in _judges(config, stages, suites).items():
        if judge.asked:
            asks(config.answering(judge.asked), _asking(field, judge))
    if "train" in stages:
        asked.setdefault(own, {})
    notices = []
    for (model, field), conversations in asked.items():
        template = models.load_template(
            model, directory if (model, field) == own else models.model_dir(model), field
        )
        template.check_arguments()
        for roles, setting in conversations.items():
            try:
                template.check_prompt(roles)
            except UserError as e:
                why, _, remedy = str(e).rpartition(": ")
                if setting:
                    raise UserError(f"{setting}: {why}: choose another value, or another template") from None
                raise UserError(f"{field}.path = {model.path}: {why}: {remedy}") from None
        if (model, field) == own:
            _check_own_template(config, stages, suites, template, directory)
        trained = (model, field) == own and "train" in stages and bool(config.arms)
        if thinking := template.thinking(trained=trained):
            notices.append(thinking)
    return notices


def _judges(config: Config, stages: set[str], suites: set[str]) -> dict[str, Judge]:
    """The judges that the stages ask, by field."""
    found: dict[str, Judge] = {}
    for name, method in config.methods.items() if "generate" in stages else ():
        found |= sections(method, Judge, f"methods.{name}")
    for name, suite in config.suites.items().items():
        later = [id(judge) for judge in suite.judges_later.values()]
        for field, judge in sections(suite, Judge, f"suites.{name}").items():
            if name in suites and ("rejudge" if id(judge) in later else "evaluate") in stages:
                found[field] = judge
    return found


def _check_loaded(config: Config, stages: set[str], directory: str) -> None:
    """Raises UserError if an engine cannot load the weights of a model, or they cannot write texts."""
    for one in config.used(stages):
        if one.engine.reads_model:
            place = directory if one.field == "model" else models.model_dir(one.model)
            models.check_writes(one.model, place, one.field)
            if settings := models.quantization(one.model, place, one.field):
                one.engine.check_quantized(one.field, one.model, settings)


def _asking(place: str, part: Method | Suite | Judge) -> dict[tuple[str, ...], str]:
    """Roles of the conversations of a method, suite or judge → the field that asks for them."""
    conversations = part.conversations
    found = {roles: f"{place}.{setting}" if setting else "" for roles, setting in conversations.items()}
    prompted = [name for name, draw in sampling.of_engine(part, place).items() if draw.system]
    for roles in conversations if prompted else ():
        if roles[0] != "system":
            found.setdefault(("system", *roles), f"{prompted[0]}.system is set")
    return found


def _check_own_template(
    config: Config, stages: set[str], suites: set[str], template: ChatTemplate, directory: str
) -> None:
    """Raises UserError if the model's template cannot make training examples, or continue turns."""
    if "train" in stages and config.arms:
        try:
            template.frame(("user", "assistant"))
            # one example as `train` will make it: the tokens too
            [example] = template.examples([probe(("user", "assistant"))])
        except UserError as e:
            raise UserError(f"model.path = {config.model.path}: {e}") from None
        if isinstance(example, str):
            raise UserError(
                f"model.path = {config.model.path}: {template.name} makes no training example"
                f" ({example.replace('_', ' ')}): use another template"
            )
        most = models.vocabulary(config.model, directory)
        if most is not None and (beyond := [token for token in example[0] if token >= most]):
            raise UserError(
                f"model.path = {config.model.path}: its chat template writes the token"
                f" {template.tokenizer.convert_ids_to_tokens(beyond[0])}, for which the model has no"
                f" embedding ({most} tokens): name a model that has been trained with the template"
            )
    if "evaluate" not in stages or not config.engine.reads_model:
        return
    for name, suite in config.suites.items().items():
        if name in suites and suite.continues_turns:
            models.check_prefill(template, config.model.path, needed_by=f"suites.{name}")


def _check_lengths(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Check lengths against the positions that the model has. Returns notices. Raises UserError."""
    limits = {one.field: _limit(one, models.model_dir(one.model)) for one in _others(config, stages)}
    for name, (draw, one) in _draws(config, stages, suites).items():
        if one.field not in limits:
            limits[one.field] = _limit(
                one, directory if one.field == "model" else models.model_dir(one.model)
            )
        limit = limits[one.field]
        if limit is not None and draw.max_tokens >= limit:
            raise UserError(
                f"{name}.max_tokens = {draw.max_tokens}: leaves no room for a prompt in the model's"
                f" {limit} tokens; set it lower"
            )
    if not _reads_model(config, stages):
        return []
    _limit(config.answering(None), directory)
    most = models.positions(config.model, directory)
    if most is None:
        return []
    long = {
        f"{config.field_of(name, 'max_length')} = {arm.train.max_length}"
        for name, arm in config.arms.items()
        if "train" in stages and "max_length" in arm.train.model_fields_set and arm.train.max_length > most
    }
    return [
        f"{field}: the model has {most} positions and was not trained on longer texts"
        for field in sorted(long)
    ]


def _limit(one: Answering, directory: str) -> int | None:
    """The tokens of prompt and completion that a model can have. Raises UserError for an impossible limit."""
    most, given = models.positions(one.model, directory), one.model.max_length
    if most is not None and given is not None and given > most:
        raise UserError(
            f"{one.field}.max_length = {given}: the model has {most} positions; set at most {most}"
        )
    return given or most if most is not None else None


def _draws(config: Config, stages: set[str], suites: set[str]) -> dict[str, tuple[Draw, Answering]]:
    """What the stages sample from models whose files they read, by field, and from which model."""
    found, judges = {}, _judges(config, stages, suites)
    for part, section in _used(config, stages - {"mix"}, suites).items():
        kind, _, name = part.partition(".")
        owner = config.generator(name) if kind == "methods" else config.answering(None)
        for field, draw in sections(section, Draw, part).items():
            by = next((judge for place, judge in judges.items() if field.startswith(f"{place}.")), None)
            one = config.answering(by.asked) if by and by.asked else owner
            if one.engine.reads_model:
                found[field] = (draw, one)
    return found


def _check_precision(config: Config, stages: set[str]) -> list[str]:
    """A notice if this CPU would emulate bfloat16, which is many times slower."""
    if cpu_has_bf16():
        return []
    slow = []
    for one in config.used(stages):
        on_cpu = one.engine.reads_model and not one.engine.gpus
        if on_cpu and one.model.dtype in ("auto", "bfloat16") and f"{one.field}.dtype: float32" not in slow:
            slow.append(f"{one.field}.dtype: float32")
    if "train" in stages and any(arm.train.bf16 and not arm.train.use_gpu for arm in config.arms.values()):
        slow.append("train.bf16: false")
    return (
        [f"this CPU has no bfloat16 instructions: {' and '.join(slow)} would be much faster"] if slow else []
    )


def arm_specs(config: Config, directory: str) -> dict[str, "ArmSpec"]:
    """The arms to train, by name. directory: as returned by `model_dir`."""
    from pipeline.training.arm import ArmSpec

    return {
        name: ArmSpec(
            name, arm.train, arm.kinds, config.model, directory, config.seed, partial(config.field_of, name)
        )
        for name, arm in config.arms.items()
    }


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
