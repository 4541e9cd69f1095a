"""Model and adapter files: their location, their validity, and whether they fit together."""

import json
import os
from pathlib import Path
from typing import Any

from pipeline import pretrained
from pipeline.chat import assistant, user
from pipeline.data import storage
from pipeline.data.adapter import FILES, shapes
from pipeline.errors import UserError
from pipeline.settings.base import Model
from pipeline.settings.shown import shown
from pipeline.templates import ChatTemplate

check_weights = pretrained.check
_TEKKEN_ALONE = (
    "its tokenizer is in tekken.json alone, which is not read here; add tokenizer.json, tokenizer_config.json"
    " and chat_template.jinja of a converted copy of the model, or name such a copy"
)


def check_model_path(model: Model, field: str) -> None:
    """A model path is `toy`, an existing model directory, or looks like a hub id.

    Raises UserError otherwise.
    """
    path, directory = model.path, os.path.expanduser(model.path)
    if path == "toy" or model.is_dummy:
        return
    if os.path.isdir(directory):
        if not os.path.exists(os.path.join(directory, "config.json")):
            raise UserError(
                f"{field}.path = {path}: the directory holds no config.json, so it is not a model; name the"
                " directory that does"
            )
        if os.path.exists(os.path.join(directory, "tekken.json")) and not _has_tokenizer(Path(directory)):
            raise UserError(f"{field}.path = {path}: {_TEKKEN_ALONE}")
        if not _has_chat_template(Path(directory)):
            raise UserError(
                f"{field}.path = {path}: its tokenizer has no chat template; add chat_template.jinja to the"
                " model directory"
            )
        return
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if looks_local or os.path.exists(directory):
        raise UserError(
            f"{field}.path = {path}: no such model directory; give a directory, a hub id such as org/name,"
            " or toy"
        )


def model_dir(model: Model) -> str:
    """The directory or hub id that engines and trainers load."""
    if model.path == "toy":
        from pipeline.toy.model import WEIGHTS

        return str(WEIGHTS)
    if model.is_dummy:
        return model.path
    path = os.path.expanduser(model.path)
    return os.path.abspath(path) if os.path.isdir(path) else path


def cached_model_dir(model: Model) -> str | None:
    """The model's directory if it needs no download, else None."""
    if model.is_dummy:
        return None
    if os.path.isdir(directory := model_dir(model)):
        return directory
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    return os.path.dirname(file) if isinstance(file, str) else None


def load_tokenizer(model: Model, directory: str) -> Any:
    """The tokenizer of a model. Raises UserError if it does not load or has no chat template."""
    try:
        tokenizer = pretrained.tokenizer(directory, model.revision)
    except UserError:
        raise
    except Exception as e:  # each backend has its own exceptions for missing, broken or unreachable files
        if _on_hub(model, "tekken.json") and not _on_hub(model, "tokenizer.json"):
            raise UserError(f"model.path = {model.path}: {_TEKKEN_ALONE}") from None
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"model.path = {model.path}: its tokenizer cannot be loaded ({reason})") from None
    if not tokenizer.chat_template:
        raise UserError(
            f"model.path = {model.path}: its tokenizer has no chat template; add chat_template.jinja to the"
            " model directory"
        )
    return tokenizer


def load_template(model: Model, directory: str, field: str = "model") -> ChatTemplate:
    """The chat template of a model, with its arguments. field: for messages. Raises UserError."""
    tokenizer = load_tokenizer(model, directory)
    try:
        stops = pretrained.stop_tokens(directory, model.revision, tokenizer)
    except (OSError, ValueError) as e:
        raise UserError(f"{field}.path = {model.path}: its config.json cannot be read ({shown(e)})") from None
    return ChatTemplate(tokenizer, model.chat_template_kwargs, day=model.date, stops=stops, field=field)


def positions(model: Model, directory: str) -> int | None:
    """The longest text that a model can read, in tokens, if its config.json says so.

    Raises UserError if that file cannot be read.
    """
    try:
        found = pretrained.architecture(directory, model.revision).get_text_config()
    except (OSError, ValueError) as e:
        raise UserError(
            f"model.path = {model.path}: its configuration cannot be loaded ({shown(e)})"
        ) from None
    most = getattr(found, "max_position_embeddings", None)
    scaling = getattr(found, "rope_parameters", None) or {}
    # vLLM multiplies by the factor of these kinds; Llama's and Phi's are part of the number already.
    stretched = scaling.get("rope_type") in ("linear", "dynamic", "yarn") and scaling.get("factor")
    return int(most * stretched) if most and stretched else most


def _on_hub(model: Model, file: str) -> bool:
    """Whether a hub repository is known to hold a file."""
    from huggingface_hub import file_exists

    try:
        return not os.path.isdir(model_dir(model)) and file_exists(model.path, file, revision=model.revision)
    except Exception:  # out of reach, or no repository
        return False


def _has_tokenizer(directory: Path) -> bool:
    """Whether a model directory has a tokenizer in the files that transformers reads."""
    return any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def _has_chat_template(directory: Path) -> bool:
    """Whether a model has a chat template.

    Checks the files that transformers reads; importing transformers is slow.
    """
    if (directory / "chat_template.jinja").exists() or (directory / "chat_template.json").exists():
        return True
    settings = directory / "tokenizer_config.json"
    try:
        return bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(
            f"model.path = {directory}: {settings.name} cannot be read as JSON ({type(e).__name__}); copy the"
            " model again"
        ) from None


def check_adapter(field: str, adapter: str, base_dir: str) -> None:
    """An adapter's matrices must have the shapes of the base model's. Raises UserError.

    Reads only the safetensors headers; a base that is a hub id is not checked here.
    """
    try:
        matrices = shapes(storage.join(adapter, FILES[1]))
    except (OSError, ValueError) as e:
        raise UserError(
            f"{field}: {adapter} is not a readable PEFT adapter ({e}); train it again with --overwrite"
        ) from None
    if not os.path.isdir(base_dir):
        return
    base = {
        name: shape
        for file in Path(base_dir).glob("*.safetensors")
        for name, shape in shapes(str(file)).items()
    }
    for name, shape in matrices.items():
        if ".lora_A." not in name:
            continue
        target = name.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        if target not in base or base[target][1] != shape[1]:
            found = f"has shape {list(base[target])}" if target in base else "is absent"
            raise UserError(
                f"{field}: {adapter} does not fit the model {base_dir} ({target} has {shape[1]} inputs "
                f"in the adapter and {found} in the model); train it on this model"
            )


def check_prefill(template: ChatTemplate, path: str, field: str = "model") -> None:
    """Raises UserError if a chat template cannot continue an assistant turn. path, field: for the message."""
    prefill = "Sure, here is how: first,"
    try:
        text = template.render([user("How?"), assistant(prefill)], continues=True)
    except UserError:
        text = ""
    if not text.endswith(prefill):
        raise UserError(
            f"{field}.path = {path}: its chat template cannot continue an assistant's turn, "
            "which course correction needs; replace chat_template.jinja in the model directory with one that "
            "keeps the last message unchanged"
        )
