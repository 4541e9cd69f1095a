"""The report's section of settings, judges and their limits, for the methods and suites in use."""

from pipeline.config import Answering, Config
from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.report import tables
from pipeline.report.sections import Section
from pipeline.training.base import Train


def settings(config: Config) -> Section:
    """The report's section of settings and judges."""
    suites = config.suites.items()
    pairs = {
        "Model": (
            f"{config.model.path}, revision {config.model.revision or 'not pinned'}, {config.model.dtype}"
        ),
        "Engine": _engine(config, config.engine),
        "Seed": str(config.seed),
    }
    for name, method in config.methods.items():
        source = {"Instructions": method.instructions.path} if method.instructions else {}
        for key, value in (source | method.settings()).items():  # another method may say it otherwise
            pairs[key if pairs.get(key, value) == value else f"{key}, {name}"] = value
        pairs |= {f"Quality gates of {name}": method.gates.described() if method.gates else "none"}
        if method.engine:
            pairs |= {f"Engine of {name}": _engine(config, method.engine)}
    for name in sorted(set(config.named(config.stages).values())):
        pairs |= {f"Model {name}": _named(config.answering(name))}
    pairs |= _training(config) | _further(config)
    for suite in suites.values():
        pairs |= suite.settings()
    pairs |= {f"How {name} is asked": text for name, text in config.asks.items()}
    pairs |= {f"Adapter, {name}": path for name, path in config.adapters.items()}
    for name, part in {**config.methods, **suites}.items():
        pairs |= _prompts(name, part)
    text = [f"{', and '.join(subjects)}. {judge}" for judge, subjects in _judges(config).items()]
    return Section("Settings and judges", text, tables=[tables.of_pairs("", ("Setting", "Value"), pairs)])


def _engine(config: Config, engine: Engine) -> str:
    return engine.kind if engine.reads_model else f"{engine.kind}, {engine.author(config.model)}"


def _named(one: Answering) -> str:
    if not one.engine.reads_model:
        return f"{one.engine.kind}, {one.engine.author(one.model)}"
    model = one.model
    return f"{model.path}, revision {model.revision or 'not pinned'}, {model.dtype}, {one.engine.kind}"


def _training(config: Config) -> dict[str, str]:
    """One line for all arms if they are trained alike, else one line per arm."""
    said = {arm: _trained(section.train) for arm, section in config.arms.items()}
    if len(set(said.values())) == 1:
        return {"Training": next(iter(said.values()))}
    return {f"Training, {arm}": text for arm, text in said.items()}


def _further(config: Config) -> dict[str, str]:
    if (again := config.durability) is None:
        return {}
    steps = ", ".join(map(str, again.steps))
    how = f"after {steps} steps, learning rate {again.learning_rate:g}, constant, batch {again.batch_size}"
    return {"Second fine-tuning": f"{again.data.path}; {how}"}


def _trained(train: Train) -> str:
    lora = f"LoRA rank {train.lora.rank}"
    if train.start:
        lora = f"continued from {train.start.adapter}"
    equal = ", steps made equal to the longest arm's" if train.equal_steps else ""
    epochs = f"{train.epochs:g} epochs{equal}"
    text = f"{lora}, {epochs}, learning rate {train.learning_rate:g}, batch {train.batch_size}"
    return f"{train.settings()}; {text}" if train.settings() else text


def _prompts(name: str, part) -> dict[str, str]:
    """The prompt sets that a method or suite uses."""
    try:
        return {
            f"Prompts of {name}, {prompts.replace('_', ' ')}": f"hash {digest}"
            for prompts, digest in part.prompt_hashes().items()
        }
    except UserError as e:  # the file has moved since the run; the rest of the report does not need it
        return {f"Prompts of {name}": f"unknown ({e})"}


def _judges(config: Config) -> dict[str, list[str]]:
    """Description of each judge → what it judges."""
    parts = [*config.suites.items().values(), *config.methods.values()]
    found: dict[str, list[str]] = {}
    for judge, what, subject in (judged for part in parts for judged in part.judged()):
        subjects = found.setdefault(judge.limits(what), [])
        subjects.append(subject if subjects else subject[0].upper() + subject[1:])
    return found
