"""Whether an engine can apply a finished adapter to the base model as PEFT does."""

import json
import os
import re
from pathlib import Path

from pipeline.data import storage
from pipeline.data.adapter import FILES, MOST_RANK, changes_nothing, odd_number, rank, shapes
from pipeline.data.adapter import settings as settings_of
from pipeline.errors import UserError
from pipeline.settings.shown import first_line

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
