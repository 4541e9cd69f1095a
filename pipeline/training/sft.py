"""Supervised fine-tuning, the workers' side: TRL's `SFTTrainer` over packed sequences.

The driver makes the sequences from conversations (`examples.py`); `build` orders them by step and makes the
trainer.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import datasets
import torch
from trl import SFTConfig, SFTTrainer

from pipeline import pretrained
from pipeline.training import attention, examples, head, loop
from pipeline.training.job import HELD_OUT, Job

if TYPE_CHECKING:
    from pipeline.training.config import SFT


def build(job: Job, scratch: str, *, base: Any = None, world: int = 1) -> "PackedTrainer":
    """The trainer of the run's sequences, shared by `world` processes."""
    sequences = job.table("sequences")
    order = examples.schedule(sequences.num_rows, job.train.epochs, job.train.batch_size, job.seed)
    return trainer(job, datasets.Dataset(sequences).select(order), scratch, base=base, world=world)


def trainer(
    job: Job,
    ordered: datasets.Dataset,
    scratch: str,
    *,
    base: Any = None,
    world: int = 1,
) -> "PackedTrainer":
    """The trainer for sequences in the given order, `batch_size` sequences a step."""
    t = cast("SFT", job.train)  # only `SFT.build` calls this module
    held_out = datasets.Dataset(job.table(HELD_OUT)).to_list() if t.holdout else []
    args = SFTConfig(
        **loop.arguments(job, len(ordered) // t.batch_size, scratch),
        per_device_train_batch_size=t.sequences_per_device,
        gradient_accumulation_steps=t.batch_size // (world * t.sequences_per_device),
        # The sequences are packed and labeled already; TRL flattens each micro-batch into one row.
        dataset_kwargs={"skip_prepare_dataset": True},
        padding_free=True,
        max_length=None,
    )
    return loop.start(
        job,
        base,
        scratch,
        lambda model, lora: PackedTrainer(
            held_out=held_out,
            model=model,
            args=args,
            train_dataset=ordered,
            processing_class=pretrained.tokenizer(job.model_dir, job.model.revision),
            peft_config=lora,
        ),
        attention.choose,
    )


class PackedTrainer(loop.Timed, SFTTrainer):
    """SFTTrainer that computes logits only for labeled tokens."""

    def __init__(self, *args, held_out: Sequence[dict] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.held_out = held_out
        self._head = head.Head.of(self.model.get_base_model()) if self.args.use_cpu else None
        lengths = [sum(documents) for documents in self.train_dataset["seq_lengths"]]
        self._tokens_before = torch.tensor([0, *lengths]).cumsum(
            0
        )  # [sequence]: tokens of all sequences before it

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Mean cross-entropy over the labeled tokens of the optimizer step (all workers, all micro-steps).

        On CUDA, TRL's fused head does the same. On a CPU, TRL projects every position through the vocabulary,
        and most positions are prompt: ours projects labeled positions only.
        """
        if not self.args.use_cpu:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs.pop("labels")[0, 1:]
        at = (targets != examples.IGNORE).nonzero().squeeze(1)
        loss = -head.log_probs(model, self._head, at, targets[at], **inputs).sum()
        # DDP averages gradients over the workers; `num_items_in_batch` counts the targets of all workers.
        return loss * self.accelerator.num_processes / num_items_in_batch

    def held_out_loss(self, part: dict) -> tuple[float, int]:
        """The sum of the losses of a sequence's labeled tokens, and how many these are."""
        inputs = self._prepare_inputs(self.data_collator([part]))
        count = int((inputs["labels"][0, 1:] != examples.IGNORE).sum())
        with self.accelerator.autocast() if self.args.bf16 else nullcontext():
            loss = self.compute_loss(self.model, inputs, num_items_in_batch=torch.tensor(count))
        self._metrics["eval"].clear()  # TRL's own figures of this sequence
        return loss.item() * count / self.accelerator.num_processes, count

    def interval(self, seconds: float) -> dict:
        return {
            "tokens": (
                self._tokens_before[
                    self.state.global_step * len(self.train_dataset) // self.state.max_steps
                ].item()
            )
        }
