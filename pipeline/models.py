"""Model files: their location and their validity."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import pretrained
from pipeline.chat import assistant, user
from pipeline.data import records, storage
from pipeline.data.adapter import FILES
from pipeline.errors import UserError
from pipeline.settings.base import Model
from pipeline.settings.shown import first_line, shown
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
    if path == "toy":
        return
    if os.path.isdir(directory):
        if os.path.exists(os.path.join(directory, FILES[0])):
            raise UserError(
                f"{field}.path = {path}: the directory holds an adapter ({FILES[0]}); name the model that it"
                " belongs to, and the adapter in adapters, in a directory of its own"
            )
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
    if looks_local or os.path.exists(directory) or not _is_hub_id(path):
        raise UserError(
            f"{field}.path = {path}: no such model directory; give a directory, a hub id such as org/name,"
            " or toy"
        )


def _is_hub_id(path: str) -> bool:
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(path)
    except ValueError:
        return False
    return True


def model_dir(model: Model) -> str:
    """The directory or hub id that engines and trainers load."""
    if model.path == "toy":
        from pipeline.toy.model import WEIGHTS

        return str(WEIGHTS)
    path = os.path.expanduser(model.path)
    return os.path.abspath(path) if os.path.isdir(path) else path


def cached_model_dir(model: Model) -> str | None:
    """The model's directory if it needs no download, else None."""
    if os.path.isdir(directory := model_dir(model)):
        return directory
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(model.path, "config.json", revision=model.revision)
    except ValueError:  # no name that a hub allows: `check_model_path` refuses it
        return None
    return os.path.dirname(file) if isinstance(file, str) else None


def pinned(model: Model, run_dir: str, *, anew: bool = False) -> Model:
    """The model at the commit that its revision meant when the run directory began.

    A push to the hub in mid-run would else give the processes of a run different weights. The commit is that
    of the files that preflight has downloaded; a model that is not in the cache stays as it is. anew: whether
    all that the directory holds is made again.
    """
    if os.path.isdir(model_dir(model)):
        return model
    file, name = storage.join(run_dir, ".state", "revisions.json"), f"{model.path}@{model.revision or 'main'}"
    known = {} if anew else (records.read(file) or {})
    if name not in known:
        found = os.path.basename(cached_model_dir(model) or "")
        if not re.fullmatch("[0-9a-f]{40}", found):
            return model
        known[name] = found
        records.write(file, known)
    return model.at(known[name])


def load_tokenizer(model: Model, directory: str) -> Any:
    """The tokenizer of a model. Raises UserError if it does not load or has no chat template."""
    try:
        tokenizer = pretrained.tokenizer(directory, model.revision)
    except UserError:
        raise
    except Exception as e:  # each backend has its own exceptions for missing, broken or unreachable files
        if _on_hub(model, "tekken.json") and not _on_hub(model, "tokenizer.json"):
            raise UserError(f"model.path = {model.path}: {_TEKKEN_ALONE}") from None
        reason = first_line(e)
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
        raise UserError(
            f"{field}.path = {model.path}: its config.json or generation_config.json cannot be read"
            f" ({shown(e)})"
        ) from None
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


# Endings of architectures that read texts and write none; their weights have no head that does.
_READERS = (
    "Classification",
    "RewardModel",
    "MaskedLM",
    "QuestionAnswering",
    "Model",
    "MultipleChoice",
    "Regression",
)


def check_writes(model: Model, directory: str, field: str = "model") -> None:
    """Raises UserError for a model whose weights cannot write a text, such as a classifier or an encoder, and
    for one that reads images if the library for them is not installed, without which it does not load."""
    try:
        found = pretrained.architecture(directory, model.revision)
        named = (found.architectures or [""])[0]
    except (OSError, ValueError) as e:
        raise UserError(
            f"{field}.path = {model.path}: its configuration cannot be loaded ({shown(e)})"
        ) from None
    if named.endswith(_READERS) and not named.endswith("LMHeadModel"):
        raise UserError(
            f"{field}.path = {model.path}: {named} writes no texts; name a model that does (…ForCausalLM)"
        )
    if getattr(found, "vision_config", None) is not None and find_spec("torchvision") is None:
        raise UserError(
            f"{field}.path = {model.path}: {named or 'the model'} reads images too, and engines load such"
            " models only with torchvision, which is not installed: install it, or name a text model of the"
            " family"
        )


def quantization(model: Model, directory: str, field: str = "model") -> dict[str, Any] | None:
    """How a model's weights are quantized; None if they are not.

    Raises UserError if its files cannot be read.
    """
    try:
        return pretrained.quantization(directory, model.revision)
    except (OSError, ValueError) as e:
        raise UserError(
            f"{field}.path = {model.path}: its configuration cannot be loaded ({shown(e)})"
        ) from None


def vocabulary(model: Model, directory: str) -> int | None:
    """How many tokens a model has embeddings for, by its config.json."""
    return getattr(pretrained.architecture(directory, model.revision).get_text_config(), "vocab_size", None)


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


def check_prefill(
    template: ChatTemplate, path: str, field: str = "model", needed_by: str = "course correction"
) -> None:
    """Raises UserError if a chat template cannot continue an assistant turn. The rest is for the message."""
    prefill = "Sure, here is how: first,"
    try:
        text = template.render([user("How?"), assistant(prefill)], continues=True)
    except UserError:
        text = ""
    if not text.endswith(prefill):
        raise UserError(
            f"{field}.path = {path}: its chat template cannot continue an assistant's turn, "
            f"which {needed_by} needs; replace chat_template.jinja in the model directory with one that "
            "keeps the last message unchanged"
        )
