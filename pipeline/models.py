"""Model and adapter files: their location, their validity, and whether they fit together."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline import pretrained
from pipeline.chat import assistant, user
from pipeline.data import records, storage
from pipeline.data.adapter import FILES, MOST_RANK, changes_nothing, odd_number, rank, shapes
from pipeline.data.adapter import settings as settings_of
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


_MERGE = "train plain LoRA, or merge it into the model (PEFT's merge_and_unload) and give that as model.path"
# PEFT options that change what the adapter computes. vLLM ignores them, or dies when a request first names
# the adapter. vLLM computes rsLoRA, and ranks and alphas per module, as PEFT does.
_NOT_SERVED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules besides the LoRA matrices",
    "trainable_token_indices": "trained token embeddings",
    "lora_bias": "biases of the LoRA matrices",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QA-LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA, which changes the base weights",
    "monteclora_config": "Monte Carlo LoRA",
}
# Initializations that leave the base weights as they are; vLLM knows the same.
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
# Architectures whose embeddings and head vLLM can adapt (`embedding_modules` of its model classes).
_ADAPTS_EMBEDDINGS = ("LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen3ForCausalLM")
_MATRIX = re.compile(r"(?:base_model\.model\.)?(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))")


def check_adapter(field: str, adapter: str, base_dir: str) -> list[str]:
    """Check that the engine can apply an adapter to the base model as PEFT does. Raises UserError.

    Reads adapter_config.json and the safetensors headers; a base that is a hub id is compared only if it has
    been downloaded. Returns notices.
    """
    try:
        settings = settings_of(adapter)
        if odd := _not_served(settings):
            raise UserError(f"{field}: the adapter {adapter} has {odd}, which vLLM does not serve; {_MERGE}")
        matrices, nothing = shapes(storage.join(adapter, FILES[1])), changes_nothing(adapter)
        odd = odd_number(adapter)
    except (OSError, ValueError, LookupError, TypeError) as e:
        reason, remedy = _unreadable(adapter, e)
        raise UserError(f"{field}: {adapter} is not a readable PEFT adapter ({reason}); {remedy}") from None
    if odd:
        raise UserError(f"{field}: the adapter {adapter} holds {odd}; train it again")
    pairs = _pairs(field, adapter, matrices)
    _check_ranks(field, adapter, settings, pairs)
    if (local := _on_disk(base_dir)) is not None:
        _check_fits(field, adapter, pairs, local)
    notices = []
    if nothing:
        notices.append(f"{field}: all B matrices of {adapter} are zero, so it changes nothing")
    elif settings.get("lora_alpha") == 0:
        notices.append(f"{field}: lora_alpha of {adapter} is 0, so it changes nothing")
    named = str(settings.get("base_model_name_or_path") or "")
    if named and _last(named) != _last(base_dir):
        notices.append(f"{field}: {adapter} was trained on {named}, and is used on {base_dir}")
    return notices


def _unreadable(adapter: str, e: Exception) -> tuple[str, str]:
    """Why an adapter cannot be read, and a remedy."""
    config, weights = FILES
    if not storage.exists(adapter):
        return "no such directory", "name the directory of an adapter; download one of the hub first"
    if storage.is_local(adapter) and os.path.isfile(adapter):
        return "it is a file", "name its directory"
    names = [storage.name(file) for file in storage.files(adapter)]
    if config not in names:
        found = (storage.join(adapter, name) for name in storage.directories(adapter))
        if inside := next((place for place in found if storage.exists(storage.join(place, config))), None):
            return f"it holds no {config}", f"name one of the adapters in it, such as {inside}"
        if "config.json" in names:
            return "it is a model", "give it as model.path, or name the adapter that it was merged with"
        return f"it holds no {config}", "name the directory that does"
    if weights not in names:
        if any(name.startswith("adapter_model-") for name in names):
            return "its matrices are in several files", "load it with PEFT and save it into one"
        if pickled := next((name for name in names if name.startswith("adapter_model.")), None):
            return f"its matrices are in {pickled}, whose format can run code", f"save it as {weights}"
        return f"it holds no {weights}", "copy it again"
    return first_line(e), "copy it again, or train it again with --overwrite"


def _check_ranks(
    field: str, adapter: str, settings: dict, pairs: dict[str, dict[str, tuple[int, ...]]]
) -> None:
    """The matrices must have the ranks that the configuration names, which scale them. Raises UserError."""
    alpha, named = (
        settings.get("lora_alpha", 1),
        {settings["r"], *(settings.get("rank_pattern") or {}).values()},
    )
    if not isinstance(alpha, int | float):
        raise UserError(
            f"{field}: lora_alpha in adapter_config.json of {adapter} is no number; copy it again"
        )
    for module, sides in pairs.items():
        if ".experts" not in module and not {sides["A"][0], sides["B"][-1]} <= named:
            raise UserError(
                f"{field}: the adapter {adapter} has matrices of rank {sides['A'][0]} for {module}, and its"
                f" adapter_config.json says {' or '.join(map(str, sorted(named)))}; copy both files again"
            )


def _not_served(settings: dict) -> str | None:
    """Why vLLM cannot apply the adapter; None if it can.

    Raises ValueError if the rank is not a number.
    """
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        return f"the type {kind} (peft_type)"
    for option, what in _NOT_SERVED.items():
        if settings.get(option):
            return f"{what} ({option})"
    if settings.get("bias", "none") != "none":
        return f"biases (bias: {settings['bias']})"
    init = settings.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        return f"an initialization that changes the base weights (init_lora_weights: {init})"
    most = rank(settings)
    return f"rank {most} (at most {MOST_RANK})" if most > MOST_RANK else None


def _pairs(
    field: str, adapter: str, matrices: dict[str, tuple[int, ...]]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Per adapted module, the shapes of its matrices, `A` and `B`. Raises UserError for anything else."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in matrices.items():
        if name.endswith((".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")):
            found.setdefault(name.removeprefix("base_model.model.").removesuffix(".base_layer.weight"), {})[
                "base"
            ] = shape
            continue
        match = _MATRIX.fullmatch(name)
        if match is None:
            raise UserError(
                f"{field}: the adapter {adapter} holds {name}, which is no LoRA matrix, so vLLM does not"
                f" serve it; {_MERGE}"
            )
        found.setdefault(match[1], {})[match[2] or match[3]] = shape
    if not any(found.values()):
        raise UserError(f"{field}: the adapter {adapter} holds no LoRA matrix; train it again")
    for module, sides in found.items():
        if "base" in sides and len(sides) == 1:
            raise UserError(
                f"{field}: the adapter {adapter} holds the whole of {module}, which vLLM does not serve;"
                f" {_MERGE}"
            )
        if not {"A", "B"} <= sides.keys():
            raise UserError(
                f"{field}: the adapter {adapter} has only one LoRA matrix of {module}; copy it again"
            )
    return found


def _check_fits(
    field: str, adapter: str, pairs: dict[str, dict[str, tuple[int, ...]]], base_dir: str
) -> None:
    """Each pair of matrices must belong to a weight of the base model. Raises UserError."""
    base = {
        name: shape
        for file in Path(base_dir).glob("*.safetensors")
        for name, shape in shapes(str(file)).items()
    }
    embeddings = next((shape for name, shape in base.items() if name.endswith("embed_tokens.weight")), None)
    for module, sides in pairs.items():
        target, leaf = f"{module}.weight", module.rpartition(".")[2]
        shape = base.get(target)
        if leaf in ("lm_head", "embed_tokens"):
            if not _adapts_embeddings(base_dir):
                raise UserError(
                    f"{field}: the adapter {adapter} covers {module}, which vLLM does not serve for"
                    f" {base_dir}; {_MERGE}"
                )
            shape = shape or embeddings  # a tied head has no weight of its own
        if ".experts" in module and shape is None:
            continue  # experts are stored in several ways; vLLM checks them
        outputs, inputs = (shape[0], shape[1]) if shape and len(shape) == 2 else (0, 0)
        if leaf == "embed_tokens" and shape:
            outputs, inputs = inputs, outputs  # rows of an embedding are its inputs
        if shape and "base" in sides and sides["base"] != shape:
            raise UserError(
                f"{field}: the adapter {adapter} has a vocabulary of {sides['base'][0]} tokens, the model"
                f" {base_dir} has {shape[0]}; {_MERGE}"
            )
        if (sides["A"][-1], sides["B"][0]) != (inputs, outputs):
            has = f"has shape {list(shape)}" if shape else "is absent"
            raise UserError(
                f"{field}: {adapter} does not fit the model {base_dir} ({target} has {sides['A'][-1]} inputs"
                f" and {sides['B'][0]} outputs in the adapter and {has} in the model); train it on this model"
            )


def _on_disk(base_dir: str) -> str | None:
    """The directory with the base model's weights; None if they are not on this machine."""
    if os.path.isdir(base_dir):
        return base_dir
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(base_dir, "config.json")
    except HFValidationError:  # no hub id
        return None
    found = os.path.dirname(config) if isinstance(config, str) else None
    return found if found and any(Path(found).glob("*.safetensors")) else None


def _adapts_embeddings(base_dir: str) -> bool:
    try:
        found = json.loads(Path(base_dir, "config.json").read_text(encoding="utf-8")).get("architectures")
    except (OSError, ValueError, AttributeError):
        return False
    return bool(found) and found[0] in _ADAPTS_EMBEDDINGS


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2].lower()


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
