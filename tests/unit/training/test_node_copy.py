"""A trainer reads the node's copy of a model, and its adapter names the model."""

import os
import random

import datasets

from pipeline.data import node_copy
from pipeline.training import examples, sft
from pipeline.training.job import Run
from tests import tiny


def test_an_adapter_does_not_name_the_copy_that_its_base_was_read_from(tmp_path, monkeypatch):
    model, cache = tiny.save(tmp_path / "model"), tmp_path / "cache"
    monkeypatch.setenv(node_copy.CACHE, str(cache))
    monkeypatch.setattr(node_copy, "_locks", {})
    read, real = [], sft.pretrained.model
    monkeypatch.setattr(
        "pipeline.pretrained.model", lambda *args, **more: read.append(args[0]) or real(*args, **more)
    )
    [encoded] = examples.encode(tiny.template(), [tiny.conversation(random.Random(0))])
    rows = datasets.Dataset(examples.table([[encoded]]))
    job = tiny.job(tiny.config(model, batch_size=1), "sft", str(tmp_path / "state"), 1, Run(1), "test")
    trainer = sft.trainer(job, rows, str(tmp_path))
    [place] = read
    assert os.path.dirname(os.path.dirname(place)) == str(cache)
    trainer.model.save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert f'"base_model_name_or_path": "{model}"' in text and str(cache) not in text
    assert str(cache) not in (tmp_path / "adapter" / "README.md").read_text()
