"""The adapters of a run: arms trained one after the other, each recorded as soon as it is finished."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pipeline import preflight
from pipeline.data import records, storage
from pipeline.data.adapter import stage_directory
from pipeline.data.output import Output
from pipeline.errors import UserError
from pipeline.run import Run, adapter_digest
from pipeline.runtime import attempt
from pipeline.runtime.console import step_bar
from pipeline.training.job import forget


def fit(run: Run, inputs: Mapping[str, Mapping[str, str]]) -> None:
    """Train the arms.

    Arms with the same workers share them. inputs: arm → digests of its upstream outputs.
    """
    waiting = _waiting(run, run.adapters, inputs)
    checkpoints = storage.join(run.path, ".state", "train")
    if not waiting:
        _log_unequal(run)
        storage.remove(f"{checkpoints}_sets")  # of an attempt that ended right after its last arm
        return
    from pipeline.training import equal
    from pipeline.training.arm import Places  # imports torch

    specs = preflight.arm_specs(run.config, run.model_dir, run.pinned(run.config.model))
    examples = {schema: store.dataset for schema, store in run.training_sets.items()}
    arms = []
    finished = _steps(run, set(run.adapters) - set(waiting))
    for arm, output in waiting.items():
        places = Places(examples[specs[arm].train.accepts], output.path, output.state("train"))
        key = equal.compared(specs[arm].train)
        done = finished.get(key, {}) if key is not None else {}
        arms.append((replace(specs[arm], finished=max(done.values(), default=0)), places))
    _train(run, arms, waiting, checkpoints)
    _log_unequal(run)
    forget(checkpoints, run.adapters)  # those that earlier attempts have left


def fit_further(run: Run, inputs: Mapping[str, Mapping[str, str]]) -> None:
    """Train arms further from their adapters (see `training.durability`). inputs: as in `fit`."""
    waiting = _waiting(run, run.further, inputs)
    if not waiting or run.further_set is None:
        return
    from pipeline.training.arm import Places  # imports torch

    checkpoints = storage.join(run.path, ".state", "train_further")
    paths = {arm: output.path for arm, output in run.adapters.items()}
    specs = preflight.further_specs(run.config, run.model_dir, paths, run.pinned(run.config.model))
    arms = [
        (specs[name], Places(run.further_set.dataset, output.path, output.state("train")))
        for name, output in waiting.items()
    ]
    _train(run, arms, waiting, checkpoints)
    forget(checkpoints, run.further)


def _waiting(
    run: Run, outputs: Mapping[str, Output], inputs: Mapping[str, Mapping[str, str]]
) -> dict[str, Output]:
    """The adapters that are still to be trained, begun; the others are logged."""
    for arm, output in outputs.items():
        _check_unfinished(run, output, inputs[arm])
        run.start(output, inputs[arm])
    for arm, output in outputs.items():
        if output.complete is not None:
            _log_adapter(run, arm, output)
    return {arm: output for arm, output in outputs.items() if output.complete is None}


def _train(run: Run, arms: list, waiting: Mapping[str, Output], checkpoints: str) -> None:
    """Train arms one after the other, and record each one as it is finished."""
    run.connect()
    if run.overwrite:
        storage.remove(checkpoints)
        storage.remove(f"{checkpoints}_sets")
    with run.machinery.trainer(arms, checkpoints) as training:
        for arm, output in waiting.items():
            attempt.making(output.name)
            with (
                run.tracked(arm, output.state("tracking.json"), _settings_of(run, arm)) as tracked,
                step_bar(f"train {arm}", attempt.step_reporter()) as update,
            ):

                def show(line: dict, arm=arm, update=update, tracked=tracked) -> None:
                    if "reference" in line:
                        done = f"{line['reference']:,} of {line['pairs']:,} pairs"
                        run.log(f"train: {arm}: log-probabilities under the reference for {done}")
                        return
                    update(line["step"], line["steps"], f"loss {line['loss']:.3f}")
                    tracked.line(line)

                figures = training.result(arm, show)
                for line in records.lines(storage.join(output.path, "metrics.jsonl")):
                    tracked.line(line)  # those that nobody was there to show
                tracked.conclude(figures, under="training/")
            figures["digest"] = adapter_digest(output.path)
            output.mark_complete(figures)
            storage.remove(output.state("train"))
            run.record("train", {"arm": arm, **figures})
            if notice := figures.get("notice"):
                run.log(f"train: {notice}")
            _log_adapter(run, arm, output)


def _settings_of(run: Run, arm: str) -> dict:
    """What trackers are told of an arm."""
    common = {"arm": arm, "model": run.config.model.identity(), "seed": run.config.seed}
    if (replica := run.config.replicas.get(arm)) is None:
        return {**common, "durability": run.fingerprints[f"adapter/{arm}"]["durability"]}
    section = replica.section.model_dump(mode="json")
    return {**common, "seed": replica.seed, "kinds": section["kinds"], "train": section["train"]}


def _steps(run: Run, arms: Iterable[str]) -> dict[tuple, dict[str, int]]:
    """The steps of finished arms, by what makes arms comparable (see `training.equal`)."""
    from pipeline.training import equal

    found: dict[tuple, dict[str, int]] = {}
    for arm in arms:
        train = run.config.replicas[arm].section.train
        key, steps = equal.compared(train), run.adapters[arm].facts.get("steps")
        if key is not None and steps is not None:
            found.setdefault(key, {})[arm] = steps
    return found


def stage_adapters(run: Run) -> dict[str, str]:
    """The adapters after every stage but the last of the staged arms: name → directory.

    Raises UserError if an arm was trained before these were kept.
    """
    found = {}
    for name, output in run.adapters.items():
        possible, kept = run.config.stage_names(name), run.complete(output, "train").get("stages")
        if possible and kept is None:
            raise UserError(
                f"{output.path} was trained by an older version, which did not keep the adapters of the"
                " stages: set every_stage to false, or train anew with --overwrite"
            )
        for stage in possible[: (kept or 1) - 1]:
            found[stage] = stage_directory(output.path, int(stage.rpartition("_stage")[2]))
    return found


def _log_unequal(run: Run) -> None:
    """Warn of compared arms with other numbers of steps: an arm was added, or an older version ran."""
    from pipeline.training import equal

    for steps in _steps(run, run.adapters).values():
        if max(steps.values()) - min(steps.values()) > equal.TOLERANCE:
            told = ", ".join(f"{arm} {count}" for arm, count in steps.items())
            run.log(
                f"WARNING: train: arms are trained for different numbers of steps ({told}), although"
                " train.equal_steps is true: use --overwrite to train them alike"
            )


def _check_unfinished(run: Run, output: Output, inputs: Mapping[str, str]) -> None:
    """Raises UserError if a training began on other inputs: a restart would delete its checkpoints."""
    if run.overwrite or output.complete is not None or not storage.directories(output.state("train")):
        return
    if changes := output.other_inputs(inputs):
        raise UserError(
            f"{output.path} is partly trained on other data ({'; '.join(changes)}): "
            "choose another run_dir, or train anew with --overwrite"
        )


def _log_adapter(run: Run, arm: str, output: Output) -> None:
    done = output.facts
    run.log(
        f"train: {arm} on {done['examples']:,} examples{_held_out(done)}, {done['steps']}"
        f" steps{_more(done)}, final loss {done['final_loss']:.3f} → {output.path}"
    )


def _more(done: dict) -> str:
    """How many steps a finished training would have taken by its own epochs, if it took others."""
    own = done.get("own_steps", done["steps"])
    return "" if own == done["steps"] else f" ({own} in {done['own_epochs']:g} epochs, made equal)"


def _held_out(done: dict) -> str:
    """What was held out of a training, and how the adapter that was kept does on it."""
    if "held_out" not in done:
        return ""
    return (
        f" ({done['held_out']:,} held out, loss {done['holdout_loss']:.3f} at step {done['kept_step']}, which"
        " is kept)"
    )
