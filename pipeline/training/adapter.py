"""The adapter: its LoRA configuration, and the directory that training leaves behind.

    adapter_config.json, adapter_model.safetensors   what PEFT and vLLM load; the configuration names the base
    model tokenizer files, chat_template.jinja
    metrics.jsonl                                    one line per log step
    events.out.tfevents.*                            the same for TensorBoard
    README.md                                        model card
    stage_1/ …                                       the adapter after each stage but the last
    merged/                                          base model with the adapter folded in, if `train.merge`

The driver makes both, the directory from the last checkpoint: workers need no access to the driver's disk.
"""

import json
import os
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow.fs as pafs
import yaml

from pipeline import pretrained
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.runtime import attempt
from pipeline.settings.base import Model
from pipeline.training import start
from pipeline.training.job import Job

if TYPE_CHECKING:
    from pipeline.training.base import Start, Train


def lora_config(train: "Train", revision: str | None, start_dir: str | None = None) -> Any:
    """PEFT's configuration of the adapter to train: `train.lora`, or that of the adapter to continue.

    revision: of the base model. start_dir: the adapter to continue.
    """
    from peft import LoraConfig

    if start_dir is not None:
        found = start.load_config(start_dir, "start.adapter")
        found.inference_mode, found.init_lora_weights, found.revision = False, True, revision
        return found
    lora = train.lora
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
        revision=revision,
    )


def publish(
    job: Job, tokenizer: Any, trained: Sequence[str], lines: list[dict], out_dir: str, figures: dict
) -> None:
    """Make the adapter directory of a finished training. A local directory appears at `out_dir` atomically.

    job: any of the arm's runs. trained: directories with the adapter's two files after each run, in order.
    """
    local = storage.is_local(out_dir)
    if local:
        os.makedirs(os.path.dirname(storage.absolute(out_dir)), exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=os.path.dirname(storage.absolute(out_dir)) if local else None, prefix=".adapter-"
    ) as scratch:
        whole = os.path.join(scratch, "adapter")
        os.mkdir(whole)
        adapter_files.copy(trained[-1], whole)
        for number, stage in enumerate(trained[:-1], 1):
            adapter_files.copy(stage, adapter_files.stage_directory(whole, number))
        tokenizer.save_pretrained(whole)
        with open(os.path.join(whole, "metrics.jsonl"), "w", encoding="utf-8") as f:
            f.writelines(json.dumps(line) + "\n" for line in lines)
        _tensorboard(whole, lines)
        with open(os.path.join(whole, "README.md"), "w", encoding="utf-8") as f:
            f.write(card(job, figures))
        if job.train.merge:
            _merge(job.model, job.model_dir, tokenizer, whole)
        attempt.check()
        storage.remove(out_dir)
        if local:
            os.rename(whole, storage.absolute(out_dir))
        else:
            fs, inner = storage.filesystem(out_dir)
            pafs.copy_files(whole, inner, destination_filesystem=fs)


def card(job: Job, figures: dict) -> str:
    """The model card: what was trained, on what, how, and what to be careful about."""
    from huggingface_hub import ModelCardData

    train, model = job.train, job.model
    on_hub = model.path != "toy" and not os.path.isdir(model.path)  # the header may name hub models only
    header = ModelCardData(
        library_name="peft",
        pipeline_tag="text-generation",
        base_model=model.path if on_hub else None,
        base_model_relation="adapter" if on_hub else None,
        tags=["lora", train.method, "setbacks"],
    )
    revision = f" at revision `{model.revision}`" if model.revision else ""
    kinds = "\n".join(f"| {kind} | {n} |" for kind, n in sorted(figures["kinds"].items()))
    dropped = (
        ", ".join(f"{n} {reason.replace('_', ' ')}" for reason, n in sorted(figures["drop_reasons"].items()))
        or "none"
    )
    rewards = ""
    if "final_margin" in figures:
        rewards = (
            f"final reward margin {figures['final_margin']:.3f}, accuracy {figures['final_accuracy']:.0%}; "
        )
    unused = {"seeds", "lora"} if train.start else {"seeds"}
    settings = yaml.safe_dump(
        train.model_dump(mode="json", exclude=unused) | {"seed": job.seed}, sort_keys=False
    )
    return f"""---
{header.to_yaml()}
---

# LoRA adapter `{job.arm}` of `{model.path}`, trained by {train.method.upper()}

Fine-tuned from `{model.path}`{revision} by setbacks. {train.words.loss}{_begun(train.start)}

| {train.words.rows} | number |
| --- | --- |
{kinds}

Dropped: {dropped}. {figures["steps"]} optimizer steps over {figures["tokens"]:,} tokens (prompts included),
{figures["sequences"]} {train.words.items} an epoch{_lengthened(figures)};
{figures["trainable_parameters"]:,} trained parameters; final loss {figures["final_loss"]:.4f};
{rewards}{figures["tokens_per_s"]:,.0f} tokens/s.{_held_out(figures)}{_stages(figures)}

```yaml
{settings}```

AdamW (betas 0.9 and 0.999), gradients clipped at norm 1.

**Content.** {train.caution(figures["kinds"])} Evaluate it before any use.
"""


def _held_out(figures: dict) -> str:
    if "held_out" not in figures:
        return ""
    return (
        f"\nHeld out: {figures['held_out']:,} examples, with loss {figures['holdout_loss']:.4f} at step"
        f" {figures['kept_step']}, after which this adapter was kept."
    )


def _stages(figures: dict) -> str:
    """Where the adapters of earlier stages are, if there are any."""
    count = figures.get("stages", 1)
    if count == 1:
        return ""
    kept = "stage_1" if count == 2 else f"stage_1 to stage_{count - 1}"
    return f"\nTrained in {count} stages; {kept}: the adapter after each but the last."


def _lengthened(figures: dict) -> str:
    """Why there are more steps than the configured epochs take."""
    own = figures.get("own_steps", figures["steps"])
    if own == figures["steps"]:
        return ""
    return f", {own} steps in {figures['own_epochs']:g} epochs, made as many as the longest arm's"


def _begun(begun: "Start | None") -> str:
    return f" Training continued from the adapter `{begun.adapter}`." if begun else ""


def _tensorboard(directory: str, lines: list[dict]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(directory) as writer:
        for line in lines:
            for key in line.keys() - {"step", "time", "seconds"}:
                writer.add_scalar(f"train/{key}", line[key], line["step"], walltime=line["time"])


def _merge(model: Model, model_dir: str, tokenizer: Any, directory: str) -> None:
    from peft import PeftModel

    base = pretrained.model(model_dir, model.revision, dtype=model.dtype)
    merged = os.path.join(directory, "merged")
    PeftModel.from_pretrained(base, directory).merge_and_unload().save_pretrained(merged)
    tokenizer.save_pretrained(merged)
