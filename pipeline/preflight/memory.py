"""Whether GPUs can hold the engines and trainers of a run: found before a token is generated.

What is needed is estimated from the model without weights (see `pipeline.memory`), only for what runs on
GPUs. What there is follows from `gpu_memory_gib`, the kind of GPU that a section asks for, or the kinds that
the cluster's nodes name. If either is unknown, nothing is refused.
"""

import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import models, placement, pretrained
from pipeline.config import Answering, Config
from pipeline.data import adapter as adapter_files
from pipeline.data import storage
from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.memory import BYTES, CLOSE, GIB, GPU_GIB, Lora, Memory, Shape
from pipeline.runtime import imports
from pipeline.runtime.nodes import Node
from pipeline.settings.base import Model

if TYPE_CHECKING:
    from pipeline.training.arm import ArmSpec

MOST_GPUS = 8  # that are proposed for an engine
FITS, UNKNOWN, IS_CLOSE, DOES_NOT_FIT = "fits", "unknown", "close", "does not fit"


@dataclass(frozen=True)
class Gpus:
    """The GPUs that an engine or a trainer may get, in GiB: of the smallest, and of the largest."""

    least_gib: float
    most_gib: float

    def __str__(self) -> str:
        if self.least_gib == self.most_gib:
            return f"{self.most_gib:g} GiB"
        return f"{self.least_gib:g} to {self.most_gib:g} GiB"


@dataclass(frozen=True)
class Footprint:
    """What an engine or a training worker needs on each of its GPUs, and what these have.

    stage:  for the reader, `train sft`
    field:  the section that decides it, `train` or `engine`
    share:  of a GPU's memory, that it may take
    longer: bytes of cache for each further sequence of full length; engines only
    remedy: what to change if it does not fit
    """

    stage: str
    field: str
    memory: Memory
    remedy: str
    gpus: Gpus | None
    each: str = "worker"
    share: float = 1.0
    longer: int = 0

    @property
    def verdict(self) -> str:
        """Whether it fits: only what no GPU can hold, whatever the estimates' errors, does not."""
        if self.gpus is None:
            return UNKNOWN
        if self.memory.least > self.gpus.most_gib * GIB * self.share:
            return DOES_NOT_FIT
        return IS_CLOSE if self.memory.total > CLOSE * self.gpus.least_gib * GIB * self.share else FITS

    @property
    def sequences(self) -> int | None:
        """Sequences of full length that the cache can hold beside the rest, on the smallest GPU."""
        if self.gpus is None or not self.longer:
            return None
        left = self.gpus.least_gib * GIB * self.share - self.memory.total
        return max(0, int(1 + left // self.longer))

    @property
    def told(self) -> str:
        """The verdict as a sentence, for one that is close or does not fit."""
        share = f"{self.share:.0%} of " if self.share < 1 else ""
        about = f"about {self.memory.total / GIB:.0f} GiB on each GPU"
        if self.verdict == DOES_NOT_FIT:
            about += f", and {self.memory.least / GIB:.0f} in any case"
        return (
            f"{self.field}: {self.stage} needs {about} ({self.memory.told()}), and"
            f" {'an' if self.each == 'engine' else 'a'} {self.each} may take {share}{self.gpus}"
        )


def check(found: Sequence[Footprint]) -> list[str]:
    """Notices about what is close. Raises UserError for what cannot fit."""
    for one in found:
        if one.verdict == DOES_NOT_FIT:
            raise UserError(f"{one.told}: {one.remedy}")
    return [f"{one.told}; if it runs out of memory, {one.remedy}" for one in found if one.verdict == IS_CLOSE]


def check_cluster(
    config: Config, stages: Collection[str], run_dir: str, read: dict[str, str], log: Any = print
) -> None:
    """Check that the connected cluster has room for a run (see `placement`), and its GPUs the memory.

    log: takes a line for each notice. Raises UserError.
    """
    placement.check_cluster(config, stages, run_dir, read, log)
    if on_gpus(config, stages):
        for notice in check(footprints(config, stages, placement.nodes())):
            log(notice)


def on_gpus(config: Config, stages: Collection[str]) -> bool:
    """Whether the stages have work for GPUs."""
    return any(need.gpus for need in placement.needs(config, stages))


def footprints(config: Config, stages: Collection[str], nodes: Sequence[Node] = ()) -> list[Footprint]:
    """What each trainer and engine of the stages needs, if it is on GPUs and its model says its shape.

    nodes: of the cluster.
    """
    from pipeline.preflight.arms import arm_specs, further_specs

    with imports.quick():
        shapes, directory = _Shapes(), models.model_dir(config.model)
        specs = arm_specs(config, directory) | further_specs(config, directory, {})
        adapters = _evaluated(config, specs, shapes) if "evaluate" in stages else (0, 0)
        found = [*_engines(config, stages, nodes, shapes, adapters)]
        if "train" in stages:
            found += _training(config, specs, nodes, shapes)
    return found


class _Shapes:
    """The shapes of models, and of the adapters that are trained on the run's own, each made once."""

    def __init__(self) -> None:
        self._models: dict[str, tuple[Any, Shape | None]] = {}

    def _made(self, model: Model) -> tuple[Any, Shape | None]:
        directory = models.model_dir(model)
        if directory not in self._models:
            try:
                made = pretrained.empty(pretrained.architecture(directory, model.revision))
                self._models[directory] = (made, Shape.of(made))
            # what is odd about a configuration is told by other checks; here its memory is unknown
            except (OSError, ValueError, AttributeError, TypeError, ArithmeticError):
                self._models[directory] = (None, None)
        return self._models[directory]

    def of(self, model: Model) -> Shape | None:
        """None if the model's configuration does not say its shape."""
        return self._made(model)[1]

    def adapter(self, spec: "ArmSpec") -> Lora:
        """The adapter of an arm, whose model has a shape."""
        from pipeline.training import start
        from pipeline.training.adapter import lora_config

        begin = start.directory(spec.train.start) if spec.train.start else None
        try:
            settings = lora_config(spec.train, None, begin)
        except UserError:  # gone since; `train` would say so, and others do not need it
            settings = lora_config(spec.train, None)
        return Lora.of(self._made(spec.model)[0], settings)

    def number(self, model: Model) -> int:
        """Bytes of a number of a model's weights."""
        if model.dtype != "auto":
            return BYTES[model.dtype]
        stored = pretrained.architecture(models.model_dir(model), model.revision).dtype
        return BYTES.get(str(stored).removeprefix("torch."), 4)


def _training(
    config: Config, specs: Mapping[str, "ArmSpec"], nodes: Sequence[Node], shapes: _Shapes
) -> Iterator[Footprint]:
    """A footprint for arms that are trained alike."""
    alike: dict[str, list[str]] = {}
    for name, spec in specs.items():
        alike.setdefault(spec.train.model_dump_json(exclude={"seeds", "start"}), []).append(name)
    shape = shapes.of(config.model)
    for names in alike.values():
        spec = specs[names[0]]
        train = spec.train
        if not train.use_gpu or shape is None:
            continue
        makers = [one for one in config.methods.values() if train.accepts in one.training_sets]
        gap = max((one.widest_gap for one in makers), default=1)
        memory = train.footprint(
            shape,
            shapes.adapter(spec),
            gap,
            shapes.number(config.model) if train.bf16 else BYTES["float32"],
        )
        room = gpus(config, train.gpu_kind, nodes)
        yield Footprint(
            stage=f"train {', '.join(names)}",
            field=spec.field("use_gpu").removesuffix(".use_gpu"),
            memory=memory,
            remedy=train.less_memory(memory, room.most_gib * GIB if room else 0),
            gpus=room,
        )


def _engines(
    config: Config, stages: Collection[str], nodes: Sequence[Node], shapes: _Shapes, adapters: tuple[int, int]
) -> Iterator[Footprint]:
    """A footprint for each engine. adapters: how many `evaluate` loads, and the parameters of the largest."""
    told: dict[str, Footprint] = {}
    for stage in ("generate", "evaluate", "rejudge"):
        for one in config.used([stage]) if stage in stages else ():
            count, parameters = adapters if stage == "evaluate" and one.field == "model" else (0, 0)
            before = told.get(one.engine_field)
            found = _engine(config, stage, one, count, parameters, nodes, shapes)
            if found and before and before.memory == found.memory:
                stages_told = dict.fromkeys([*before.stage.split(" and "), stage])
                told[one.engine_field] = replace(before, stage=" and ".join(stages_told))
            elif found:
                if before:
                    yield before
                told[one.engine_field] = found
    yield from told.values()


def _engine(
    config: Config,
    stage: str,
    one: Answering,
    adapters: int,
    adapter_parameters: int,
    nodes: Sequence[Node],
    shapes: _Shapes,
) -> Footprint | None:
    engine, directory = one.engine, models.model_dir(one.model)
    if not (engine.reads_model and engine.gpus) or (shape := shapes.of(one.model)) is None:
        return None
    weights = None
    if models.quantization(one.model, directory, one.field):
        if not os.path.isdir(directory):
            return None
        weights = sum(file.stat().st_size for file in Path(directory).glob("*.safetensors"))
    length = one.model.max_length or models.positions(one.model, directory) or 0

    def on(engine: Engine, tokens: int) -> Memory | None:
        return engine.footprint(
            shape,
            length=tokens,
            number=shapes.number(one.model),
            weights=weights,
            adapters=adapters,
            adapter_parameters=adapter_parameters,
        )

    if (memory := on(engine, length)) is None:
        return None
    room, remedy, apart = gpus(config, engine.gpu_kind, nodes), "", ""
    most = room.most_gib * GIB * engine.gpu_share if room else 0
    more = (n for n in range(engine.gpus + 1, MOST_GPUS + 1) if shape.heads % n == 0)
    for number in more:
        wider = on(engine.model_copy(update={"num_gpus": number}), length)
        if wider and wider.total <= CLOSE * most:
            remedy = f"set {one.engine_field}.num_gpus: {number}, "
            break
    else:
        apart = " (an engine cannot span nodes)"
    shorter = on(engine, length // 2)
    if shorter and shorter.total <= CLOSE * most:
        remedy += f"set {one.field}.max_length, now {length}, lower, "
    return Footprint(
        stage=stage,
        field=one.engine_field,
        memory=memory,
        remedy=f"{remedy}{'or use' if remedy else 'use'} larger GPUs or a smaller model{apart}",
        gpus=room,
        each="engine",
        share=engine.gpu_share,
        longer=memory.parts["cache"],
    )


def gpus(config: Config, kind: str | None, nodes: Sequence[Node]) -> Gpus | None:
    """The GPUs that a section may get, if their memory is known. kind: that it asks for; None = any."""
    if config.gpu_memory_gib:
        return Gpus(config.gpu_memory_gib, config.gpu_memory_gib)
    if kind:
        sizes = [GPU_GIB.get(kind)]
    else:
        kinds = [node.kinds or {""} for node in nodes if node.gpus]
        sizes = [GPU_GIB.get(one) for of_node in kinds for one in of_node]
    known = [size for size in sizes if size is not None]
    return Gpus(min(known), max(known)) if known and len(known) == len(sizes) else None


def _evaluated(config: Config, specs: Mapping[str, "ArmSpec"], shapes: _Shapes) -> tuple[int, int]:
    """How many adapters `evaluate` loads, and the parameters of the largest."""
    sizes, shape = [0], shapes.of(config.model)
    for spec in specs.values() if shape else ():
        sizes.append(shapes.adapter(spec).parameters)
    for path in config.adapters.values():
        found = adapter_files.shapes(storage.join(path, adapter_files.FILES[1]))
        sizes.append(sum(math.prod(one) for one in found.values()))
    return len(config.arm_names) - 1, max(sizes)
