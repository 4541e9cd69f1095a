"""The adapter that training begins from; its matrices are trained further."""

import hashlib
import os
from typing import TYPE_CHECKING, Any

from pipeline.data import storage
from pipeline.data.adapter import FILES
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.training.base import Start

# Settings that may differ from PEFT's defaults in plain LoRA: y = Wx + scaling · B A x, one rank, one
# scaling.
_PLAIN = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "use_rslora", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "auto_mapping", "peft_version",
}  # fmt: skip


def directory(start: "Start") -> str:
    """The start adapter's directory, as a path that means the same in every process."""
    return storage.absolute(start.adapter)


def load_config(adapter_dir: str, field: str) -> Any:
    """PEFT's configuration of a plain LoRA adapter. Raises UserError, naming `field`, for anything else."""
    from peft import LoraConfig, PeftConfig

    if lacking := [name for name in FILES if not os.path.exists(os.path.join(adapter_dir, name))]:
        raise UserError(f"{field} = {adapter_dir}: no {lacking[0]}; name the directory of a PEFT adapter")
    try:
        found = PeftConfig.from_pretrained(adapter_dir)
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UserError(
            f"{field} = {adapter_dir}: its adapter_config.json cannot be read ({type(e).__name__}); train it"
            " again"
        ) from None
    if not isinstance(found, LoraConfig):
        raise UserError(
            f"{field} = {adapter_dir}: its type is {found.peft_type.value}; only LoRA adapters can be"
            " trained on"
        )
    default = vars(LoraConfig())
    odd = [name for name, value in vars(found).items() if name not in _PLAIN and value != default.get(name)]
    odd = [
        name
        for name in odd
        if not (name == "init_lora_weights" and found.init_lora_weights in (False, "gaussian", "orthogonal"))
    ]
    if odd:
        raise UserError(
            f"{field} = {adapter_dir}: {odd[0]} makes it more than plain LoRA; train one without {odd[0]}"
        )
    return found


def check_fits(start: "Start", shapes: dict[str, tuple[int, ...]], field: str) -> None:
    """The start adapter's matrices must have the shapes of an adapter of this model; the rank may differ.

    shapes: of the adapter to train, by PEFT's names. Raises UserError.
    """
    from safetensors import safe_open

    where = directory(start)
    with safe_open(os.path.join(where, FILES[1]), "pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  it is no dict

    if found.keys() != shapes.keys():
        odd = min(found.keys() ^ shapes.keys())
        holder = "it alone has" if odd in found else "it lacks"
        raise UserError(
            f"{field} = {where}: it does not fit the model ({holder} {odd}); name an adapter of this model"
        )
    for name, shape in found.items():
        inputs_or_outputs = 1 if ".lora_A." in name else 0
        if shape[inputs_or_outputs] != shapes[name][inputs_or_outputs]:
            raise UserError(
                f"{field} = {where}: it does not fit the model ({name} is {shape}); name an adapter of this"
                " model"
            )


def content(start: "Start | None") -> str | None:
    """A digest of the start adapter's files; None without a start adapter."""
    if start is None:
        return None
    digest = hashlib.sha256()
    for name in FILES:
        with open(os.path.join(directory(start), name), "rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


def load(model: Any, adapter_dir: str) -> None:
    """Load the matrices of `adapter_dir`, in float32, into a PEFT model's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    tensors = load_file(os.path.join(adapter_dir, FILES[1]))
    found = set_peft_model_state_dict(model, {name: tensor.float() for name, tensor in tensors.items()})
    if found.unexpected_keys:
        raise ValueError(f"{adapter_dir} does not fit: {found.unexpected_keys[0]}")
