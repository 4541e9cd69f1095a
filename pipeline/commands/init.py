"""`setbacks init`: writes a commented configuration, of options or of answers in the terminal."""

import inspect
import json
import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from pipeline.commands import environment, schemas
from pipeline.config import Config
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.registry import METHODS, TRAINERS, Suites, trainable
from pipeline.runtime import machine
from pipeline.settings import file as files
from pipeline.settings import yaml_text
from pipeline.settings.shown import shown
from pipeline.toy import world

Ask = Callable[[str, Any], Any]  # a question and the default → the answer

NO_EVALUATION = "none"
_TOY = Path(world.__file__).with_name("starting.yaml")
# The methods that make training data of red-team instructions.
PROPOSED = {name: method for name, method in METHODS.items() if trainable(method.training_sets[0])}


def init(
    path: str,
    model: str | None,
    source: str | None,
    method: str | None,
    held_out: str | None,
    gpus: int | None,
    ask: Ask | None,
    log: Callable[[str], Any],
) -> None:
    """Write the configuration. ask: for what is None; without it, defaults. Raises UserError."""
    if os.path.exists(path):
        raise UserError(f"{path}: exists already; name another file, or remove it")
    answered = partial(_answered, ask, log)
    model = answered(model, "Model (a directory or a hub id)", "toy")
    method = answered(method, f"Method ({', '.join(PROPOSED)})", next(iter(PROPOSED)), _check_method)
    known = _of_toy("methods").get(method, {}).get("source") if model == "toy" else None
    source = answered(
        source,
        "Red-team instructions (a file, a directory, or hub:NAME)",
        known,
        partial(_check_source, "--source"),
    )

    def check_held_out(path: str) -> None:
        _check_source("--held-out", path)
        if path == source and not source.startswith("hub:"):
            raise UserError(
                f"--held-out = {path}: the same instructions are trained on; name others, or {NO_EVALUATION}"
            )

    guess = _other_split(source) or NO_EVALUATION
    held_out = answered(held_out, "Instructions for evaluation only, or none", guess, check_held_out)
    gpus = answered(gpus, "GPUs", len(environment.gpus()), _check_gpus)
    text = _text(path, model, source, method, None if held_out == NO_EVALUATION else held_out, int(gpus))
    files.validated(Config, yaml_text.parse(text), path)
    try:
        storage.write_text(os.path.abspath(path), text)
    except OSError as e:
        raise UserError(f"{path}: cannot be written ({e.strerror or e})") from None
    log(f"{path}: written; next: setbacks plan {path}")
    if held_out == NO_EVALUATION:
        log(f"{path}: evaluates nothing; --held-out names instructions that are not trained on")


def _answered(
    ask: Ask | None,
    log: Callable[[str], Any],
    given: Any,
    question: str,
    default: Any,
    check: Callable[[Any], None] = lambda _value: None,
) -> Any:
    """What an option gives, else the answer to a question, which is asked until the answer passes the check;
    without `ask`, the default. Raises UserError for an option or a default that does not pass."""
    if given is not None or ask is None:
        value = default if given is None else given
        check(value)
        return value
    while True:
        value = ask(question, default)
        try:
            check(value)
        except UserError as e:
            log(str(e))
        else:
            return value


def _check_method(name: str) -> None:
    if name not in PROPOSED:
        raise UserError(f"--method {shown(name, 60)}: known are {', '.join(PROPOSED)}")


def _check_gpus(number: Any) -> None:
    if not str(number).isdecimal():
        raise UserError(f"--gpus = {shown(str(number), 20)}: give the number of GPUs, 0 for none")


def _of_toy(part: str) -> Any:
    """What is written for the toy model in the place of what is written for others."""
    return yaml_text.read(_TOY)[part]


def _check_source(option: str, path: str | None) -> None:
    """Refuse toy instructions that do not exist, and prefixes without a meaning. Raises UserError."""
    if not path:
        raise UserError(
            f"{option} is missing: name red-team instructions, such as {option} data/requests.jsonl"
        )
    prefix, colon, name = path.partition(":")
    toy = ", ".join(f"toy:{split}" for split in world.SPLITS)
    if path == "toy" or (prefix == "hub" and re.match("toy(:|$)", name)):
        raise UserError(f"{option} = {shown(path, 60)}: the toy's instructions are {toy}")
    if prefix == "toy" and colon and name not in world.SPLITS:
        raise UserError(f"{option} = {shown(path, 60)}: the toy has no such instructions; it has {toy}")
    if prefix in ("toy", "hub", "preset") or os.path.exists(path):
        return
    if re.fullmatch(r"[A-Za-z]\w+", prefix) and colon and not name.startswith("//"):
        raise UserError(
            f"{option} = {shown(path, 60)}: {prefix}: means nothing here; write hub:NAME, preset:NAME,"
            " toy:SPLIT, or a path (local, s3://, gs://, hf://)"
        )


def _other_split(source: str) -> str | None:
    """Where instructions that are not trained on probably are: another split of a hub or toy data set."""
    if source.startswith("hub:"):
        return source
    other = re.sub(r"^(toy:.*)-train$", r"\1-heldout", source)
    return other if other != source else None


def _text(path: str, model: str, source: str, method: str, held_out: str | None, gpus: int) -> str:
    section = PROPOSED[method]
    of_suites = {
        name: suite
        for name, suite in Suites.by_name().items()
        if held_out and suite.starting and suite.is_proposed(method)
    }
    split = ", split: test" if held_out and held_out == source else ""
    where = "" if held_out is None else f"{_scalar(held_out)}{split}"
    is_toy = model == "toy"
    of_toy = _of_toy("suites") if is_toy else {}
    own = _of_toy("methods").get(method, {}) if is_toy else {}
    default = next(iter(TRAINERS))
    trainer = next(name for name, one in TRAINERS.items() if one.accepts == section.training_sets[0])
    return _template().render(
        file=path,
        schema=_schema_beside(path),
        run_dir=f"runs/{Path(path).stem}",
        model=model,
        dtype="float32" if not gpus and (model == "toy" or not machine.cpu_has_bf16()) else None,
        gpus=gpus,
        name=section.generated.name,
        method=method,
        method_words=_words(section),
        engine_lines=_of_toy("engine").strip() if is_toy else "",
        method_lines=own.get("fields", section.starting).strip(),
        source=source,
        trainer=trainer if trainer != default else None,
        train_lines=own.get("train", _of_toy("train").get(trainer, "")).strip() if is_toy else "",
        suites=[
            {
                "name": name,
                "words": _words(suite),
                "lines": of_toy.get(name, suite.starting).strip().replace("PATH", where),
            }
            for name, suite in of_suites.items()
        ],
    )


def _words(section: type) -> str:
    """The first sentence of a section's description, on one line."""
    return " ".join(inspect.getdoc(section).split("\n\n")[0].split())  # type: ignore[union-attr]


def _schema_beside(path: str) -> str | None:
    """The schema, as seen from the configuration; None outside of a clone, which has no docs."""
    if not schemas.CONFIGURATION.exists():
        return None
    return os.path.relpath(schemas.CONFIGURATION, os.path.dirname(os.path.abspath(path)))


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["text"] = _scalar
    return environment.get_template("init.yaml.jinja")


def _scalar(text: str) -> str:
    """A text in YAML, also inside braces; quoted unless it is plainly a path or a name."""
    return (
        text if re.fullmatch(r"[A-Za-z][\w./-]*[./-][\w./-]*", text) else json.dumps(text, ensure_ascii=False)
    )
