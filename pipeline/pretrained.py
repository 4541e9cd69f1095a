"""Opens third-party models without executing their code; no other module calls `from_pretrained` on them.

Python code of a model (`auto_map`) never runs. Weights are read from safetensors only. The caller chooses the
attention, because a model's choice could name a kernel on the hub. Chat templates run in transformers'
sandbox.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

SAFE = {"trust_remote_code": False}
SAFE_WEIGHTS = {**SAFE, "use_safetensors": True}
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5")


def tokenizer(directory: str, revision: str | None = None) -> Any:
    """The tokenizer of a model directory or hub id, from Hugging Face's files.

    A repository of Mistral's may also hold tekken.json. It is not read: mistral-common, which reads it, has
    no chat templates. Raises UserError if loading needs the model's own code.
    """
    from transformers import AutoTokenizer

    with _no_code(directory):
        return AutoTokenizer.from_pretrained(directory, revision=revision, mistral_format=False, **SAFE)


def stop_tokens(directory: str, revision: str | None, tokenizer: Any) -> set[int]:
    """The token ids at which an engine stops: the tokenizer's, and those of generation_config.json.

    For a model without that file, config.json is read, as vLLM does.
    """
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(directory, revision=revision, **SAFE).eos_token_id
    except OSError:
        found = architecture(directory, revision).get_text_config().eos_token_id
    ids = found if isinstance(found, list) else [found]
    return {token for token in (tokenizer.eos_token_id, *ids) if token is not None}


def architecture(directory: str, revision: str | None = None) -> Any:
    """The configuration of a model. Raises UserError if loading needs the model's own code."""
    from transformers import AutoConfig

    with _no_code(directory):
        return AutoConfig.from_pretrained(directory, revision=revision, **SAFE)


def quantization(directory: str, revision: str | None = None) -> dict[str, Any] | None:
    """How the weights of a model are quantized, as its files say; None if they are not.

    Some tools write that into a file of its own, and vLLM reads ModelOpt's.
    """
    found = architecture(directory, revision)
    for part in (found, found.get_text_config()):
        for name in ("quantization_config", "compression_config"):  # the second one is llm-compressor's, once
            if settings := getattr(part, name, None):
                return settings if isinstance(settings, dict) else settings.to_dict()
    for name, method in {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq"}.items():
        if (file := Path(directory, name)).is_file():
            return {"quant_method": method, **json.loads(file.read_text(encoding="utf-8"))}
    return None


def empty(architecture: Any) -> Any:
    """The model of a configuration on the device `meta`: every module and shape, no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(architecture, attn_implementation="eager", **SAFE)


def model(directory: str, revision: str | None = None, *, dtype: str, attention: str = "eager") -> Any:
    """A model with its weights.

    Raises UserError if they are not safetensors, or if loading needs the model's own code.
    """
    from transformers import AutoModelForCausalLM

    check_weights(directory)
    # Else transformers asks a public service to convert pickled weights, and loads the result.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    with _no_code(directory):
        # as an object; else the attention in its file overrides the argument
        found = architecture(directory, revision)
        return AutoModelForCausalLM.from_pretrained(
            directory,
            revision=revision,
            config=found,
            dtype=dtype,
            attn_implementation=attention,
            **SAFE_WEIGHTS,
        )


def check_weights(directory: str, field: str = "model.path") -> None:
    """Raises UserError if a directory's weights are not safetensors.

    A hub id is checked when it is loaded.
    """
    if not os.path.isdir(directory):
        return
    names = sorted(os.listdir(directory))
    if any(name.endswith(".safetensors") for name in names):
        return
    if pickled := [name for name in names if Path(name).suffix in _PICKLES]:
        raise UserError(
            f"{field} = {directory}: its weights are in {pickled[0]}, whose format can run code; save the"
            " model as safetensors"
        )
    raise UserError(f"{field} = {directory}: holds no *.safetensors, so no weights; copy the model again")


def check(directory: str, revision: str | None = None, field: str = "model.path") -> None:
    """Raises UserError if a model directory breaks these rules, judged by its small files."""
    check_weights(directory, field)
    if any(_asks_for_code(Path(directory, name)) for name in ("config.json", "tokenizer_config.json")):
        architecture(directory, revision)  # often transformers supports the model by now, without that code
        tokenizer(directory, revision)


def _asks_for_code(file: Path) -> bool:
    return file.is_file() and b"auto_map" in file.read_bytes()


@contextmanager
def _no_code(directory: str) -> Iterator[None]:
    try:
        yield
    except ValueError as e:
        if "trust_remote_code" not in str(e):
            raise
        raise UserError(
            f"model.path = {directory}: it needs its own Python code (auto_map), which is never run; use"
            " another model"
        ) from None
