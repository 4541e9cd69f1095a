"""The adapters of a configuration as training takes them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.settings.base import Model
from pipeline.suites import VANILLA
from pipeline.training.config import Train
from pipeline.training.durability import KIND, OF_THE_ARM, OF_THE_RUN, Further

if TYPE_CHECKING:
    from pipeline.training.arm import ArmSpec


def arm_specs(config: Config, directory: str, model: Model | None = None) -> dict[str, "ArmSpec"]:
    """The adapters to train, by name. directory: as returned by `model_dir`. model: the pinned one."""
    from pipeline.training.arm import ArmSpec

    return {
        name: ArmSpec(
            name,
            one.section.train,
            one.section.kinds,
            model or config.model,
            directory,
            one.seed,
            partial(config.field_of, one.arm),
        )
        for name, one in config.replicas.items()
    }


def further_specs(
    config: Config, directory: str, adapters: Mapping[str, str], model: Model | None = None
) -> dict[str, "ArmSpec"]:
    """The arms that are trained further, by name. adapters: arm → directory of its adapter. model: the
    pinned one."""
    from pipeline.training.arm import ArmSpec

    if (durability := config.durability) is None:
        return {}
    return {
        name: ArmSpec(
            name,
            durability.trainer(one, config.train, adapters.get(one.arm)),
            [KIND],
            model or config.model,
            directory,
            config.seed,
            partial(_field_of, config, one),
            steps=one.steps,
        )
        for name, one in config.further.items()
    }


def _field_of(config: Config, further: Further, setting: str) -> str:
    """The likely field of a setting of an arm that is trained further."""
    if setting in OF_THE_ARM and further.arm != VANILLA:
        return config.field_of(config.replicas[further.arm].arm, setting)
    return f"train.{setting}" if setting in OF_THE_ARM + OF_THE_RUN else f"durability.{setting}"


def trainings(config: Config) -> list[tuple[Callable[[str], str], Train]]:
    """Every way in which adapters are trained, or trained further, and the likely field of its settings."""
    found: list[tuple[Callable[[str], str], Train]] = [
        (partial(config.field_of, name), arm.train) for name, arm in config.arms.items()
    ]
    if any(one.arm == VANILLA for one in config.further.values()):
        found.append(("train.{}".format, config.train))
    return found
