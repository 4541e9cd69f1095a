"""Training sets made in Ray tasks, as those of large data sets are."""

import random

import pytest

from pipeline.errors import UserError
from pipeline.training import identity, training_sets
from pipeline.training.config import DPO
from tests import tiny


@pytest.fixture(scope="module")
def cluster():
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def in_parts(monkeypatch):
    monkeypatch.setattr(training_sets, "PART_BYTES", 4000)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_GROUP", 50)
    monkeypatch.setattr("pipeline.data.shards.ROWS_PER_SHARD", 300)
    monkeypatch.setattr("pipeline.data.store._ROWS_AT_ONCE", 50)


def test_tasks_make_the_set_that_the_driver_makes(cluster, in_parts, tmp_path):
    rows = tiny.preferences(60)
    dataset = tiny.write_preferences(tmp_path / "pairs", random.Random(0).sample(rows, len(rows)))
    assert len(training_sets._shares(dataset)) >= 6
    train, template = DPO(max_length=60), tiny.template()
    arguments = (train, template, dataset, None, 0)
    made = training_sets.kept(*arguments, str(tmp_path / "sets"))
    alone = train.prepare(template, dataset, None, 0)
    assert made.large and made.digest == identity.digest("", alone.tables)
    assert (made.counts, made.runs) == (alone.counts, alone.runs)
    assert made.named({"seed": 7}) == identity.digest('{"seed": 7}', alone.tables)
    assert training_sets.kept(*arguments, str(tmp_path / "sets")) == made


def test_an_error_of_a_task_is_the_sentence_that_the_driver_would_raise(cluster, in_parts, tmp_path):
    template = tiny.template(tiny.CHATML.replace("<|im_start|>assistant", "<|im_start|>bot"))
    dataset = tiny.write_preferences(tmp_path / "pairs", tiny.preferences(40))
    with pytest.raises(UserError, match=r"^the chat template of model \S* writes a generation prompt"):
        training_sets.kept(DPO(), template, dataset, None, 0, str(tmp_path / "sets"))
