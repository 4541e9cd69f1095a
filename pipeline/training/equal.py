"""Equally many optimizer steps for arms that are compared.

Arms differ in examples, so the same number of epochs gives them different numbers of steps, and an arm that
is trained longer may be better for that alone. Arms of one trainer with the same epochs and batch size are
compared: all of them take as many steps as the one that needs most. The others pass over their own examples
more often, each epoch in an order of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.training import examples
from pipeline.training.base import Train
from pipeline.training.job import Run

TOLERANCE = 1  # steps; a difference that rounding makes is no reason to train an arm otherwise


@dataclass(frozen=True)
class Arm:
    """An arm to train. steps: of its own epochs."""

    train: Train
    steps: int


def compared(train: Train) -> tuple | None:
    """Arms of equal value are compared with each other; None if the arm keeps its own number of steps."""
    if not train.equal_steps or train.patience:  # one that may stop early has no number of steps to compare
        return None
    return train.method, train.epochs, train.batch_size


def steps(runs: Sequence[Run], train: Train, epochs: float | None = None) -> int:
    """Optimizer steps of an arm's runs."""
    return sum(examples.steps(run.items, epochs or train.epochs, train.batch_size) for run in runs)


def target(arm: Arm, others: Iterable[Arm], finished: int = 0) -> int:
    """The steps that an arm takes: those of the longest arm that it is compared with, or its own.

    finished: most steps of an arm that is compared and trained already.
    """
    key = compared(arm.train)
    if key is None:
        return arm.steps
    most = max([finished, arm.steps, *(other.steps for other in others if compared(other.train) == key)])
    return most if most - arm.steps > TOLERANCE else arm.steps


def lengthened(train: Train, runs: Sequence[Run], wanted: int) -> Train:
    """The trainer with so many epochs that its runs take the wanted number of steps, or the next above that.

    Several runs (of an iterative curriculum) may step over the number, because each ends with a whole step.
    """
    if len(runs) == 1:
        return train.model_copy(update={"epochs": wanted * train.batch_size / runs[0].items})
    low, high = train.epochs, train.epochs
    while steps(runs, train, high) < wanted:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        if steps(runs, train, middle) < wanted:
            low = middle
        else:
            high = middle
    return train.model_copy(update={"epochs": high})
