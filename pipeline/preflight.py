"""Everything that can be known to be wrong before an engine starts, found then: one sentence each, exit code 2."""

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import pretrained, prompts
from pipeline.config import Config
from pipeline.data import storage
from pipeline.data.adapter import FILES, shapes
from pipeline.errors import UserError
from pipeline.evaluation import course_correction
from pipeline.judges import Judge
from pipeline.runtime import imports
from pipeline.runtime.machine import cpu_has_bf16
from pipeline.settings.base import Endpoint, Model, Source
from pipeline.settings.walk import sections
from pipeline.sources import instructions

if TYPE_CHECKING:
    from pipeline.training.arm import ArmSpec

MIN_FREE_BYTES = 256 * 2**20


def check(config: Config, stages: set[str], skip: set[str] = frozenset(), suites: set[str] | None = None) -> None:
    """Check what the given stages ("generate", "mix", "train", "evaluate") need, short of models and cluster.

    skip:   fields of sources that are not looked at.
    suites: what `evaluate` is to do; None is all that is configured.
    """
    suites = set(config.evaluation.suites) if suites is None else suites
    if config.instructions is None and (needs := sorted(stages & {"generate", "mix", "train"})):
        raise UserError(f"instructions is missing: {needs[0]} needs it; without it a configuration can only be evaluated")
    prompts.load(f"methods/{config.recipe.name}/prompts.yaml", config.recipe.prompts)
    for field, judge in sections(config, Judge).items():
        judge.check(field, config.model)
    if config.evaluation.course_correction:
        prompts.load("methods/course_correction/prompts.yaml", config.evaluation.course_correction.prompts)
    _check_no_password("run_dir", config.run_dir)
    for field, source in sources(config, stages, suites).items():
        _check_no_password(f"{field}.path", source.path)
        if field not in skip:
            _check_source(field, source, unsafe=_needs_unsafe(config, field))
    for field, endpoint in _endpoints(config, stages, suites).items():
        from pipeline.inference.endpoint import check

        check(endpoint, field)
    check_model_path(config.model, "model")
    if config.recipe.name == "course_correction" and config.recipe.aligned.model:
        check_model_path(config.recipe.aligned.model, "recipe.aligned.model")
    if config.model.is_dummy and (needs := sorted(stages & {"evaluate", "train"})):
        raise UserError(
            f"model.path = dummy: has no weights, so there is nothing to {needs[0]}; use `setbacks generate` and `setbacks mix`"
        )
    check_run_dir(config, stages)


def check_suites(config: Config, wanted: Iterable[str]) -> list[str]:
    """The suites to evaluate: those wanted, or all that are configured. Raises UserError for one that is not."""
    known = config.evaluation.suites
    for suite in wanted:
        if suite not in known:
            field = {"safety": "evaluation.harmful", "course_correction": "evaluation.course_correction"}.get(suite)
            mend = f"give {field}" if field else "known are safety and course_correction"
            raise UserError(f"--suite {suite}: the configuration has no such suite; {mend}")
    return [suite for suite in known if suite in set(wanted)] if wanted else known


def _check_no_password(field: str, path: str) -> None:
    """A path is stored with the configuration, and stands in cards and reports: no place for credentials, which an s3:// path can hold."""
    userinfo = path.partition("://")[2].partition("/")[0].rpartition("@")[0]
    if ":" in userinfo:
        raise UserError(f"{field}: holds a password, which would be stored; leave it out, credentials go into the environment")


def _check_source(field: str, source: Source, *, unsafe: bool) -> None:
    try:
        instructions.check(source)
        if unsafe:
            instructions.check_unsafe(source)
    except UserError as e:
        raise UserError(f"{field}: {e}") from None


def _needs_unsafe(config: Config, field: str) -> bool:
    """Course correction starts from unsafe responses, and so do mistakes that are the source's own."""
    own = config.recipe.name == "course_correction" or config.recipe.mistake == "reference"
    return field == "evaluation.course_correction.entries" or (field == "instructions" and own)


def _endpoints(config: Config, stages: set[str], suites: set[str]) -> dict[str, Endpoint]:
    """The servers that the stages ask, by field name."""
    found = {}
    if "generate" in stages:
        found["inference.endpoint"] = config.inference.endpoint
        if config.recipe.name == "course_correction":
            found["recipe.check.endpoint"] = getattr(config.recipe.check, "endpoint", None)
    if "evaluate" in stages and "course_correction" in suites:
        found["evaluation.course_correction.judge.endpoint"] = getattr(config.evaluation.course_correction.judge, "endpoint", None)
    return {field: endpoint for field, endpoint in found.items() if endpoint is not None}


def check_run_dir(config: Config, stages: set[str]) -> None:
    """The run directory can be made and written to, its disk has room, and the stages can work there. Raises UserError otherwise."""
    if not storage.is_local(config.run_dir):
        storage.filesystem(config.run_dir)
        return
    place = Path(storage.absolute(config.run_dir))
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"run_dir = {config.run_dir}: {place} is not a directory; choose another run_dir")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"run_dir = {config.run_dir}: {place} is not writable; choose another run_dir or change its permissions")
    free = storage.free_bytes(config.run_dir)
    if free is not None and free < MIN_FREE_BYTES:
        raise UserError(
            f"run_dir = {config.run_dir}: only {free / 2**20:.0f} MiB are free there, at least {MIN_FREE_BYTES / 2**20:.0f} are needed"
        )


def unreachable(config: Config, stages: set[str]) -> dict[str, str]:
    """Hub sources that cannot be read from here (no network, say), and why; what `plan` can do without, and `run` cannot."""
    found = {}
    for field, source in sources(config, stages, set(config.evaluation.suites)).items():
        if source.path.startswith("hub:"):
            try:
                instructions.check(source)
            except UserError as e:
                found[field] = str(e)
    return found


def sources(config: Config, stages: set[str], suites: set[str]) -> dict[str, Source]:
    """The instruction sources that the stages and suites read, by field name."""
    evaluation = config.evaluation
    found: dict[str, Source | None] = {}
    if "generate" in stages:
        found["instructions"] = config.instructions
    if "mix" in stages and config.mix:
        found["mix.helpful"] = config.mix.helpful
    if "evaluate" in stages and "safety" in suites:
        found |= {"evaluation.harmful": evaluation.harmful, "evaluation.helpful": evaluation.helpful}
    if "evaluate" in stages and "course_correction" in suites:
        found["evaluation.course_correction.entries"] = evaluation.course_correction.entries
    return {field: source for field, source in found.items() if source is not None}


def check_model_path(model: Model, field: str) -> None:
    """A model path is `toy`, an existing model directory, or looks like a hub id. Raises UserError otherwise."""
    path, directory = model.path, os.path.expanduser(model.path)
    if path == "toy" or model.is_dummy:
        return
    if os.path.isdir(directory):
        if not os.path.exists(os.path.join(directory, "config.json")):
            raise UserError(
                f"{field}.path = {path}: the directory holds no config.json, so it is not a model; name the directory that does"
            )
        if not _has_chat_template(Path(directory)):
            raise UserError(f"{field}.path = {path}: its tokenizer has no chat template; add chat_template.jinja to the model directory")
        return
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local or os.path.exists(directory):
        raise UserError(f"{field}.path = {path}: no such model directory; give a directory, a hub id such as org/name, or toy")


def generator(config: Config) -> tuple[Model, str | None]:
    """The model that `generate` runs, and the directory of its adapter: course correction may have an aligned one of its own."""
    if config.recipe.name != "course_correction":
        return config.model, None
    aligned = config.recipe.aligned
    return aligned.model or config.model, aligned.adapter and storage.absolute(aligned.adapter)


def given_adapters(config: Config) -> dict[str, str]:
    """The directories of `evaluation.adapters`, in a form that means the same in every process."""
    return {name: storage.absolute(path) for name, path in config.evaluation.adapters.items()}


def directories(config: Config, stages: set[str], model: str) -> dict[str, str]:
    """The local directories that engines and trainers read on whatever node they are, by field. `model` is what `model_dir` returned."""
    found = {"model.path": model} if "generate" not in stages or not config.inference.endpoint else {}
    if "generate" in stages and config.recipe.name == "course_correction" and config.recipe.aligned:
        aligned, adapter = generator(config)
        found |= {"recipe.aligned.model.path": model_dir(aligned)} if aligned != config.model else {}
        found |= {"recipe.aligned.adapter": adapter} if adapter else {}
    if "evaluate" in stages:
        found |= {f"evaluation.adapters.{name}": path for name, path in given_adapters(config).items()}
    return {field: path for field, path in found.items() if storage.is_local(path) and os.path.isdir(path)}


def model_dir(model: Model) -> str:
    """The directory (or hub id) that engines and trainers load."""
    if model.path == "toy":
        from pipeline.toy.model import WEIGHTS

        return str(WEIGHTS)
    if model.is_dummy:
        return model.path
    path = os.path.expanduser(model.path)
    return os.path.abspath(path) if os.path.isdir(path) else path


def check_models(config: Config, stages: set[str], suites: set[str], directory: str) -> list[str]:
    """Models, adapters and their settings fit together, as far as files on disk can tell. Raises UserError.

    directory: what `model_dir` returned. Returns notices: what is allowed, but worth a line on the screen.
    """
    notices = _check_precision(config, stages)
    if not config.model.is_dummy and (stages & {"train", "evaluate"} or ("generate" in stages and not config.inference.endpoint)):
        pretrained.check(directory, config.model.revision)
    if "train" in stages:
        check_lora(config, directory)
        for arm, section in config.arms.items():
            if section.train.start:
                check_adapter(f"arms.{arm}.train.start.adapter", section.train.start.adapter, directory)
    if "evaluate" in stages:
        for name, path in given_adapters(config).items():
            check_adapter(f"evaluation.adapters.{name}", path, directory)
        if "course_correction" in suites:
            course_correction.check_prefill(load_tokenizer(config, directory), config.model.path)
    if "generate" in stages and config.recipe.name == "course_correction":
        notices += _check_aligned(config, directory)
    return notices


def _check_precision(config: Config, stages: set[str]) -> list[str]:
    """A notice where this CPU would emulate bfloat16, which takes many times longer."""
    if cpu_has_bf16() or config.model.is_dummy:
        return []
    slow = []
    if stages & {"generate", "evaluate"} and config.inference.num_gpus == 0 and config.model.dtype in ("auto", "bfloat16"):
        slow.append("model.dtype: float32")
    if "train" in stages and any(arm.train.bf16 and not arm.train.use_gpu for arm in config.arms.values()):
        slow.append("train.bf16: false")
    return [f"this CPU has no bfloat16 instructions: {' and '.join(slow)} would be much faster"] if slow else []


def _check_aligned(config: Config, directory: str) -> list[str]:
    """The aligned model can continue a turn, its adapter fits it; a notice where its tokens are others than the trained model's."""
    model, adapter = generator(config)
    if config.inference.endpoint:
        if adapter or config.recipe.aligned.model:
            raise UserError("recipe.aligned: inference.endpoint serves the model that generates; leave recipe.aligned out, or the endpoint")
        if not config.inference.endpoint.prefill:
            raise UserError("inference.endpoint.prefill = false: course_correction continues turns; set it to true if the server can")
        return []
    own = model_dir(model)
    if model.is_dummy or config.model.is_dummy:
        return []
    if own != directory:
        pretrained.check(own, model.revision, "recipe.aligned.model.path")
    if adapter:
        check_adapter("recipe.aligned.adapter", adapter, own)
    tokenizer = load_tokenizer(config, own, model)
    course_correction.check_prefill(tokenizer, model.path, "recipe.aligned.model" if config.recipe.aligned.model else "model")
    if own == directory or tokenizer.get_vocab() == load_tokenizer(config, directory).get_vocab():
        return []
    return [
        f"generate: {model.path} has another tokenizer than {config.model.path}; its continuations are text, tokenised again for training"
    ]


def cached_model_dir(config: Config) -> str | None:
    """The model's directory if nothing has to be downloaded for it; None otherwise."""
    if config.model.is_dummy:
        return None
    if os.path.isdir(directory := model_dir(config.model)):
        return directory
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(config.model.path, "config.json", revision=config.model.revision)
    return os.path.dirname(file) if isinstance(file, str) else None


def load_tokenizer(config: Config, directory: str, model: Model | None = None):
    """The tokenizer of a model (by default the run's), which can render a chat. Raises UserError where it cannot."""
    model = model or config.model
    try:
        tokenizer = pretrained.tokenizer(directory, model.revision)
    except UserError:
        raise
    except Exception as e:  # each backend has its own exceptions for a file that is missing, broken or out of reach
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"model.path = {model.path}: its tokenizer cannot be loaded ({reason})") from None
    if not tokenizer.chat_template:
        raise UserError(f"model.path = {model.path}: its tokenizer has no chat template; add chat_template.jinja to the model directory")
    return tokenizer


def _has_chat_template(directory: Path) -> bool:
    """Where transformers looks for one; read as files, since importing transformers takes longer than everything else here."""
    if (directory / "chat_template.jinja").exists() or (directory / "chat_template.json").exists():
        return True
    settings = directory / "tokenizer_config.json"
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(
            f"model.path = {directory}: {settings.name} cannot be read as JSON ({type(e).__name__}); copy the model again"
        ) from None


def arm_specs(config: Config, directory: str) -> dict[str, "ArmSpec"]:
    """The arms to train, by name. directory: what `model_dir` returned."""
    from pipeline.training.arm import ArmSpec

    return {
        name: ArmSpec(name, arm.train, arm.kinds, config.model, directory, config.seed, partial(config.field_of, name))
        for name, arm in config.arms.items()
    }


def check_lora(config: Config, directory: str) -> None:
    """The LoRA settings must fit the model's modules. Found before hours of generation, not after. Raises UserError."""
    try:
        with imports.quick():
            from pipeline.training.arm import check_lora as fits

            fits(arm_specs(config, directory).values())
    except (OSError, ValueError) as e:  # the hub out of reach, or a config.json that transformers does not understand
        raise UserError(
            f"model.path = {config.model.path}: its configuration cannot be loaded ({str(e).strip().splitlines()[0]})"
        ) from None


def check_adapter(field: str, adapter: str, base_dir: str) -> None:
    """An adapter's matrices must have the shapes of the base model's. Raises UserError.

    Reads only the safetensors headers; a base that is a hub id is not checked here.
    """
    try:
        matrices = shapes(storage.join(adapter, FILES[1]))
    except (OSError, ValueError) as e:
        raise UserError(f"{field}: {adapter} is not a readable PEFT adapter ({e}); train it again with --overwrite") from None
    if not os.path.isdir(base_dir):
        return
    base = {name: shape for file in Path(base_dir).glob("*.safetensors") for name, shape in shapes(str(file)).items()}
    for name, shape in matrices.items():
        if ".lora_A." not in name:
            continue
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        if target not in base or base[target][1] != shape[1]:
            found = f"{list(base[target])} there" if target in base else "absent there"
            raise UserError(
                f"{field}: {adapter} does not fit the model {base_dir} ({target} has inputs {shape[1]} here, is {found}); train it on this model"
            )
