"""Weights that are split over the workers (FSDP2): the trainers learn what they learn with whole ones.

The workers are processes without Ray; tests/long/test_fsdp.py has whole trainings.
"""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.data.dataset import Dataset
from pipeline.training.job import Job, Run, write_table
from tests import gloo, tiny

STEPS, RESUMED = 4, 2
METHODS = ("sft", "dpo")


def job(place: Path, method: str, fsdp: bool, workers: int = 2) -> Job:
    settings = {"method": method, "workers": workers, "fsdp": fsdp, "batch_size": 8, "max_length": 160}
    settings |= {"epochs": 2} if method == "sft" else {"epochs": 0.5, "pairs_per_device": 8 // workers}
    config = tiny.config(str(place / "model"), log_steps=1, save_steps=2, **settings)
    state = place / method
    if not (state / "items").exists():
        made = tiny.prepared(config, method, Dataset.at(str(place / f"{method}-rows")))
        for table, content in made.tables.items():
            write_table(content, str(state / f"{table}.parquet"))
        (state / "items").write_text(str(made.runs[0].items))
    return tiny.job(config, method, str(state), 1, Run(int((state / "items").read_text())), "x")


def train(
    place: Path, method: str, fsdp: bool, name: str, resume: Path | None = None, workers: int = 2
) -> None:
    """In every process: train; leave history and adapter in the directory `name`."""
    import torch
    from transformers import TrainerCallback

    out, first = place / name, torch.distributed.get_rank() == 0

    class Keep(TrainerCallback):
        """The trainer deletes its older checkpoints."""

        def on_save(self, args, state, control, **kwargs):
            torch.distributed.barrier()  # every process has written its part
            if first:
                shutil.copytree(out / f"checkpoint-{state.global_step}", out / str(state.global_step))
            torch.distributed.barrier()

    one = job(place, method, fsdp, workers)
    trainer = one.train.build(one, str(out), world=workers)
    trainer.add_callback(Keep())
    if fsdp:
        _assert_split(trainer, workers)
    trainer.start_clock()
    trainer.train(resume_from_checkpoint=resume and str(resume))


def _assert_split(trainer, workers: int) -> None:
    """Of the base model's layers, this process holds its share; of the adapter, all."""
    from torch.distributed.tensor import DTensor

    base = {n: p for n, p in trainer.model.named_parameters() if ".layers." in n and ".lora_" not in n}
    assert all(isinstance(p.data, DTensor) and not p.requires_grad for p in base.values())
    assert workers * sum(p.to_local().numel() for p in base.values()) == sum(p.numel() for p in base.values())
    adapter = [p for n, p in trainer.model.named_parameters() if ".lora_" in n]
    assert adapter and not any(isinstance(p.data, DTensor) for p in adapter)


def trainings(place: Path) -> None:
    for method in METHODS:
        train(place, method, False, f"{method}-whole")
        (place / method / "reference-1.parquet").unlink(missing_ok=True)
        train(place, method, True, f"{method}-split")
        train(place, method, True, f"{method}-resumed", place / f"{method}-split" / str(RESUMED))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """All trainings, in two processes."""
    place = tmp_path_factory.mktemp("fsdp")
    tiny.save(place / "model", tie_word_embeddings=True)
    tiny.write(place / "sft-rows", tiny.rows(90))
    tiny.write_preferences(place / "dpo-rows", tiny.preferences(4))
    for method in METHODS:
        job(place, method, fsdp=True)  # writes its tables
    gloo.run(2, trainings, place)
    return place


def losses(place: Path, name: str) -> list[float]:
    state = json.loads((place / name / str(STEPS) / "trainer_state.json").read_text())
    return [line["loss"] for line in state["log_history"] if "loss" in line]


def adapter(place: Path, name: str) -> dict:
    from safetensors.torch import load_file

    return load_file(place / name / str(STEPS) / "adapter_model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_losses_and_adapters_are_those_of_whole_weights(trained, method):
    """They were equal bit for bit, which torch does not promise."""
    import torch

    assert len(losses(trained, f"{method}-split")) == STEPS
    assert losses(trained, f"{method}-split") == pytest.approx(losses(trained, f"{method}-whole"), rel=1e-6)
    split, whole = (adapter(trained, f"{method}-{kind}") for kind in ("split", "whole"))
    assert split.keys() == whole.keys()
    for name, tensor in split.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, whole[name], rtol=0, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert any(tensor.abs().max() > 1e-3 for name, tensor in split.items() if "lora_B" in name)


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_ends_as_if_undisturbed(trained, method):
    import torch

    assert losses(trained, f"{method}-resumed") == losses(trained, f"{method}-split")
    resumed, undisturbed = (adapter(trained, f"{method}-{kind}") for kind in ("resumed", "split"))
    assert all(torch.equal(tensor, undisturbed[name]) for name, tensor in resumed.items())


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_has_the_files_of_whole_weights(trained, method):
    split, whole = (
        {file.name for file in (trained / f"{method}-{kind}" / str(STEPS)).iterdir()}
        for kind in ("split", "whole")
    )
    assert split == whole and "adapter_model.safetensors" in split
