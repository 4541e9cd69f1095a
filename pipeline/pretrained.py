"""Opens third-party models without executing their code; no other module calls `from_pretrained` on them.

Python code of a model (`auto_map`) never runs. Weights are read from safetensors only. The caller chooses the
attention, because a model's choice could name a kernel on the hub. Chat templates run in transformers'
sandbox.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from pipeline.data import adapter
from pipeline.errors import UserError

CONNECT_S = 5  # until a hub accepts a connection
SAFE = {"trust_remote_code": False}
SAFE_WEIGHTS = {**SAFE, "use_safetensors": True}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5")


_read: dict[tuple, Any] | None = None  # what is read once, while `read_once` runs


@contextmanager
def read_once() -> Iterator[None]:
    """While the body runs, a model's configuration and tokenizer are read from its files the first time only.

    For checks, which ask for both many times and change neither.
    """
    global _read
    if _read is not None:  # nested
        yield
        return
    _read = {}
    try:
        yield
    finally:
        _read = None


def _kept(read: Callable[[str, str | None], Any]) -> Callable[..., Any]:
    """A function that reads a file of a model, for `read_once`."""

    @wraps(read)
    def reads(directory: str, revision: str | None = None) -> Any:
        known, key = _read if _read is not None else {}, (read, directory, revision)
        if key not in known:
            known[key] = read(directory, revision)
        return known[key]

    return reads


@_kept
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
    except TypeError as e:  # no object
        raise ValueError(f"generation_config.json: {e}") from None
    except OSError:
        found = architecture(directory, revision).get_text_config().eos_token_id
    ids = [token for token in (found if isinstance(found, list) else [found]) if token is not None]
    if odd := [token for token in ids if not isinstance(token, int)]:
        raise ValueError(f"eos_token_id holds {odd[0]!r}, which is no token id")
    return {token for token in (tokenizer.eos_token_id, *ids) if token is not None}


def generation_settings(directory: str, revision: str | None = None) -> dict[str, Any]:
    """The content of a model's generation_config.json, without nulls; empty if it has no such file.

    Raises OSError if the hub cannot be reached, ValueError if the file is no JSON object.
    """
    _check_hub(directory, revision)  # before the import, which takes seconds
    from transformers.utils import cached_file

    file = cached_file(
        directory, "generation_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    found = {} if file is None else json.loads(Path(file).read_bytes())
    if not isinstance(found, dict):
        raise ValueError("generation_config.json holds no object")
    return {name: value for name, value in found.items() if value is not None}


def _check_hub(directory: str, revision: str | None) -> None:
    """Raises ConnectionError within CONNECT_S if a model is on a hub to which there is no connection.

    Downloads would retry for half a minute before they say so. A hub that is slow to answer is no error.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    if os.path.isdir(directory) or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(directory, "config.json", revision=revision), str):
        return
    hub = constants.ENDPOINT
    try:
        get_session().head(hub, timeout=CONNECT_S)
    except Exception as e:  # the classes are those of the hub's HTTP client, which has changed twice
        if type(e).__name__ in ("ConnectError", "ConnectTimeout", "ConnectionError"):
            raise ConnectionError(
                f"no connection to {hub}, and the model is not on this disk: download it first, or fix the"
                " network"
            ) from None


@_kept
def architecture(directory: str, revision: str | None = None) -> Any:
    """The configuration of a model. Raises UserError if loading needs the model's own code."""
    from transformers import AutoConfig

    with _no_code(directory):
        try:
            return AutoConfig.from_pretrained(directory, revision=revision, **SAFE)
        except (LookupError, TypeError, AttributeError) as e:  # of values that no model has
            raise ValueError(f"config.json: {type(e).__name__}: {e}") from None


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

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(architecture, attn_implementation="eager", **SAFE)
    except (LookupError, TypeError, AttributeError) as e:  # of values that no model has
        raise ValueError(f"config.json: {type(e).__name__}: {e}") from None


def layers_to_shard(model: Any) -> list[str]:
    """The modules that a sharded model gathers one at a time, by transformers' plan of its class."""
    from transformers.distributed.fsdp import expand_fsdp_plan

    gathered, _ = expand_fsdp_plan(model, model.fsdp_plan or {})
    return [name for name, _ in gathered if name.rpartition(".")[2].isdigit()]


def model(
    directory: str,
    revision: str | None = None,
    *,
    dtype: str,
    attention: str = "eager",
    load_in_4bit: bool = False,
    shards: int = 1,
) -> Any:
    """A model with its weights.

    load_in_4bit: the linear modules of its layers are held in NF4 (Dettmers et al. 2023, arXiv 2305.14314),
    on the current GPU if there is one, and computed in `dtype`.
    shards: the processes of torch.distributed over which the weights are split (FSDP2). Each reads its part
    of every tensor from the files, on its own device; a layer is whole there only while it computes.

    Raises UserError if the weights are not safetensors, or if loading needs the model's own code.
    """
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    check_weights(directory)
    # Else transformers asks a public service to convert pickled weights, and loads the result.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    with _no_code(directory):
        # as an object; else the attention in its file overrides the argument
        found = architecture(directory, revision)
        loaded = AutoModelForCausalLM.from_pretrained(
            directory,
            revision=revision,
            config=found,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=_nf4(dtype) if load_in_4bit else None,
            distributed_config=DistributedConfig(fsdp_size=shards) if shards > 1 else None,
            **SAFE_WEIGHTS,
        )
    for part in loaded.modules() if load_in_4bit else ():
        # Else a pass in evaluation packs the weights on CPUs with AVX-512 BF16 for good, and the backward
        # passes after it silently leave out the gradient through them.
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return loaded


def _nf4(dtype: str) -> Any:
    """QLoRA's settings of bitsandbytes: NF4, with the scales quantized too."""
    from transformers import BitsAndBytesConfig

    # When it is imported on some CPUs, bitsandbytes loads compiled code from the hub, if `kernels` is there.
    kernels = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    finally:
        del sys.modules["kernels"]
        if kernels is not None:
            sys.modules["kernels"] = kernels
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16" if dtype == "auto" else dtype,
    )


def check_weights(directory: str, field: str = "model.path") -> None:
    """Raises UserError if a directory's weights are not safetensors.

    A hub id is checked when it is loaded.
    """
    if not os.path.isdir(directory):
        return
    names = sorted(os.listdir(directory))
    if "adapter_config.json" in names:  # transformers would load the model that the adapter names instead
        raise UserError(
            f"{field} = {directory}: holds an adapter beside the model (adapter_config.json); move the"
            " adapter into a directory of its own, and name it in adapters"
        )
    if weights := [name for name in names if name.endswith(".safetensors")]:
        _check_whole(directory, weights, field)
        return
    if gguf := next((name for name in names if name.endswith(".gguf")), None):
        raise UserError(
            f"{field} = {directory}: its weights are in {gguf}, which is not read; name the model in"
            " safetensors"
        )
    if pickled := [name for name in names if Path(name).suffix in _PICKLES]:
        raise UserError(
            f"{field} = {directory}: its weights are in {pickled[0]}, whose format can run code; save the"
            " model as safetensors"
        )
    raise UserError(f"{field} = {directory}: holds no *.safetensors, so no weights; copy the model again")


def _check_whole(directory: str, names: list[str], field: str) -> None:
    """Raises UserError for files of weights that are cut off or missing, or hold too few layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    index = Path(directory, "model.safetensors.index.json")
    try:
        named = set(json.loads(index.read_bytes())["weight_map"].values()) if index.is_file() else set()
        if absent := sorted(named - set(names)):
            raise ValueError(f"{absent[0]} is missing")
        for name in sorted(named) or names:
            try:
                shapes |= adapter.shapes(str(Path(directory, name)))
            except (OSError, ValueError) as e:
                raise ValueError(f"{name}: {str(e) or type(e).__name__}") from None
        settings = _settings(directory)
        layers = settings.get("num_hidden_layers")
        numbers = [int(found[1]) for name in shapes if (found := _LAYER.search(name))]
        if isinstance(layers, int) and numbers and max(numbers) + 1 < layers:
            raise ValueError(f"config.json names {layers} layers, and they hold {max(numbers) + 1}")
        size = (settings.get("vocab_size"), settings.get("hidden_size"))
        for name, shape in shapes.items():
            if name.endswith(".embed_tokens.weight") and None not in size and shape != size:
                raise ValueError(f"{name} has shape {list(shape)}, by config.json {list(size)}")
    except FileNotFoundError:  # without a config.json it is no model, which others say
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
        raise UserError(
            f"{field} = {directory}: its weights are not whole ({str(e) or type(e).__name__}); copy the"
            " model again"
        ) from None


def _settings(directory: str) -> dict:
    """The content of config.json. Raises FileNotFoundError; ValueError if it is no JSON object."""
    try:
        found = json.loads(Path(directory, "config.json").read_bytes())
    except ValueError as e:
        raise ValueError(f"config.json: {e}") from None
    if not isinstance(found, dict):
        raise ValueError("config.json holds no object")
    return found


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
