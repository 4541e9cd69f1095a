"""The trainings of `setbacks plan`: how many there are, and what each takes, as far as that is known.

Steps and tokens of an arm are those of its finished training in this run directory, or are counted in its
training set once `mix` has written it. Before that, the steps are foreseen roughly. Hours are given only by a
measured speed: no speed is assumed.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.markup import escape

from pipeline.arms import Arm
from pipeline.commands import foreseen
from pipeline.config import Config
from pipeline.data import records, storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.settings.shown import plural
from pipeline.templates import ChatTemplate
from pipeline.training import equal
from pipeline.training.base import TrainingSet

MOST_ROWS = 10_000  # of a training set that a plan counts
UNWRITTEN = "unknown until `mix` has written"
FEW_STEPS = 20  # fewer change an adapter hardly


@dataclass(frozen=True)
class Training:
    """What every training of one arm takes.

    trainings:    one for each seed
    steps, tokens: of one training; None if not known. Tokens are those of the training sequences, over all
                  epochs
    origin:       measured, counted, or why neither
    tokens_per_s: of the arm's own training in this run directory, or of another arm's with the same method
                  and workers; None if none was measured
    foreseen:     the fewest and the most steps of one training, about, if they are not known yet
    """

    trainings: int
    steps: int | None = None
    tokens: int | None = None
    origin: str = ""
    tokens_per_s: float | None = None
    foreseen: tuple[int, int] | None = None

    @property
    def hours(self) -> float | None:
        """Of all trainings of the arm, without starts of workers."""
        if self.tokens is None or not self.tokens_per_s:
            return None
        return self.trainings * self.tokens / self.tokens_per_s / 3600


def show(
    config: Config, template: ChatTemplate | None, console: Console, rows: Mapping[str, int | None]
) -> dict:
    """Print the trainings; returns them as facts.

    template: of the run's model; None = out of reach. rows: as of `foreseen.steps`.
    """
    if "train" not in config.stages:
        return {}
    found = known(config, template)
    if any(one.steps is None and one.origin.startswith(UNWRITTEN) for one in found.values()):
        ahead = foreseen.steps(config, template, rows)
        found = {
            name: one if one.steps is not None else replace(one, foreseen=ahead.get(name))
            for name, one in found.items()
        }
    counts = [one.trainings for one in found.values()]
    each = f" × {plural(counts[0], 'seed')}" if len(set(counts)) == 1 and counts[0] > 1 else ""
    console.print("[bold]Training[/bold]")
    console.print(
        f"  {plural(sum(counts), 'training')}, one after the other: {plural(len(counts), 'arm')}{each}"
    )
    alike: dict[str, list[str]] = {}
    for name, one in found.items():
        alike.setdefault(_in_words(one), []).append(name)
    for told, names in alike.items():
        console.print(f"  {', '.join(names)}: {told}")
    if few := _few(config, found):
        console.print(f"  [yellow]{escape(few)}[/yellow]")
    if config.durability:
        steps = [one.steps for one in config.further.values()]
        console.print(f"  durability: {plural(len(steps), 'training')} more, {sum(steps):,} steps in all")
    hours = [one.hours for one in found.values()]
    if any(hours):
        several = "" if all(hours) else ", of the arms whose speed is known"
        console.print(f"  together {sum(filter(None, hours)):.2f} h of training, starts not counted{several}")
    console.print()
    return {name: asdict(one) | {"hours": one.hours} for name, one in found.items()}


def _few(config: Config, found: Mapping[str, Training]) -> str | None:
    """A warning if arms are trained for so few steps that they learn hardly anything."""
    steps = {name: one.foreseen[0] if one.foreseen else one.steps for name, one in found.items()}
    few = {name: count for name, count in steps.items() if count is not None and count < FEW_STEPS}
    if not few:
        return None
    name = min(few, key=few.__getitem__)
    train, told = config.arms[name].train, "may take" if found[name].foreseen else "takes"
    return (
        f"WARNING: the training of {', '.join(few)} {told} only {plural(few[name], 'step')}, and fewer than"
        f" {FEW_STEPS} teach hardly anything: raise epochs = {train.epochs:g} or learning_rate ="
        f" {train.learning_rate:g}, or lower batch_size = {train.batch_size}, in"
        f" {config.field_of(name, 'epochs').removesuffix('.epochs')}"
    )


def _in_words(one: Training) -> str:
    if one.foreseen is not None:
        low, high = one.foreseen
        told = plural(f"{low:,} to {high:,}" if low < high else low, "step")
        return f"about {told}, tokens {one.origin}"
    if one.steps is None:
        return f"steps and tokens {one.origin}"
    times = f"{one.trainings} × " if one.trainings > 1 else ""
    tokens = f" and {one.tokens:,} tokens" if one.tokens is not None else ""
    told = f"{times}{plural(one.steps, 'step')}{tokens} ({one.origin})"
    if one.hours is not None:
        return f"{told}, {one.hours:.2f} h at {one.tokens_per_s:,.0f} measured tokens/s"
    return f"{told}; hours unknown until one is measured"


def known(config: Config, template: ChatTemplate | None) -> dict[str, Training]:
    """The trainings of every arm."""
    measured = _measured(config)
    names: dict[str, list[str]] = {}
    for made, replica in config.replicas.items():
        names.setdefault(replica.arm, []).append(made)
    lines = {arm: next((measured[one] for one in of if one in measured), None) for arm, of in names.items()}
    speeds = {_like(config.arms[arm]): line["tokens_per_s"] for arm, line in lines.items() if line}
    sets = {arm: _counted(config, arm, template) for arm, line in lines.items() if line is None}
    counted = {arm: made for arm, made in sets.items() if isinstance(made, TrainingSet)}
    own = {
        arm: equal.Arm(config.arms[arm].train, equal.steps(made.runs, config.arms[arm].train))
        for arm, made in counted.items()
    }
    found = {}
    for arm, of in names.items():
        speed = speeds.get(_like(config.arms[arm]))
        if line := lines[arm]:
            found[arm] = Training(len(of), line["steps"], line["tokens"], "measured", line["tokens_per_s"])
        elif arm in counted:
            steps = equal.target(own[arm], own.values(), _finished(config, arm, lines))
            tokens = _tokens(counted[arm])
            if tokens is not None:
                tokens = round(tokens * config.arms[arm].train.epochs * steps / own[arm].steps)
            found[arm] = Training(len(of), steps, tokens, "counted", speed)
        else:
            found[arm] = Training(len(of), origin=str(sets[arm]), tokens_per_s=speed)
    return found


def _measured(config: Config) -> dict[str, dict]:
    """Adapter → the line that its training left in the run directory."""
    path = storage.join(storage.absolute(config.run_dir), "metrics.jsonl")
    lines = [line for line in records.lines(path) if line["stage"] == "train" and "arm" in line]
    return {line["arm"]: line for line in lines if line.get("tokens") and line.get("tokens_per_s")}


def _like(arm: Arm) -> tuple:
    return arm.train.method, str(arm.train.workers), arm.train.use_gpu


def _finished(config: Config, arm: str, lines: Mapping[str, dict | None]) -> int:
    """The most steps of a finished arm that this one is compared with."""
    key = equal.compared(config.arms[arm].train)
    steps = [
        line["steps"]
        for name, line in lines.items()
        if line and equal.compared(config.arms[name].train) == key
    ]
    return max(steps, default=0) if key is not None else 0


def _counted(config: Config, arm: str, template: ChatTemplate | None) -> TrainingSet | str:
    """The arm's training set, as `train` makes it, or why a plan does not count it."""
    section = config.arms[arm]
    name = section.train.accepts.name
    made = Dataset.at(storage.join(storage.absolute(config.run_dir), name))
    if made is None:
        return f"{UNWRITTEN} {name}"
    if made.table(["id"]).num_rows > MOST_ROWS:
        return f"not counted, since {name} has more than {MOST_ROWS:,} rows"
    if template is None:
        return "not counted, since the model's tokenizer cannot be reached"
    try:
        return section.train.prepare(template, made, section.kinds, config.seed)
    except UserError:  # `train` says what is wrong
        return f"not counted, since {name} has nothing that the arm can use"


def _tokens(made: TrainingSet) -> int | None:
    """Tokens of one epoch; None for pairs, whose shared prefixes the trainer takes together."""
    if "sequences" not in made.tables:
        return None
    return sum(map(len, made.tables["sequences"]["input_ids"]))
