"""Direct preference optimization: TRL's `DPOTrainer`, computing shared prefixes once per micro-step.

    driver    preference pairs → distinct responses as tokens, pairs as their numbers (`pairs.py`)
    workers   `build`: the micro-batches of every step, in order; the reference's log-probabilities, once
              (`reference.py`); the trainer

The responses that C²-Syn ranks for one request begin alike: prompt, opener, and longer and longer cuts of one
text. A micro-batch is laid out as a prefix forest in one row (`pairs.lay_out`). Each token sees exactly the
earlier tokens of its sequence and keeps its position in that sequence (`attention.shared_attention`): exact,
without padding or repetition.

A pair's loss is that of DPO, −log σ(β (log π/π_ref(chosen) − log π/π_ref(rejected))). The shared prefix adds
the same to both terms and cancels, so log-probabilities, rewards and reward metrics cover only the tokens
after it. The router's auxiliary loss, which TRL adds for mixtures of experts, is left out.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.nn.functional import logsigmoid
from trl import DPOConfig, DPOTrainer

from pipeline import pretrained
from pipeline.training import attention, examples, head, loop, pairs, reference
from pipeline.training.job import HELD_OUT, Job

if TYPE_CHECKING:
    from pipeline.training.config import DPO


def build(job: Job, scratch: str, *, base: Any = None, world: int = 1) -> "SharedPrefixTrainer":
    """The trainer of the run's pairs, shared by `world` processes, with the reference's log-probabilities.

    The reference is the model before the first step: for a fresh LoRA, the base model.
    """
    t, found = _settings(job), job.table("pairs")
    if job.run.gap is not None:
        found = found.filter(pc.equal(found["gap"], job.run.gap))
    micro = _micro_batches(job, found)
    held_out = job.table(HELD_OUT) if t.holdout else found.slice(0, 0)
    both = pa.concat_tables([found, held_out]).combine_chunks()  # the held-out ones come last
    shares = t.batch_size // t.pairs_per_device  # micro-batches of a step
    args = DPOConfig(
        **loop.arguments(job, len(micro) // shares, scratch),
        # The rows of the data set are micro-batches.
        per_device_train_batch_size=1,
        gradient_accumulation_steps=shares // world,
        remove_unused_columns=False,
        beta=t.beta,
        max_length=None,
        disable_dropout=False,  # keep `lora.dropout`
    )
    trainer = loop.start(
        job,
        base,
        scratch,
        lambda model, lora: SharedPrefixTrainer(
            model=model,
            args=args,
            train_dataset=datasets.Dataset.from_dict({"pairs": micro}),
            data_collator=Collator(job.table("responses"), both),
            processing_class=pretrained.tokenizer(job.model_dir, job.model.revision),
            peft_config=lora,
            pairs_per_step=t.batch_size,
            held_out=list(range(found.num_rows, both.num_rows)),
        ),
        lambda *_: attention.SHARED,
    )
    trainer.data_collator.reference = reference.log_probs(trainer, job, both, t.pairs_per_device)
    return trainer


def _settings(job: Job) -> "DPO":
    return cast("DPO", job.train)  # only `DPO.build` calls this module


def _micro_batches(job: Job, found: pa.Table) -> list[list[int]]:
    """The micro-batches of every step, one step after another.

    The pairs of a step depend on neither the workers nor the micro-batches.
    """
    t, groups = _settings(job), found["group"].to_pylist()
    order = examples.passes(
        found.num_rows, t.epochs, t.batch_size, pairs.epoch_order(found, t.curriculum, job.seed)
    )
    steps = (order[at : at + t.batch_size] for at in range(0, len(order), t.batch_size))
    return [
        batch
        for step in steps
        for batch in pairs.micro_batches(step, groups, t.batch_size // t.pairs_per_device)
    ]


class Collator:
    """A micro-batch's pairs (by place in their table) → the tensors that `log_probs` takes.

    reference: [2, pairs], the reference's log-probabilities, once they are known.
    """

    def __init__(self, responses: pa.Table, found: pa.Table):
        tokens = responses["tokens"].combine_chunks()
        self.ends, self.tokens = tokens.offsets.to_numpy(), tokens.values.to_numpy()
        self.chosen, self.rejected, self.shared = (
            found[name].to_pylist() for name in ("chosen", "rejected", "shared")
        )
        self.reference: torch.Tensor | None = None

    def __call__(self, rows: list[dict]) -> dict:
        [row] = rows
        return self.batch(row["pairs"])

    def batch(self, members: list[int]) -> dict:
        """input_ids, position_ids [1, L]: the row. own, paths: its layout (see `attention.SharedRow`). at,
        target [n]: for each token that carries loss, the place before it, and its id. of [m], lengths
        [2 · pairs]: the tokens that carry loss of every chosen, then every rejected response. reference
        [2, pairs].
        """
        sides = [self.chosen[p] for p in members] + [self.rejected[p] for p in members]
        numbers = {response: i for i, response in enumerate(dict.fromkeys(sides))}
        row = pairs.lay_out([self.response(number) for number in numbers])
        places = [
            row.of[numbers[response]][self.shared[p] :]
            for p, response in zip(members * 2, sides, strict=True)
        ]
        bearing, of = np.unique(np.concatenate(places), return_inverse=True)
        batch = {
            "input_ids": torch.from_numpy(row.tokens)[None],
            "position_ids": torch.from_numpy(row.positions)[None],
            "own": row.own,
            "paths": [torch.from_numpy(path) for path in row.paths],
            "at": torch.from_numpy(row.previous[bearing]),
            "target": torch.from_numpy(row.tokens[bearing]),
            "of": torch.from_numpy(of),
            "lengths": torch.tensor([len(response) for response in places]),
        }
        return batch if self.reference is None else batch | {"reference": self.reference[:, members]}

    def response(self, number: int) -> np.ndarray:
        """The tokens of a response, prompt included."""
        start, end = self.ends[number], self.ends[number + 1]
        return self.tokens[start:end]


def log_probs(model: Any, scores: head.Head | None, batch: dict) -> torch.Tensor:
    """[2, pairs]: log-probabilities of the chosen and rejected responses, after the pair's shared tokens."""
    each = head.log_probs(
        model,
        scores,
        batch["at"],
        batch["target"],
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        shared=attention.SharedRow(batch["own"], batch["paths"]),
    )
    sums = torch.segment_reduce(each[batch["of"]], "sum", lengths=batch["lengths"], unsafe=True)
    return sums.view(2, -1)


class SharedPrefixTrainer(loop.Timed, DPOTrainer):
    """DPOTrainer over micro-batches that hold each shared prefix once. Replaces TRL's batches and loss."""

    loss_is_scaled_for_ga = True  # `compute_loss` scales by the pairs of a step

    def __init__(self, *args, pairs_per_step: int, held_out: Sequence[int] = (), **kwargs):
        super().__init__(*args, **kwargs)
        self.pairs_per_step = pairs_per_step
        size = self.args.gradient_accumulation_steps * self.accelerator.num_processes
        size = max(1, pairs_per_step // size)  # pairs of a micro-batch, on average
        self.held_out = [held_out[at : at + size] for at in range(0, len(held_out), size)]
        self._head = head.Head.of(self.model.get_base_model())
        # Since the last log line, on this worker: tokens, pairs, sum of chosen rewards, sum of rejected
        # rewards, pairs in the right order.
        self._sums = torch.zeros(5, dtype=torch.float64, device=self.args.device)

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's part of the optimizer step's mean loss over pairs, workers and micro-steps."""
        policy = log_probs(model, self._head, inputs)
        chosen, rejected = self.beta * (policy - inputs["reference"].to(policy.dtype))
        with torch.no_grad():
            counts = torch.tensor([inputs["input_ids"].numel(), len(chosen)], device=chosen.device)
            sums = torch.stack([chosen.sum(), rejected.sum(), (chosen > rejected).sum()])
            self._sums += torch.cat([counts, sums])
        # DDP averages gradients over the workers.
        return -logsigmoid(chosen - rejected).sum() * self.accelerator.num_processes / self.pairs_per_step

    @torch.no_grad()
    def log_probs_of(self, members: list[int]) -> list[tuple[int, float, float]]:
        """(place, chosen, rejected) of some pairs under the current model, without dropout."""
        if self.model.training:  # `eval` walks through all modules
            self.model.eval()
        batch = self._prepare_inputs(self.data_collator.batch(members))
        with self.accelerator.autocast() if self.args.bf16 else nullcontext():
            chosen, rejected = log_probs(self.model, self._head, batch)
        return list(zip(members, chosen.tolist(), rejected.tolist(), strict=True))

    def held_out_loss(self, part: list[int]) -> tuple[float, int]:
        """The sum of the losses of some pairs, and how many these are."""
        policy = torch.tensor([sides for _, *sides in self.log_probs_of(part)], dtype=torch.float64).T
        chosen, rejected = self.beta * (policy - self.data_collator.reference[:, part])
        return -logsigmoid(chosen - rejected).sum().item(), len(part)

    def interval(self, seconds: float) -> dict:
        tokens, count, chosen, rejected, right = self.accelerator.reduce(self._sums.clone(), "sum").tolist()
        self._sums.zero_()
        return {
            "tokens": self._logged[1] + int(tokens),
            "pairs_per_s": count / seconds,
            "rewards/chosen": chosen / count,
            "rewards/rejected": rejected / count,
            "rewards/margins": (chosen - rejected) / count,
            "rewards/accuracies": right / count,
        }
