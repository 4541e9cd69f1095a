"""The adapter that training begins from: continued, or frozen under a new one and joined with it at the end.

Hooks add a frozen adapter to the outputs of the base model's linear layers. PEFT, TRL and the checkpoints
then see only the trained adapter, and disabling that one leaves base + frozen.
"""

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

from pipeline.data import storage
from pipeline.data.adapter import FILES
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.training.config import Start

# Settings that may differ from PEFT's defaults in plain LoRA: y = Wx + scaling · B A x, one rank, one
# scaling.
_PLAIN = {
    "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "use_rslora", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "auto_mapping", "peft_version",
}  # fmt: skip


def directory(start: "Start") -> str:
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


def matrices(adapter_dir: str) -> dict[str, Any]:
    """An adapter's tensors, on the CPU in float32, by PEFT's names."""
    from safetensors.torch import load_file

    return {name: tensor.float() for name, tensor in load_file(os.path.join(adapter_dir, FILES[1])).items()}


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
        if start.how == "stack":
            raise UserError(
                f"{field} = {where}: its target modules differ from train.lora's ({holder} {odd}); "
                "set train.lora.target_modules to the adapter's"
            )
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
    """Load the matrices of `adapter_dir` into a PEFT model's adapter."""
    from peft import set_peft_model_state_dict

    found = set_peft_model_state_dict(model, matrices(adapter_dir))
    if found.unexpected_keys:
        raise ValueError(f"{adapter_dir} does not fit: {found.unexpected_keys[0]}")


def freeze_under(model: Any, adapter_dir: str) -> None:
    """Add a frozen adapter to a base model (one that PEFT has not wrapped yet)."""
    frozen = matrices(adapter_dir)
    scaling = scaling_of(load_config(adapter_dir, "start.adapter"))
    for name, down in frozen.items():
        if ".lora_A." in name:
            layer = model.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            # Non-persistent buffers move with the model and stay out of checkpoints.
            layer.register_buffer("frozen_down", down, persistent=False)
            layer.register_buffer(
                "frozen_up", frozen[name.replace(".lora_A.", ".lora_B.")] * scaling, persistent=False
            )
            layer.register_forward_hook(_add_frozen)


def _add_frozen(layer, inputs, output):
    import torch.nn.functional as F

    return output + F.linear(
        F.linear(inputs[0].to(layer.frozen_down.dtype), layer.frozen_down), layer.frozen_up
    ).to(output.dtype)


def scaling_of(config: Any) -> float:
    return config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)


def join(frozen_dir: str, trained_dir: str, out_dir: str) -> None:
    """Write frozen + trained as one adapter, exactly: matrices joined along the rank, scalings multiplied in.

    PEFT's `add_weighted_adapter("cat")` computes the same, but needs a loaded base model, and keeps the first
    adapter's `use_rslora`, which then scales the result by √r.
    """
    import torch
    from safetensors.torch import save_file

    sides = [(matrices(d), scaling_of(load_config(d, "start.adapter"))) for d in (frozen_dir, trained_dir)]
    joined = {}
    for name in sides[0][0]:
        if ".lora_A." in name:
            joined[name] = torch.cat([tensors[name] for tensors, _ in sides])
        else:
            joined[name] = torch.cat([tensors[name] * scaling for tensors, scaling in sides], dim=1)
    with open(os.path.join(trained_dir, FILES[0]), encoding="utf-8") as f:
        config = json.load(f)
    config["r"] = config["lora_alpha"] = sum(
        load_config(d, "start.adapter").r for d in (frozen_dir, trained_dir)
    )
    config["use_rslora"] = False
    os.makedirs(out_dir, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in joined.items()},
        os.path.join(out_dir, FILES[1]),
        metadata={"format": "pt"},
    )
    with open(os.path.join(out_dir, FILES[0]), "w", encoding="utf-8") as f:
        json.dump(config, f, indent=2)


def assemble(frozen_dir: str | None, trained_dir: str, out_dir: str) -> None:
    """Put the adapter to publish into `out_dir`: the trained one, joined with the frozen one, if any."""
    if frozen_dir is not None:
        join(frozen_dir, trained_dir, out_dir)
        return
    for name in FILES:
        shutil.copy(os.path.join(trained_dir, name), out_dir)
