"""Arms: what each trains on and how, their defaults, and their adapters by seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from pipeline.methods.base import Method as AnyMethod
from pipeline.registry import METHODS, TRAINERS, find, trainable, trainer_of
from pipeline.settings.base import Section, tag
from pipeline.suites.asked import Ask
from pipeline.training.base import Train
from pipeline.training.config import Trainer


class Arm(Section):
    """One fine-tuned arm: its kinds of examples, and the training fields that differ from `train`."""

    kinds: list[str] | None = Field(
        None,
        min_length=1,
        description="kinds of examples to train on; pairs of one kind need not name it",
    )
    train: Trainer = Field(
        description=(
            "fields that differ from `train`; merged with it when a configuration is read. `seeds` may also"
            " stand in the arm itself, as arms.NAME.seeds"
        ),
    )
    ask: Ask | None = Field(
        None,
        description=(
            "how every suite asks the arm: a text in the place of the last user turn, which stands in it"
            " as `{{ instruction }}`; left out = as the methods that make its kinds want it; null = as other"
            " arms"
        ),
    )


@dataclass(frozen=True)
class Replica:
    """An adapter to train: an arm with one of its training seeds."""

    arm: str
    section: Arm
    seed: int


def replicas_of(name: str, arm: Arm, seed: int) -> dict[str, Replica]:
    """An arm's adapters, by name. seed: the run's."""
    seeds = arm.train.seeds or [seed]
    return {name if len(seeds) == 1 else f"{name}_seed{one}": Replica(name, arm, one) for one in seeds}


def default_arms(tree: dict) -> dict:
    """The default arms of the methods, in the form of parsed YAML."""
    methods, train = tree.get("methods"), tree.get("train", {})
    arms: dict[str, dict] = {}
    for section in methods.values() if isinstance(methods, dict) else ():
        method = find(METHODS, tag(section, "name", None)) if isinstance(section, dict | AnyMethod) else None
        if method is None:
            continue  # invalid; validation reports it
        for name, arm in method.arms_by_default(section).items():
            given = find(TRAINERS, tag(train, "method", "sft")) if isinstance(train, dict | Train) else None
            fits = given is None or given.accepts in method.training_sets
            trainer = {} if fits else {"train": {"method": trainer_of(method.training_sets[0])}}
            if fits and given is not None and not method.example_kinds.get(given.accepts.name):
                arm = {key: value for key, value in arm.items() if key != "kinds"}
            arms[name] = {**arm, **trainer}
    return arms


def check_arm(name: str, arm: Arm, methods: Mapping[str, AnyMethod]) -> None:
    """Raises ValueError if no method makes the arm's training set, or examples of the arm's kinds."""
    makers = [method for method in methods.values() if arm.train.accepts in method.training_sets]
    if not makers:
        made = sorted({schema.name for method in methods.values() for schema in method.training_sets})
        accepted = [set for method in methods.values() for set in method.training_sets if trainable(set)]
        if not accepted:
            raise ValueError(
                f"arms.{name}: nothing is trained on {' and '.join(made)}, and the methods make nothing else:"
                " leave arms out, or give a method that makes training examples"
            )
        trainer = trainer_of(accepted[0])
        raise ValueError(
            f"arms.{name}: {arm.train.method} trains on {arm.train.accepts.name}, and the methods make"
            f" {' and '.join(made)}: set train.method: {trainer}"
        )
    if refused := arm.train.refuses(max(method.widest_gap for method in makers)):
        raise ValueError(f"arms.{name}.train.{refused}")
    known = [kind for method in makers for kind in method.example_kinds.get(arm.train.accepts.name, ())]
    if arm.kinds is None:
        if len(known) > (0 if arm.train.needs_kinds else 1):
            raise ValueError(
                f"arms.{name}.kinds is missing: say which of {', '.join(known)} the arm is trained on"
            )
        return
    if not known:
        raise ValueError(
            f"arms.{name}.kinds: {arm.train.accepts.name} has no kinds of examples: leave kinds out"
        )
    if unknown := [kind for kind in arm.kinds if kind not in known]:
        raise ValueError(
            f"arms.{name}.kinds: {unknown[0]} is not a kind of example; known are {', '.join(known)}"
        )
    if not any(kind in (method.kinds or ()) for method in makers for kind in arm.kinds):
        raise ValueError(
            f"arms.{name} would have no training example: mix gives no {' or '.join(arm.kinds)} ones"
        )


def with_training(name: str, arm: Any, train: Any) -> Any:
    """An arm merged with `train`.

    An arm with another training method takes only the fields common to both.
    """
    if not (isinstance(arm, dict) and isinstance(train, dict) and isinstance(arm.get("train", {}), dict)):
        return arm  # invalid; validation reports it
    own = arm.get("train", {})
    if "seeds" in arm:
        if "seeds" in own:
            raise ValueError(f"arms.{name}.seeds and arms.{name}.train.seeds are the same setting: give one")
        own = {**own, "seeds": arm["seeds"]}
        arm = {key: value for key, value in arm.items() if key != "seeds"}
    if own.get("method", base := train.get("method", "sft")) != base:
        train = {
            key: value
            for key, value in train.items()
            if key in Train.model_fields and key not in _OF_THE_METHOD
        }
    return {**arm, "train": _merged(train, own)}


def with_ask(arm: Any, methods: Any) -> Any:
    """An arm with `ask`, if it does not say how it is asked and a method that makes one of its kinds does."""
    if not isinstance(arm, dict) or "ask" in arm or not isinstance(arm.get("kinds"), list):
        return arm
    for section in methods.values() if isinstance(methods, dict) else ():
        method = find(METHODS, tag(section, "name", None)) if isinstance(section, dict | AnyMethod) else None
        for kind, text in method.asks(section).items() if method else ():
            if kind in arm["kinds"]:
                return {**arm, "ask": text}
    return arm


# meaning or scale differs between methods
_OF_THE_METHOD = {"method", "epochs", "learning_rate", "batch_size", "max_length"}


def _merged(base: dict, changes: dict) -> dict:
    both = {
        key: _merged(base[key], changes[key])
        for key in base.keys() & changes.keys()
        if isinstance(base[key], dict) and isinstance(changes[key], dict)
    }
    return {**base, **changes, **both}
