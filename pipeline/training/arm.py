"""Train one arm's LoRA adapter: what the driver does, whatever the method. The workers' side is `loop.py`, the methods `sft.py`, `dpo.py`.

    prepare the training set → name everything by its fingerprint → run the workers, once per run → publish (see `adapter.py`)

What lies in the state directory meanwhile: see `job.py`.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from typing import Any

from pipeline import attempt, pretrained
from pipeline.config import DPO, SFT, Config
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.errors import RunFailed, UserError
from pipeline.session import TRAIN_ENVIRONMENT, beside_driver
from pipeline.toy.model import shipped_recipe
from pipeline.training import adapter, examples, methods, start
from pipeline.training.job import Job, Run, write_table

Progress = Callable[[dict], None]
RESIZE_S = 60.0  # between two looks of an elastic training at whether there is room for another number of workers
_TRIES = 3  # to read a checkpoint


def train_arm(
    config: Config, arm: str, model_dir: str, examples_dir: str, out_dir: str, state_dir: str, on_progress: Progress | None = None
) -> dict:
    """Train the adapter of `config.arms[arm]` on `examples_dir` and publish it at `out_dir`.

    examples_dir: Parquet of `schema.SFT` for sft, of `schema.PREFERENCES` for dpo.
    model_dir:    local model directory or hub id (at `config.model.revision`).
    state_dir:    where checkpoints go; storage that every node sees. Calling again after a crash continues from the latest one, and
                  ends with the weights of an undisturbed training.
    on_progress:  called in this process with each log line: step, steps, loss, learning_rate, grad_norm, tokens, tokens_per_s, epoch;
                  for dpo also pairs_per_s, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies.

    The caller has called `ray.init`. Returns figures: examples, dropped, kinds (examples of each), drop_reasons, sequences, tokens, steps,
    seconds (of training, starts not counted), tokens_per_s, final_loss (mean of the last logged steps), trainable_parameters; for dpo also
    final_margin and final_accuracy (of the last logged steps); a `notice` where something set has no effect.
    Raises UserError where configuration, model or data do not fit together; RunFailed where training gave up.
    """
    t, method = config.arms[arm].train, methods.of(config.arms[arm].train)
    model_dir = os.path.abspath(model_dir) if os.path.isdir(model_dir) else model_dir
    parameters = _check(config, arm, model_dir)
    tokenizer = pretrained.tokenizer(model_dir, config.model.revision)
    tables, counts, runs = method.prepare(tokenizer, examples_dir, config, arm)
    name = fingerprint(config, arm, model_dir, tables)
    state_dir = storage.absolute(state_dir)
    _keep_only(state_dir, name)
    state = storage.join(state_dir, name)
    for table, content in tables.items():
        write_table(content, storage.join(state, f"{table}.parquet"))

    jobs = _jobs(Job(config, arm, model_dir, state, 1, runs[0], f"{arm}-{name}"), runs)
    lines: list[dict] = []
    for job in jobs:
        number = _numbering(jobs, job, lines)
        _run(job, on_progress and (lambda line, number=number: on_progress(number(line))))
        lines += map(number, _history(job))

    last, seconds = lines[-1], sum(line["seconds"] for line in lines)
    figures = {
        "examples": counts.kinds.total(),
        "dropped": counts.dropped.total(),
        "kinds": dict(counts.kinds),
        "drop_reasons": dict(counts.dropped),
        "sequences": sum(run.items for run in runs),
        "tokens": last["tokens"],
        "steps": last["step"],
        "seconds": seconds,
        "tokens_per_s": last["tokens"] / seconds,
        "final_loss": last["loss"],
        "trainable_parameters": parameters,
        **method.figures(last),
        **_notice(t, parameters),
    }
    adapter.publish(config, arm, model_dir, tokenizer, lambda directory: _assemble(jobs[-1], directory), lines, out_dir, figures)
    return figures


# -- what is checked before anything starts


def check_lora(config: Config, model_dir: str) -> None:
    """Every arm's adapter, and the one it begins from, must fit the model. Raises UserError."""
    checked = []
    for arm, settings in config.arms.items():
        kind = (settings.train.method, settings.train.lora, settings.train.start)
        if kind not in checked:
            _check(config, arm, model_dir)
            checked.append(kind)


def _check(config: Config, arm: str, model_dir: str) -> int:
    """How many parameters an arm trains, found on a model without weights. Raises UserError where its adapter does not fit the model."""
    from peft import get_peft_model, get_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer

    t = config.arms[arm].train
    pretrained.check_weights(model_dir)
    architecture = pretrained.architecture(model_dir, config.model.revision)
    methods.of(t).check(architecture, f"{_field(config, arm, 'method')} = {t.method}")
    begin = start.directory(t.start) if t.start else None
    where = _field(config, arm, "start") + ".adapter"
    if begin is not None:
        start.load_config(begin, where)
    continues = t.start is not None and t.start.how == "continue"
    lora = adapter.lora_config(config, t, begin if continues else None)
    model = pretrained.empty(architecture)
    field = f"{_field(config, arm, 'lora')}.target_modules = {t.lora.target_modules}"
    try:
        model = get_peft_model(model, lora)
    except ValueError as e:
        reason = str(e).splitlines()[0]
        if continues:
            raise UserError(f"{where} = {begin}: it does not fit the model ({reason}); name an adapter of this model") from None
        raise UserError(f"{field} does not fit the model ({reason}): try all-linear") from None
    if isinstance(model.get_output_embeddings(), BaseTunerLayer):  # TRL multiplies by its weights directly, and refuses
        raise UserError(f"{where if continues else field}: the adapter is on lm_head too, which cannot be trained: leave lm_head out")
    if t.start is not None:
        shapes = {name: tuple(tensor.shape) for name, tensor in get_peft_model_state_dict(model).items()}
        start.check_fits(t.start, shapes, where)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _field(config: Config, arm: str, name: str) -> str:
    """Where the user most likely wrote a setting of an arm's training: under `train`, unless the arm's own differs."""
    same = getattr(config.train, name, None) == getattr(config.arms[arm].train, name)
    return f"train.{name}" if same else f"arms.{arm}.train.{name}"


def _notice(train: SFT | DPO, parameters: int) -> dict:
    if train.start is None or train.start.how != "continue":
        return {}
    return {"notice": f"lora is not used: start.how = continue trains the adapter's own {parameters:,} parameters on"}


# -- what names a training, and what is kept of it


def fingerprint(config: Config, arm: str, model_dir: str, tables: dict[str, Any]) -> str:
    """A name for everything that determines the weights: hyper-parameters, model, seed, start adapter, and the training set to the token."""
    t = config.arms[arm].train
    facts = {
        "train": t.model_dump(mode="json", exclude=t.OPERATIONAL),
        "start": start.content(t.start),
        "model": config.model.model_dump(mode="json"),
        "weights": _weights(config, model_dir),
        "seed": config.seed,
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for table in tables.values():
        for batch in table.combine_chunks().to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()[:16]


def _weights(config: Config, model_dir: str) -> Any:
    """What the weights are known by. The toy's are the same wherever the package is installed and whenever that was."""
    if config.model.path == "toy":
        return shipped_recipe()["hash"]
    if not os.path.isdir(model_dir):
        return model_dir
    return [(file, os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in storage.files(model_dir)]


def _keep_only(state_dir: str, name: str) -> None:
    for other in storage.directories(state_dir):
        if other != name:
            storage.remove(storage.join(state_dir, other))


# -- runs


def _jobs(first: Job, runs: list[Run]) -> list[Job]:
    """A job per run. The first begins from the start adapter, where there is one; every other from what the one before has made."""
    begin = first.train.start
    if begin is not None:
        role = "start" if begin.how == "continue" else "frozen"
        kept = storage.join(first.state, role)  # every node sees it there
        adapter_files.copy(start.directory(begin), kept)
        first = replace(first, **{role: kept})
    jobs = [first]
    for number, run in enumerate(runs[1:], 2):
        jobs.append(replace(first, number=number, run=run, start=jobs[-1].done, name=f"{first.name}-{number}"))
    return jobs


def _numbering(jobs: list[Job], job: Job, before: list[dict]) -> Callable[[dict], dict]:
    """What makes a run's log line one of the whole training: steps and tokens count over all runs."""
    t = job.train
    steps = sum(examples.steps(j.run.items, t.epochs, t.batch_size) for j in jobs)
    step, tokens = (before[-1]["step"], before[-1]["tokens"]) if before else (0, 0)
    several = {"iteration": job.number} if len(jobs) > 1 else {}
    return lambda line: {**line, "step": line["step"] + step, "steps": steps, "tokens": line["tokens"] + tokens, **several}


def _run(job: Job, on_line: Progress | None) -> None:
    """Bring one run to its end, and keep what it has made in `job.done`; nothing to do where it is there."""
    if adapter_files.is_whole(job.done):
        return
    checkpoint = _fit(job, on_line)
    attempt.check()  # before the checkpoints of other attempts are removed
    with checkpoint.as_directory() as directory:
        state = storage.join(job.done, "trainer_state.json")
        with open(os.path.join(directory, "trainer_state.json"), encoding="utf-8") as f:
            storage.write_text(state, f.read())
        adapter_files.copy(directory, job.done)
    storage.remove(job.directory)


def _history(job: Job) -> list[dict]:
    text = storage.read_text(storage.join(job.done, "trainer_state.json"))
    return [line for line in json.loads(text)["log_history"] if "loss" in line]


def _assemble(job: Job, directory: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        frozen = adapter_files.fetch(job.frozen, scratch) if job.frozen else None
        start.assemble(frozen, adapter_files.fetch(job.done, scratch), directory)


def _fit(job: Job, on_line: Progress | None) -> Any:
    """Run the workers to the end, from the latest checkpoint that an earlier attempt has left.

    `fit` runs in a thread, so that this one can hand on progress, and so that Ctrl-C stays Python's (Ray Train would take SIGINT over).
    """
    import ray
    from ray.exceptions import RayError
    from ray.train import Checkpoint, CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    for variable, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    t, job = job.train, replace(job, resume=_adopted(job))
    board = beside_driver(_Board)
    trainer = TorchTrainer(
        _train,
        train_loop_config={"job": replace(job, progress=board)},
        scaling_config=ScalingConfig(num_workers=t.workers, use_gpu=t.use_gpu, elastic_resize_monitor_interval_s=RESIZE_S),
        run_config=RunConfig(
            name=_attempt(),
            storage_path=job.directory,
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=t.max_failures, controller_failure_limit=t.max_failures),
            worker_runtime_env={"env_vars": {"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}},
            logging_config=LoggingConfig("CRITICAL"),
        ),
    )
    executor = ThreadPoolExecutor(1)
    try:
        running = executor.submit(trainer.fit)
        while wait([running], timeout=0.3).not_done:
            _hand_on(ray.get(board.take.remote()), on_line)
        _hand_on(ray.get(board.take.remote()), on_line)
        return running.result().checkpoint or Checkpoint(job.resume)  # an earlier attempt had come to the end
    except TrainingFailedError as e:
        raise RunFailed(f"training gave up after {t.max_failures} restarts: {_cause(e)}") from e
    except RayError as e:
        raise RunFailed(
            f"Ray has gone down around the driver ({type(e).__name__}); the same command goes on from the last checkpoint"
        ) from e
    finally:
        executor.shutdown(wait=False)


def _adopted(job: Job) -> str | None:
    """A copy of the newest whole checkpoint that earlier attempts have left: those that still write delete theirs when they have newer ones."""
    from ray.train import Result

    mine = storage.join(job.directory, _attempt())
    for _ in range(_TRIES):
        found = {}
        for name in storage.directories(job.directory):
            with suppress(RuntimeError):  # it has no checkpoint yet
                checkpoint = Result.from_path(storage.join(job.directory, name)).checkpoint
                if checkpoint is not None and name != _attempt():  # its own Ray finds by itself
                    step = checkpoint.path.rpartition("/")[2]  # step-00000042
                    found[step] = storage.join(job.directory, name, step)
        if not found:
            return None
        with suppress(OSError):  # deleted meanwhile: there is a newer one
            storage.remove(storage.join(mine, "resumed"))
            return storage.copy(found[max(found)], storage.join(mine, "resumed"))
    raise RunFailed(f"{job.directory}: its checkpoints change while they are read; see with `setbacks status` who else trains there")


def _attempt() -> str:
    return f"{attempt.number():04d}"


def _hand_on(lines: list[dict], on_line: Progress | None) -> None:
    if on_line is not None:
        for line in lines:
            on_line(line)


def _train(arguments: dict) -> None:
    """The workers' function; imports torch there, not here."""
    from pipeline.training import loop

    loop.train(arguments["job"])


def _cause(error: Exception) -> str:
    """The first sentence of the first worker's exception (Ray's text is a traceback, with the exception in the last line)."""
    failures = getattr(error, "worker_failures", None)
    cause = next(iter(failures.values())) if failures else error
    return str(cause).strip().splitlines()[-1].split(". ")[0]


class _Board:
    """The actor between the workers' log lines and the driver."""

    def __init__(self):
        self.lines: list[dict] = []

    def post(self, line: dict) -> None:
        self.lines.append(line)

    def take(self) -> list[dict]:
        lines, self.lines = self.lines, []
        return lines
