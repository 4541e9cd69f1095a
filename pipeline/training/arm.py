"""Train the LoRA adapters of several arms: the driver's side.

The workers' side is `loop.py`; the trainers are in `config.py`, `sft.py` and `dpo.py`.

    prepare the training sets → name everything by its fingerprint → one worker group for all runs → publish
    (see `adapter.py`)

Starting a worker group costs more than training a small adapter: processes, imports, the base model. Arms
that ask for the same workers therefore share one, and each adapter is published as soon as it is finished,
while the workers train the next. `job.py` describes the state directories.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from pipeline import models, pretrained
from pipeline.data import adapter as adapter_files
from pipeline.data import records, storage
from pipeline.data.adapter import MOST_RANK
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.runtime import attempt
from pipeline.settings.base import Model
from pipeline.settings.shown import first_line
from pipeline.templates import ChatTemplate
from pipeline.training import adapter, equal, examples, start, training_sets
from pipeline.training.base import Train
from pipeline.training.identity import facts_of, refuse_others
from pipeline.training.job import HISTORY, Job, Run, forget
from pipeline.training.workers import Progress, WorkerGroup


@dataclass(frozen=True)
class ArmSpec:
    """One arm to train.

    kinds:     kinds of examples to train on; None is all
    model_dir: a local model directory or a hub id (at `model.revision`)
    field:     setting → its path in the user's configuration, for messages: lora → `train.lora`
               or `arms.NAME.train.lora`
    finished:  most steps of arms that are trained already and that this one is compared with (see `equal`)
    steps:     optimizer steps to take, whatever the epochs; None = those of the epochs
    """

    name: str
    train: Train
    kinds: list[str] | None
    model: Model
    model_dir: str
    seed: int
    field: Callable[[str], str]
    finished: int = 0
    steps: int | None = None

    def __post_init__(self):
        if os.path.isdir(self.model_dir):
            object.__setattr__(self, "model_dir", os.path.abspath(self.model_dir))


@dataclass(frozen=True)
class Places:
    """An arm's examples and directories.

    examples: rows of the schema that the arm's trainer accepts
    out:      directory of the published adapter
    state:    the arm's training set and finished runs; storage that every node sees
    """

    examples: Dataset
    out: str
    state: str


class Training:
    """Trains arms one after the other. Used as a context manager: leaving it releases the workers.

    arms:        what to train, and the directories
    checkpoints: checkpoint directory of all arms' workers; storage that every node sees. After a crash, a
                 restart with the same directories resumes from the latest checkpoint and ends with the
                 weights of an uninterrupted training.

    The caller must have called `ray.init`, and must take the results in the order of `arms`.
    Raises UserError if configuration, model or data do not fit together.
    """

    def __init__(self, arms: list[tuple[ArmSpec, Places]], checkpoints: str):
        self._checkpoints = storage.absolute(checkpoints)
        self._sets = f"{self._checkpoints}_sets"
        made = [(arm, places, _Made.of(arm, places, self._sets)) for arm, places in arms]
        training_sets.forget_others(self._sets, [one.set for _, _, one in made])
        lengths = [equal.Arm(arm.train, one.steps) for arm, _, one in made]
        self._arms = {
            arm.name: _prepare(arm, places, one, arm.steps or equal.target(own, lengths, arm.finished))
            for (arm, places, one), own in zip(made, lengths, strict=True)
        }
        self._groups: dict[str, WorkerGroup] = {}  # by arm
        shared = groupby(self._arms.items(), lambda item: _workers(item[1].jobs[0].train))
        for number, (_, members) in enumerate(shared, 1):
            group = WorkerGroup(storage.join(self._checkpoints, f"{attempt.number():04d}-{number}"))
            for name, prepared in members:
                prepared.join(group)
                self._groups[name] = group

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for group in self._groups.values():
            group.release(trained=error is None)
        if error is None:
            attempt.check()  # before the checkpoints of other attempts are removed
            forget(self._checkpoints, self._arms)
            storage.remove(self._sets)

    def result(self, arm: str, on_progress: Progress | None = None) -> dict:
        """Wait until an arm is trained, and publish its adapter. The first arm of a group starts the workers.

        on_progress: called in this process with each log line: step, steps, loss, learning_rate, grad_norm,
                     tokens, tokens_per_s, epoch; for dpo also pairs_per_s, rewards/chosen, rewards/rejected,
                     rewards/margins, rewards/accuracies. Before the first step of dpo: reference, the pairs
                     whose log-probabilities under the reference are known, and pairs, their number.

        Returns figures: examples, dropped, kinds (examples of each), drop_reasons, sequences, tokens, steps,
        stages (runs, whose adapters are kept),
        held_out, holdout_loss, kept_step (with `holdout`: examples; loss and step of the kept adapter),
        own_steps and own_epochs (as configured, before steps were made equal), seconds (of training, starts
        not counted), tokens_per_s, final_loss (mean of the last logged steps), trainable_parameters; for dpo
        also final_margin and final_accuracy (of the last logged steps); a `notice` if something set has no
        effect.
        Raises RunFailed if training gave up.
        """
        prepared = self._arms[arm]
        lines: list[dict] = []
        for job in prepared.jobs:
            number = _numbering(prepared.jobs, job, lines)
            self._groups[arm].finish(job, _numbered(on_progress, number))
            lines += map(number, _history(job))
        figures, notices = prepared.publish(lines), self._groups[arm].take_notices()
        if notices:
            figures["notice"] = "; ".join(filter(None, [figures.get("notice"), *notices]))
        return figures


@dataclass
class Prepared:
    """An arm whose training set is written and fingerprinted."""

    out: str
    tokenizer: Any
    counts: examples.Counts
    jobs: list[Job]
    parameters: int
    own_steps: int
    own_epochs: float
    notice: str | None

    def join(self, group: WorkerGroup) -> None:
        """Append the arm's runs to this group's jobs."""
        self.jobs = _chained([replace(job, group=group.directory) for job in self.jobs])
        group.jobs += self.jobs

    def publish(self, lines: list[dict]) -> dict:
        """Make the adapter directory; `lines` is the history of all runs.

        Returns the figures of `Training.result`.
        """
        first, last, seconds = self.jobs[0], lines[-1], sum(line["seconds"] for line in lines)
        figures = {
            "examples": self.counts.kinds.total(),
            "dropped": self.counts.dropped.total(),
            "kinds": dict(self.counts.kinds),
            "drop_reasons": dict(self.counts.dropped),
            "sequences": sum(job.run.items for job in self.jobs),
            "tokens": last["tokens"],
            "steps": last["step"],
            "stages": len(self.jobs),
            "own_steps": self.own_steps,
            "own_epochs": self.own_epochs,
            "seconds": seconds,
            "tokens_per_s": last["tokens"] / seconds,
            "final_loss": last["loss"],
            "trainable_parameters": self.parameters,
            **_held_out(first.train, self.counts.held_out, lines),
            **first.train.figures(last),
            **({"notice": self.notice} if self.notice else {}),
        }
        adapter.publish(
            first,
            self.tokenizer,
            [job.done for job in self.jobs],
            lines,
            self.out,
            figures,
        )
        return figures


@dataclass(frozen=True)
class _Made:
    """An arm's training set, and the steps that its own epochs take."""

    parameters: int
    template: ChatTemplate
    set: training_sets.Kept
    steps: int

    @classmethod
    def of(cls, arm: ArmSpec, places: Places, sets: str) -> "_Made":
        """sets: directory of the training sets that are kept."""
        parameters = check(arm)
        template = models.load_template(arm.model, arm.model_dir)
        made = training_sets.kept(arm.train, template, places.examples, arm.kinds, arm.seed, sets)
        return cls(parameters, template, made, equal.steps(made.runs, arm.train))


def _prepare(arm: ArmSpec, places: Places, ready: _Made | None = None, wanted: int | None = None) -> Prepared:
    """wanted: the steps to take; by default those of the arm's own epochs."""
    ready = ready or _Made.of(arm, places, f"{places.state}_sets")
    own, made = arm.train, ready.set
    if wanted is not None and wanted != ready.steps:
        arm = replace(arm, train=equal.lengthened(own, made.runs, wanted))
    facts = facts_of(arm)
    name = made.named(facts)[:16]
    state_dir = storage.absolute(places.state)
    state = storage.join(state_dir, name)
    shown = {
        **facts,
        "weights": hashlib.sha256(json.dumps(facts["weights"]).encode()).hexdigest()[:12],
        "training set": made.digest[:12],
    }
    refuse_others(state_dir, name, shown)
    records.write(storage.join(state, "facts.json"), shown)
    return Prepared(
        places.out,
        ready.template.tokenizer,
        made.counts,
        [replace(job, tables=made.path) for job in _jobs(arm, state, made.runs)],
        ready.parameters,
        ready.steps if arm.steps is None else arm.steps,
        own.epochs if arm.steps is None else arm.train.epochs,
        None if arm.steps is not None else _notice(own, ready.parameters),
    )


def _workers(train: Train) -> tuple:
    """Arms with equal values can share a worker group."""
    return train.workers, train.use_gpu, train.gpu_kind, train.max_failures


# -- what is checked before anything starts


def check_lora(arms: Iterable[ArmSpec]) -> None:
    """Every arm's adapter and its start adapter must fit the model. Raises UserError."""
    checked = []
    for arm in arms:
        kind = (arm.train.method, arm.train.lora, arm.train.start, arm.train.fsdp)
        if kind not in checked:
            check(arm)
            checked.append(kind)


def check(arm: ArmSpec) -> int:
    """How many parameters an arm trains, counted on a model without weights.

    Raises UserError if the arm's adapter does not fit the model.
    """
    import torch
    from peft import get_peft_model, get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    t, revision = arm.train, arm.model.revision
    pretrained.check_weights(arm.model_dir)
    architecture = pretrained.architecture(arm.model_dir, revision)
    _check_trainable(architecture, arm)
    t.check(architecture, f"{arm.field('method')} = {t.method}")
    begin = start.directory(t.start) if t.start else None
    where = arm.field("start") + ".adapter"
    if begin is not None:
        start.load_config(begin, where)
    lora = adapter.lora_config(t, revision, begin)
    _check_rank(arm, lora.r, begin)
    model = pretrained.empty(architecture)
    if t.fsdp and not pretrained.layers_to_shard(model):
        raise UserError(
            f"{arm.field('fsdp')} = true: {type(model).__name__} has no layers that transformers can shard:"
            " set fsdp to false, or use another model"
        )
    field = f"{arm.field('lora')}.target_modules = {t.lora.target_modules}"
    if begin is None:
        _check_targets(model, t.lora.target_modules, field)
    try:
        with torch.device("meta"):  # shapes without memory, however large the rank
            model = get_peft_model(model, lora)
    except ValueError as e:
        reason = first_line(e)
        if begin is not None:
            raise UserError(
                f"{where} = {begin}: it does not fit the model ({reason}); name an adapter of this model"
            ) from None
        raise UserError(f"{field} does not fit the model ({reason}): try all-linear") from None
    # TRL multiplies by the head's weights directly, so it refuses an adapter on the head.
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):
        raise UserError(
            f"{field if begin is None else where}: the adapter covers lm_head, which cannot be trained: leave"
            " lm_head out"
        )
    if t.start is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        start.check_fits(t.start, shapes, where)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _check_trainable(architecture: Any, arm: ArmSpec) -> None:
    """Raises UserError for models that cannot be trained here."""
    where = f"model.path = {arm.model.path}"
    if settings := models.quantization(arm.model, arm.model_dir):
        raise UserError(
            f"{where}: its weights are quantized ({settings.get('quant_method', 'unknown')}), and adapters"
            " are trained on unquantized weights only: name the model that they were quantized from"
        )
    kind = (architecture.architectures or [type(architecture).__name__])[0]
    if architecture.get_text_config() is not architecture:
        raise UserError(
            f"{where}: {kind} reads more than text, and an adapter of its language model would have other"
            " module names in vLLM: name a text model of the family"
        )
    if architecture.is_encoder_decoder:
        raise UserError(f"{where}: {kind} is an encoder-decoder model: name a model that continues text")


def _check_rank(arm: ArmSpec, rank: int, begin: str | None) -> None:
    """Raises UserError if vLLM could not load the adapter."""
    if rank > MOST_RANK:
        field = f"{arm.field('lora')}.rank = {rank}"
        if begin is not None:
            field = f"{arm.field('start')}.adapter = {begin}: its rank is {rank}"
        raise UserError(
            f"{field}: vLLM evaluates adapters of rank {MOST_RANK} at most; choose a smaller rank"
        )


def _check_targets(model: Any, targets: str | list[str], field: str) -> None:
    """Raises UserError for a target that names no module: PEFT ignores it if another target matches."""
    if isinstance(targets, str):
        return
    names = [name for name, _ in model.named_modules()]
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise UserError(f"{field} does not fit the model (no module is named {target}): try all-linear")


def _held_out(train: Train, examples: int, lines: list[dict]) -> dict:
    """Figures of the holdout: examples, and the loss and step of the adapter that is kept."""
    if not train.holdout:
        return {}
    stage = lines[-1].get("iteration")
    measured = [line for line in lines if "holdout_loss" in line and line.get("iteration") == stage]
    order = [(math.isnan(line["holdout_loss"]), line["holdout_loss"]) for line in measured]
    kept = measured[order.index(min(order))] if train.keep == "best" else measured[-1]
    return {"held_out": examples, "holdout_loss": kept["holdout_loss"], "kept_step": kept["step"]}


def _notice(train: Train, parameters: int) -> str | None:
    """A setting of the user's that has no effect; None if there is none."""
    if train.start is None:
        return None
    return f"lora is not used: training continues the start adapter's {parameters:,} parameters"


# -- runs


def _jobs(arm: ArmSpec, state: str, runs: list[Run]) -> list[Job]:
    """A job per run. The first begins from the start adapter if there is one."""
    jobs = []
    for number, run in enumerate(runs, 1):
        name = f"{arm.name}-{storage.name(state)}" + (f"-{number}" if number > 1 else "")
        jobs.append(Job(arm.name, arm.train, arm.model, arm.model_dir, arm.seed, state, number, run, name))
    begin = jobs[0].train.start
    if begin is None:
        return jobs
    kept = storage.join(state, "start")  # storage that every node sees
    adapter_files.copy(start.directory(begin), kept)
    return [replace(jobs[0], start=kept), *jobs[1:]]


def _chained(jobs: list[Job]) -> list[Job]:
    """Start each run but the first from the adapter of the run before.

    That adapter is in `done` if the driver has kept it already, else in `finished`.
    """
    chained = jobs[:1]
    for job in jobs[1:]:
        before = chained[-1]
        chained.append(
            replace(job, start=before.done if adapter_files.is_whole(before.done) else before.finished)
        )
    return chained


def _numbering(jobs: list[Job], job: Job, before: list[dict]) -> Callable[[dict], dict]:
    """A function that renumbers a run's log line: steps and tokens count over all runs of the arm."""
    t = job.train
    steps = sum(examples.steps(j.run.items, t.epochs, t.batch_size) for j in jobs)
    step, tokens = (before[-1]["step"], before[-1]["tokens"]) if before else (0, 0)
    several = {"iteration": job.number} if len(jobs) > 1 else {}
    return lambda line: {
        **line,
        "step": line["step"] + step,
        "steps": steps,
        "tokens": line["tokens"] + tokens,
        **several,
    }


def _numbered(on_progress: Progress | None, number: Callable[[dict], dict]) -> Progress | None:
    """`on_progress`, called with renumbered lines (see `_numbering`)."""
    if on_progress is None:
        return None
    return lambda line: on_progress(line if "reference" in line else number(line))


def _history(job: Job) -> list[dict]:
    text = storage.read_text(storage.join(job.done, HISTORY))
    return [line for line in json.loads(text)["log_history"] if "loss" in line]
