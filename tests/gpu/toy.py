"""The toy model on a GPU: data sets to train it on, configurations, and one training in this process."""

import gc
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.templates import ChatTemplate
from pipeline.toy.corpus import Corpus
from pipeline.toy.model import WEIGHTS
from pipeline.training.job import write_table
from pipeline.training.loop import BaseWeights
from tests import tiny

ARMS = {"sft": "rows", "dpo": "pairs"}  # and their data sets
SETTINGS = {
    "sft": {"epochs": 2, "batch_size": 2, "max_length": 512},
    "dpo": {"method": "dpo", "epochs": 4, "batch_size": 15, "pairs_per_device": 5},
}


def write(root: Path) -> Path:
    """The data sets of both arms."""
    corpus, r = Corpus(1), random.Random(0)
    rows = [
        {"id": f"row-{i}", "instruction_id": f"row-{i}", "kind": "safe", "messages": corpus.draw()}
        for i in range(120)
    ]
    r.shuffle(rows)
    tiny.write(root / "rows", rows)
    tiny.write_preferences(root / "pairs", tiny.preferences(3))
    return root


def config(arm: str, *, use_gpu: bool = True, bf16: bool = True, **train) -> Config:
    given = {"learning_rate": 1e-3, "log_steps": 1, "save_steps": 1000} | SETTINGS[arm] | train
    made = tiny.config(str(WEIGHTS), use_gpu=use_gpu, bf16=bf16, **given)
    model = made.model.model_copy(update={"dtype": "bfloat16" if bf16 else "float32"})
    return made.model_copy(update={"model": model})


@dataclass
class Trained:
    losses: list[float]  # of the steps
    weights: dict[str, torch.Tensor]  # of the adapter, on the CPU


def train(root: Path, scratch: Path, arm: str, **settings) -> Trained:
    """Train an arm in this process, through the trainer that workers build."""
    from transformers import AutoTokenizer

    made = config(arm, **settings)
    settings_of_arm = made.arms[arm].train
    template = ChatTemplate(AutoTokenizer.from_pretrained(WEIGHTS))
    examples = settings_of_arm.prepare(
        template, Dataset.at(str(root / ARMS[arm])), made.arms[arm].kinds, made.seed
    )
    for name, table in examples.tables.items():
        write_table(table, str(scratch / "state" / f"{name}.parquet"))
    job = tiny.job(made, arm, str(scratch / "state"), 1, examples.runs[0], "run")
    (scratch / "out").mkdir()
    trainer = settings_of_arm.build(job, str(scratch / "out"), base=BaseWeights())
    trainer.start_clock()
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    weights = {
        name: parameter.detach().float().cpu()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    del trainer
    gc.collect()
    torch.cuda.empty_cache()
    return Trained(losses, weights)


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The norm of the difference of two adapters, relative to that of the second's B, which began at zero."""
    assert one.keys() == other.keys()
    difference = torch.cat([(one[name] - weights).flatten() for name, weights in other.items()])
    learned = torch.cat([weights.flatten() for name, weights in other.items() if "lora_B" in name])
    return (difference.norm() / learned.norm()).item()
