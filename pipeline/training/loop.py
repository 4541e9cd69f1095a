"""The loop of one training worker, for every method: build the trainer of each run, resume, report to Ray."""

import copy
import gc
import json
import logging
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import datasets
import ray.train
import torch
import transformers
from ray.train.collective import barrier, broadcast_from_rank_zero
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from pipeline import pretrained
from pipeline.data import adapter, node_copy, storage
from pipeline.errors import RunFailed
from pipeline.training import lora
from pipeline.training import start as start_adapter
from pipeline.training.adapter import lora_config
from pipeline.training.job import BEST, HISTORY, Job

if TYPE_CHECKING:
    from transformers import Trainer as _Host  # the class that the mixin is mixed into
else:
    _Host = object

HOLDOUT_LOSS = "holdout_loss"  # in log lines
_OF_LAUNCHERS = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")


def train(jobs: list[Job]) -> None:
    """Train the runs of a worker group, one after the other, on one CPU process or many GPUs.

    Runs that an earlier start of this group has finished are skipped. A run resumes from its latest
    checkpoint, if any.
    """
    _quiet()
    _forget_launchers()
    context, base = ray.train.get_context(), BaseWeights()
    if not jobs[0].train.use_gpu:
        torch.set_num_threads(max(1, _node_cpus() // context.get_local_world_size()))
    first = context.get_world_rank() == 0
    # One worker checks for all: NFS may show a new file to only some of them.
    finished = broadcast_from_rank_zero([adapter.is_whole(job.finished) for job in jobs] if first else None)
    for job, is_finished in zip(jobs, finished, strict=True):
        if not is_finished:
            _train(job, base, context)
        if first and job.progress is not None:
            job.progress.post.remote({"finished": job.name})


def _train(job: Job, base: "BaseWeights", context: Any) -> None:
    """Train one run; its adapter is in `job.finished` when the first worker returns."""
    # Every rank writes checkpoints into a separate directory; Ray merges them into one in the storage.
    with tempfile.TemporaryDirectory(dir=os.getcwd()) as scratch:
        trainer = job.train.build(job, scratch, base=base, world=context.get_world_size())
        trainer.add_callback(_Report(trainer, job))
        with _latest(job) as directory:
            if directory is not None and os.path.exists(best := os.path.join(directory, BEST)):
                adapter.copy(best, os.path.join(scratch, BEST))
            if not _has_stopped(job, directory):
                trainer.train(resume_from_checkpoint=directory)
            last = os.path.join(scratch, f"checkpoint-{trainer.state.global_step}")
            if context.get_world_rank() == 0:
                found = last if os.path.exists(last) else directory
                if found is None:
                    raise RunFailed(f"{job.finished}: training ended without a checkpoint")
                _finish(job, found)
    barrier()  # the next run may start from this run's adapter
    del trainer
    gc.collect()  # free the optimizer's memory for the next run
    if job.train.use_gpu:
        torch.cuda.empty_cache()


@contextmanager
def _latest(job: Job) -> Iterator[str | None]:
    """A local copy of the checkpoint to resume from; None if there is none.

    This group's checkpoints come first: after a restart they are newer than those of an earlier attempt.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None or not job.owns(checkpoint.path):
        checkpoint = ray.train.Checkpoint(job.resume) if job.resume else None
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as directory:
        yield directory


def _finish(job: Job, checkpoint: str) -> None:
    """Copy the adapter to keep and the history of the last checkpoint; the adapter's configuration comes
    last."""
    with open(os.path.join(checkpoint, HISTORY), encoding="utf-8") as f:
        storage.write_text(storage.join(job.finished, HISTORY), f.read())
    best = os.path.join(checkpoint, BEST)
    adapter.copy(best if job.train.keep == "best" else checkpoint, job.finished)


def _has_stopped(job: Job, checkpoint: str | None) -> bool:
    """Whether a training had stopped early when it wrote this checkpoint."""
    if checkpoint is None or job.train.patience is None:
        return False
    with open(os.path.join(checkpoint, HISTORY), encoding="utf-8") as f:
        return since_best(json.load(f)["log_history"]) >= job.train.patience


def since_best(history: Sequence[dict]) -> int:
    """How many times the holdout loss was measured after its lowest value, of which the first counts."""
    losses = [line[HOLDOUT_LOSS] for line in history if HOLDOUT_LOSS in line]
    # What is no number is never the lowest.
    order = [math.inf if math.isnan(loss) else loss for loss in losses]
    return len(order) - 1 - order.index(min(order)) if order else 0


class BaseWeights:
    """A worker's base model, read once: every run gets new modules over the same weights, unchanged.

    A sharded model is read for every run, because the modules of FSDP cannot be copied.
    """

    def __init__(self):
        self._key: tuple | None = None
        self._model: Any = None

    def load(
        self,
        directory: str,
        revision: str | None,
        *,
        dtype: str,
        attention: str,
        load_in_4bit: bool = False,
        shards: int = 1,
    ) -> Any:
        """Like `pretrained.model`, but reads again only if the model, precision or attention has changed."""
        key = (directory, revision, dtype, attention, load_in_4bit)
        if shards > 1:
            self._key = self._model = None
            return pretrained.model(directory, revision, dtype=dtype, attention=attention, shards=shards)
        if key != self._key:
            self._key = self._model = None  # two models at once may not fit
            self._model = pretrained.model(
                directory, revision, dtype=dtype, attention=attention, load_in_4bit=load_in_4bit
            )
            self._key = key
        weights = (*self._model.parameters(), *self._model.buffers())
        return copy.deepcopy(self._model, {id(tensor): tensor for tensor in weights})


def start(
    job: Job,
    base: BaseWeights | None,
    scratch: str,
    trainer_of: Callable[[Any, Any], Trainer],
    attention_of: Callable[[Any, bool], str],
) -> Trainer:
    """The trainer before the first step: base model, and the adapter to train.

    trainer_of(model, lora) makes the trainer; attention_of(model config, use_gpu) names the attention to load
    with.
    """
    # PyTorch prefers cuDNN's attention on an H100. cuDNN plans anew for every shape, and nearly every row has
    # another. For the whole process, because the models' own attention calls SDPA too.
    torch.backends.cuda.enable_cudnn_sdp(False)
    t, model = job.train, job.model
    place = node_copy.read_from(job.model_dir, job.tell)
    architecture = pretrained.architecture(place, model.revision)
    modules = (base or BaseWeights()).load(
        place,
        model.revision,
        dtype=model.dtype if t.bf16 else "float32",
        attention=attention_of(architecture, t.use_gpu),
        load_in_4bit=t.load_in_4bit,
        shards=torch.distributed.get_world_size() if t.fsdp else 1,
    )
    modules.name_or_path = modules.config.name_or_path = job.model_dir  # else an adapter names the copy
    begin = adapter.fetch(job.start, scratch) if job.start is not None else None
    trainer = trainer_of(modules, lora_config(t, model.revision, begin))
    if t.load_in_4bit:
        _train_in_float32(trainer.model)
    if begin is not None:
        start_adapter.load(trainer.model, begin)
    lora.fuse(trainer.model)
    trainer.args.save_strategy = SaveStrategy.STEPS
    trainer.remove_callback(PrinterCallback)
    return trainer


def _train_in_float32(model: Any) -> None:
    """TRL casts adapters of quantized models to bfloat16, whose eight bits lose small updates."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def arguments(job: Job, steps: int, scratch: str) -> dict:
    """The arguments of transformers' Trainer that all methods share.

    No integration of the Trainer is ever started, whatever the environment says: the driver reports (see
    `pipeline.tracking`).
    """
    t = job.train
    return {
        "output_dir": scratch,
        "max_steps": steps,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": "constant_with_warmup" if t.schedule == "constant" else t.schedule,
        "warmup_steps": round(t.warmup * steps),
        "weight_decay": t.weight_decay,
        "bf16": t.bf16,
        "gradient_checkpointing": t.gradient_checkpointing,
        "seed": job.seed % 2**32,
        "train_sampling_strategy": "sequential",  # the data set is the whole schedule, in order
        "logging_steps": t.log_steps,
        "logging_nan_inf_filter": False,
        # Set to `steps` by `start`: transformers refuses to save a sharded model's optimizer, but ours has
        # states of the adapter alone, which every worker holds whole.
        "save_strategy": "no",
        "save_steps": t.save_steps,
        "save_total_limit": 1,
        "use_cpu": not t.use_gpu,
        "dataloader_pin_memory": t.use_gpu,
        "ddp_find_unused_parameters": False,
        "ddp_broadcast_buffers": False,  # all workers start with equal buffers, and no buffer changes
        "disable_tqdm": True,
        "report_to": "none",
    }


class Timed(_Host):
    """A mixin for a Trainer that adds speed to log lines, and saves a sharded model's adapter.

    The Trainer's `interval(seconds)` gives the figures of the interval that a log line ends; one of them is
    `tokens`, the tokens that all workers have computed so far. All workers call `interval` at the same time.

    It also adds the holdout loss to a checkpoint's log line: over the parts in `held_out`, of each of which
    `held_out_loss(part)` gives the sum of losses and their number. This takes no part in the speed.
    """

    held_out: Sequence = ()
    _logged = (0.0, 0)  # when (monotonic s), tokens so far

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" in logs:
            now, (then, before) = time.monotonic(), self._logged
            logs |= self.interval(now - then)
            logs |= {
                "seconds": now - then,
                "tokens_per_s": (logs["tokens"] - before) / (now - then),
                "time": time.time(),
            }
            if self.control.should_save and self.held_out:
                logs |= {HOLDOUT_LOSS: self._holdout_loss(), "holdout_seconds": time.monotonic() - now}
            self._logged = (time.monotonic(), logs["tokens"])
        super().log(logs, start_time)

    def _holdout_loss(self) -> float:
        """The mean loss on what is held out, of all workers. Uses no random numbers, so the training is the
        same without it."""
        world, was_training = self.accelerator.num_processes, self.model.training
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        self.model.eval()
        with torch.no_grad():
            for first in range(0, len(self.held_out), world):
                # All workers compute equally often, since they may have to wait for each other's weights.
                place = first + self.accelerator.process_index
                found = self.held_out_loss(self.held_out[min(place, len(self.held_out) - 1)])
                if place < len(self.held_out):
                    total += torch.tensor(found, dtype=torch.float64, device=total.device)
        self.model.train(was_training)
        loss, count = self.accelerator.reduce(total, "sum").tolist()
        return loss / count

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """One worker saves. PEFT would gather all weights that are split, for which it needs the others."""
        if self.is_distributed_loading_by_transformers:
            trained = self.model.named_parameters()
            state_dict = {name: tensor for name, tensor in trained if tensor.requires_grad}
        super()._save(output_dir, state_dict)

    def start_clock(self) -> None:
        """Begin the first logged interval: at the start, or at a checkpoint, which ends with a log line."""
        logged = [line["tokens"] for line in self.state.log_history if "tokens" in line]
        self._logged = (time.monotonic(), logged[-1] if logged else 0)


class _Report(TrainerCallback):
    """Checkpoints to Ray, log lines to the driver."""

    def __init__(self, trainer: Timed, job: Job):
        self.trainer, self.job = trainer, job

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.start_clock()

    def on_step_end(self, args, state, control, **kwargs):
        # The data set is the whole schedule, one pass; an epoch is one pass over the run's items.
        state.epoch = state.global_step * self.job.train.batch_size / self.job.run.items
        # Log at every checkpoint: averages then never span a restart, and a resumed run logs the same lines
        # as an uninterrupted run.
        control.should_log |= control.should_save

    def on_log(self, args, state, control, logs, **kwargs):
        if state.is_world_process_zero and self.job.progress is not None and "loss" in logs:
            self.job.progress.post.remote({"run": self.job.name, **logs, "step": state.global_step})

    def on_save(self, args, state, control, **kwargs):
        directory = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        since = since_best(state.log_history)
        if self.job.train.keep == "best" and adapter.is_whole(directory):
            # It goes along in every checkpoint, so a training that resumes has that of its own past.
            best = os.path.join(args.output_dir, BEST)
            if not since:
                adapter.copy(directory, best)
            adapter.copy(best, os.path.join(directory, BEST))
        if self.job.train.patience is not None and since >= self.job.train.patience:
            control.should_training_stop = True
        ray.train.report(
            {"step": state.global_step},
            checkpoint=ray.train.Checkpoint.from_directory(directory),
            checkpoint_dir_name=self.job.checkpoint(state.global_step),
        )


def _node_cpus() -> int:
    """CPUs of this node: the machine's, or fewer if Ray was given fewer (a container's limit)."""
    node = next(n for n in ray.nodes() if n["NodeID"] == ray.get_runtime_context().get_node_id())
    return min(os.cpu_count() or 1, int(node["Resources"].get("CPU", 1)))


def _forget_launchers() -> None:
    """Remove what a launcher of accelerate may have left in the user's shell.

    Accelerate and transformers read these variables; they would change precision, gradient accumulation or
    sharding behind the configuration.
    """
    for name in list(os.environ):
        if name.startswith(_OF_LAUNCHERS):
            del os.environ[name]


def _quiet() -> None:
    """Keep library chatter out of the driver's terminal; errors still show."""
    warnings.filterwarnings("ignore")
    for name in ("ray.train", "trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
