"""The training methods as the driver sees them: the training set, what a model must be, figures.

`build` makes a worker's trainer, in `sft.py` or `dpo.py`. Those import TRL, which takes seconds; the driver gets by without it.
"""

from typing import Any, Protocol

import pyarrow as pa

from pipeline.config import DPO, SFT, Config
from pipeline.data.dataset import Dataset
from pipeline.training import examples, pairs
from pipeline.training.job import Job, Run

Prepared = tuple[dict[str, pa.Table], examples.Counts, list[Run]]


class Method(Protocol):
    @staticmethod
    def prepare(tokenizer: Any, dataset: Dataset, config: Config, arm: str) -> Prepared:
        """The arm's training set as tables, what became of the rows it is made of, and the runs over it.

        Raises UserError if no row can be used.
        """

    @staticmethod
    def check(model_config: Any, where: str) -> None:
        """Raises UserError, naming the setting `where`, for models that cannot be trained this way."""

    @staticmethod
    def figures(line: dict) -> dict:
        """What this method adds to an arm's figures, from its last log line."""

    @staticmethod
    def build(job: Job, scratch: str, *, base: Any = None, world: int = 1, report_to: str = "none") -> Any:
        """The trainer of one run, its work shared by `world` processes. base: the worker's `loop.BaseWeights`."""


def of(train: SFT | DPO) -> type[Method]:
    return Preferences if isinstance(train, DPO) else Supervised


class Supervised:
    """Fine-tuning on packed conversations: one run over them, for every model that can be loaded."""

    @staticmethod
    def prepare(tokenizer: Any, dataset: Dataset, config: Config, arm: str) -> Prepared:
        """From rows of `schema.SFT`."""
        t, kinds = config.arms[arm].train, config.arms[arm].kinds
        sequences, counts = examples.prepare(tokenizer, dataset, kinds, config.seed, t.max_length, t.packing)
        return {"sequences": sequences}, counts, [Run(sequences.num_rows)]

    @staticmethod
    def check(model_config: Any, where: str) -> None:
        pass

    @staticmethod
    def figures(line: dict) -> dict:
        return {}

    @staticmethod
    def build(job: Job, scratch: str, *, base: Any = None, world: int = 1, report_to: str = "none") -> Any:
        from pipeline.training import sft

        return sft.build(job, scratch, base=base, world=world, report_to=report_to)


class Preferences:
    """DPO on pairs: one run, or one per falling rank gap."""

    @staticmethod
    def prepare(tokenizer: Any, dataset: Dataset, config: Config, arm: str) -> Prepared:
        """From rows of `schema.PREFERENCES`."""
        t = config.arms[arm].train
        responses, found, counts = pairs.prepare(tokenizer, dataset, t.max_length)
        runs = [Run(found.num_rows)]
        if t.curriculum == "iterative":
            sizes = {entry["values"]: entry["counts"] for entry in found["gap"].value_counts().to_pylist()}
            runs = [Run(sizes[gap], gap) for gap in sorted(sizes, reverse=True)]
        return {"responses": responses, "pairs": found}, counts, runs

    @staticmethod
    def check(model_config: Any, where: str) -> None:
        from pipeline.training import attention

        attention.check_shared(model_config, where)

    @staticmethod
    def figures(line: dict) -> dict:
        return {"final_margin": line["rewards/margins"], "final_accuracy": line["rewards/accuracies"]}

    @staticmethod
    def build(job: Job, scratch: str, *, base: Any = None, world: int = 1, report_to: str = "none") -> Any:
        from pipeline.training import dpo

        return dpo.build(job, scratch, base=base, world=world, report_to=report_to)
