"""The adapters of a configuration as training takes them."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.settings.base import Model
from pipeline.training.durability import KIND

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
            durability.trainer(config.train, adapters.get(one.arm)),
            [KIND],
            model or config.model,
            directory,
            config.seed,
            lambda setting: f"durability.{setting}",
            steps=one.steps,
        )
        for name, one in config.further.items()
    }
