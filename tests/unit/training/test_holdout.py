"""What is held out of training: whole instructions, the same for every arm and seed; its loss, the checkpoint
that it chooses, and the stop that it causes, also of a training that was killed."""

import json
import math
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.training import arm, equal, examples, identity, loop
from pipeline.training.base import Train
from pipeline.training.config import SFT
from pipeline.training.job import HELD_OUT, HISTORY, write_table
from tests import scripted, tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("holdout")
    tiny.save(root / "model", initializer_range=0.3)
    rows = [row | {"instruction_id": f"i{number // 3}"} for number, row in enumerate(tiny.rows(90))]
    tiny.write(root / "sft", rows)
    pairs = [row | {"instruction_id": row["group"]} for row in tiny.preferences(10)]
    tiny.write_preferences(root / "pairs", pairs)
    return root


@pytest.fixture(scope="module")
def data(place):
    from pipeline.data.dataset import Dataset

    return {name: Dataset.at(str(place / name)) for name in ("sft", "pairs")}


def config(place, **train):
    defaults = {"batch_size": 2, "max_length": 160, "epochs": 1, "save_steps": 2, "log_steps": 1}
    return tiny.config(str(place / "model"), **defaults | train)


def prepared(place, data, arm="sft", seed=7, **train):
    made = config(place, **train)
    section = made.arms[arm]
    dataset = data["pairs" if arm == "dpo" else "sft"]
    return section.train.prepare(tiny.template(), dataset, section.kinds, seed)


# -- what is held out


def test_all_examples_of_an_instruction_are_held_out_together(data):
    rows = data["sft"].rows(["instruction_id"])
    sides = {row["instruction_id"]: examples.is_held_out(row["instruction_id"], 0.3) for row in rows}
    assert 3 <= sum(sides.values()) <= 16 and len(sides) == 30  # binomial, of 30


def test_arms_and_seeds_hold_out_the_same_instructions(place, data):
    def tokens(made) -> set:
        return {
            tuple(row["input_ids"][sum(row["seq_lengths"][:i]) :][:length])
            for row in made.tables[HELD_OUT].to_pylist()
            for i, length in enumerate(row["seq_lengths"])
        }

    one, other = (prepared(place, data, seed=seed, holdout=0.3) for seed in (7, 8))
    assert tokens(one) == tokens(other) and one.counts.held_out == len(tokens(one)) > 0
    both = prepared(place, data, "mistake_analysis", holdout=0.3)
    assert tokens(one) <= tokens(both)
    for made in (one, both):
        whole = prepared(place, data, "sft" if made is one else "mistake_analysis")
        assert made.counts.held_out + made.counts.kinds.total() == whole.counts.kinds.total()


def test_a_larger_share_holds_out_the_same_and_more():
    ids = [f"i{i}" for i in range(2000)]
    few, many = ({one for one in ids if examples.is_held_out(one, share)} for share in (0.05, 0.2))
    assert few < many and 70 < len(few) < 130 and 340 < len(many) < 460


def test_pairs_of_an_instruction_are_held_out_together(place, data):
    made = prepared(place, data, "dpo", method="dpo", holdout=0.3, pairs_per_device=2)
    groups = [set(made.tables[name]["group"].to_pylist()) for name in ("pairs", HELD_OUT)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 10
    assert made.counts.held_out == 15 * len(groups[1]) and made.counts.kinds.total() == 15 * len(groups[0])
    known = made.tables["responses"].num_rows
    assert all(max(made.tables[HELD_OUT][side].to_pylist()) < known for side in ("chosen", "rejected"))


@pytest.mark.parametrize("share, words", [(1e-9, "none of"), (1 - 1e-9, "all of")])
@pytest.mark.parametrize("arm, more", [("sft", {}), ("dpo", {"method": "dpo", "pairs_per_device": 2})])
def test_a_share_that_divides_nothing_is_one_sentence(place, data, share, words, arm, more):
    with pytest.raises(UserError, match=rf"train.holdout = .*: it holds out {words} \d+ examples"):
        prepared(place, data, arm, holdout=share, **more)


@pytest.mark.parametrize("setting", [{"keep": "best"}, {"patience": 2}])
def test_what_goes_by_the_holdout_needs_one(setting):
    with pytest.raises(ValueError, match="goes by the holdout loss: set holdout"):
        tiny.config("unused", **setting)


# -- nothing changes without it


def test_without_a_holdout_fingerprints_are_those_of_older_versions(place, data):
    assert SFT.model_fields.keys() >= Train.NEWER
    found = fingerprints(scripted.config())["adapter/sft"]["train"]
    assert not Train.NEWER & found.keys() and "merge" in found and "save_steps" not in found
    spec = tiny.spec(config(place), "sft")
    made = prepared(place, data)
    assert HELD_OUT not in made.tables
    assert not Train.NEWER & identity.facts_of(spec)["train"].keys()
    other = tiny.spec(config(place, holdout=0.3), "sft")
    assert identity.fingerprint(other, made.tables) != identity.fingerprint(spec, made.tables)


def test_the_steps_between_checkpoints_count_only_if_they_choose(place):
    def dumped(**train):
        return tiny.spec(config(place, **train), "sft").train.determines()

    assert dumped(save_steps=2, holdout=0.3) == dumped(save_steps=3, holdout=0.3)
    for chooses in ({"keep": "best"}, {"patience": 2}):
        assert dumped(save_steps=2, holdout=0.3, **chooses) != dumped(save_steps=3, holdout=0.3, **chooses)


def test_an_arm_that_may_stop_early_is_not_lengthened():
    train = tiny.config("unused", holdout=0.1).train
    assert equal.compared(train) is not None
    assert equal.compared(train.model_copy(update={"patience": 2})) is None


# -- the loss


def job(place, data, name: str, arm_name="sft", **train):
    made = config(place, **train)
    section = made.arms[arm_name]
    dataset = data["pairs" if arm_name == "dpo" else "sft"]
    ready = section.train.prepare(tiny.template(), dataset, section.kinds, made.seed)
    for table, content in ready.tables.items():
        write_table(content, str(place / name / f"{table}.parquet"))
    group = str(place / "groups" / name)
    return tiny.job(made, arm_name, str(place / name), 1, ready.runs[0], f"{arm_name}-0a1b", group=group)


DPO = {"method": "dpo", "batch_size": 8, "pairs_per_device": 4, "epochs": 0.25}


@pytest.mark.parametrize("arm_name, more", [("sft", {}), ("dpo", DPO)])
def test_the_loss_is_the_mean_over_what_is_held_out(place, data, arm_name, more):
    """For sft by transformers' own loss of each example alone; for dpo log 2, as nothing is learned yet."""
    from transformers import AutoModelForCausalLM

    one = job(place, data, f"loss-{arm_name}", arm_name, holdout=0.3, **more)
    trainer = one.train.build(one, str(place / "scratch"))
    trainer.model.train()
    found = trainer._holdout_loss()
    assert trainer.model.training
    if arm_name == "dpo":
        assert found == pytest.approx(math.log(2), abs=1e-6)
        return
    base = AutoModelForCausalLM.from_pretrained(place / "model")  # as a fresh adapter changes nothing
    total, count = 0.0, 0
    for row in one.table(HELD_OUT).to_pylist():
        at = 0
        for length in row["seq_lengths"]:
            ids, labels = (torch.tensor([row[name][at : at + length]]) for name in ("input_ids", "labels"))
            with torch.no_grad():
                loss = base(input_ids=ids, labels=labels).loss.item()
            number = int((labels[0, 1:] != examples.IGNORE).sum())
            total, count, at = total + loss * number, count + number, at + length
    assert found == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("parts", [1, 4, 5])
def test_workers_share_what_is_held_out_and_compute_equally_often(parts):
    """As weights may be split over them, none may go ahead; a part that is computed twice counts once."""
    losses = [(float(10 * part), part + 1) for part in range(parts)]

    def worker(rank: int, others: torch.Tensor) -> tuple[float, torch.Tensor, int]:
        sent, computed = [], []
        accelerator = SimpleNamespace(num_processes=2, process_index=rank)
        accelerator.reduce = lambda total, how: (sent.append(total.clone()), total + others)[1]
        model = torch.nn.Linear(1, 1)
        held_out_loss = lambda part: (computed.append(part), losses[part])[1]  # noqa: E731
        trainer = SimpleNamespace(
            accelerator=accelerator,
            model=model,
            args=SimpleNamespace(device="cpu"),
            held_out=list(range(parts)),
            held_out_loss=held_out_loss,
        )
        found = loop.Timed._holdout_loss(trainer)
        assert model.training
        return found, sent[0], len(computed)

    _, second, often = worker(1, torch.ones(2, dtype=torch.float64))
    found, _, as_often = worker(0, second)
    assert found == sum(loss for loss, _ in losses) / sum(count for _, count in losses)
    assert often == as_often


def lines(trainer) -> list[dict]:
    return [line for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("arm_name, more", [("sft", {}), ("dpo", DPO)])
def test_measuring_changes_no_weight(place, data, arm_name, more):
    """With dropout, which uses random numbers."""
    dropout = {"lora": {"rank": 4, "dropout": 0.2}}
    weights = []
    for name, measured in (("measured", True), ("not", False)):
        one = job(place, data, f"{name}-{arm_name}", arm_name, holdout=0.3, **dropout, **more)
        trainer = one.train.build(one, str(place / f"scratch-{name}-{arm_name}"))
        trainer.held_out = trainer.held_out if measured else []
        trainer.start_clock()
        trainer.train()
        weights.append([p.detach().clone() for p in trainer.model.parameters() if p.requires_grad])
        assert [line["step"] for line in lines(trainer) if "holdout_loss" in line] == (
            [line["step"] for line in lines(trainer) if line["step"] % 2 == 0 or line is lines(trainer)[-1]]
            if measured
            else []
        )
    assert all(map(torch.equal, *weights))


# -- the best checkpoint, and the stop


class Killed(Exception):
    pass


class Ray:
    """Ray Train in this process: keeps the newest checkpoint; `kill_at` ends the worker after that step."""

    def __init__(self, monkeypatch, root):
        self.root, self.kept, self.steps, self.kill_at = root, None, [], None
        monkeypatch.setattr(loop.ray.train, "report", self.report)
        monkeypatch.setattr(loop, "barrier", lambda: None)
        monkeypatch.setattr(loop, "_latest", self.latest)

    def report(self, metrics, checkpoint, checkpoint_dir_name):
        target = self.root / checkpoint_dir_name
        shutil.copytree(checkpoint.path, target, dirs_exist_ok=True)
        self.kept = str(target)
        self.steps.append(metrics["step"])
        if metrics["step"] == self.kill_at:
            self.kill_at = None
            raise Killed

    @contextmanager
    def latest(self, job):
        yield self.kept

    def train(self, job) -> list[dict]:
        context = SimpleNamespace(get_world_size=lambda: 1, get_world_rank=lambda: 0)
        loop._train(job, loop.BaseWeights(), context)
        with open(f"{job.finished}/{HISTORY}") as f:
            return [line for line in json.load(f)["log_history"] if "loss" in line]


@pytest.fixture
def worker(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return Ray(monkeypatch, tmp_path / "checkpoints")


def falling_then_rising(monkeypatch) -> None:
    """The holdout loss is lowest at step 4, and equal there at step 6: the first counts."""
    losses = {2: 2.0, 4: 1.0, 6: 1.0, 8: 1.5, 10: 1.75, 12: 1.25}
    monkeypatch.setattr(loop.Timed, "_holdout_loss", lambda self: losses.get(self.state.global_step, 3.0))


def matrices(directory) -> bytes:
    with open(f"{directory}/adapter_model.safetensors", "rb") as f:
        return f.read()


LONG = {"epochs": 2, "holdout": 0.3}


def test_the_best_checkpoints_adapter_is_kept(place, data, worker, monkeypatch):
    falling_then_rising(monkeypatch)
    at_four = {}
    original = worker.report

    def report(metrics, checkpoint, **more):
        at_four[metrics["step"]] = matrices(checkpoint.path)
        original(metrics, checkpoint, **more)

    monkeypatch.setattr(loop.ray.train, "report", report)
    one = job(place, data, "best", **LONG, keep="best")
    history = worker.train(one)
    assert history[-1]["step"] > 8
    assert matrices(one.finished) == at_four[4] != at_four[max(at_four)]


def test_a_killed_training_keeps_the_same_best_and_stops_at_the_same_step(place, data, worker, monkeypatch):
    """It is killed at the best, and when it has just stopped."""
    falling_then_rising(monkeypatch)
    settings = {**LONG, "keep": "best", "patience": 2, "lora": {"rank": 4, "dropout": 0.1}}
    whole = job(place, data, "whole", **settings)
    undisturbed = worker.train(whole)
    assert worker.steps == [2, 4, 6, 8] and undisturbed[-1]["step"] == 8
    for kill_at in (4, 8):
        worker.kept, worker.steps, worker.kill_at = None, [], kill_at
        again = job(place, data, f"again-{kill_at}", **settings)
        with pytest.raises(Killed):
            worker.train(again)
        resumed = worker.train(again)
        assert worker.steps == [2, 4, 6, 8]
        assert matrices(again.finished) == matrices(whole.finished)
        for key in ("step", "loss", "holdout_loss"):
            assert [line.get(key) for line in resumed] == [line.get(key) for line in undisturbed], key


def test_a_loss_that_is_no_number_is_never_the_best():
    history = [{"holdout_loss": loss} for loss in (math.nan, 2.0, 3.0, math.nan)]
    assert loop.since_best(history) == 2 and loop.since_best([]) == 0 and loop.since_best([{"loss": 1}]) == 0


def test_figures_are_those_of_the_kept_adapter():
    measured = [{"step": 2, "holdout_loss": 2.0}, {"step": 3}, {"step": 4, "holdout_loss": 3.0}]
    no_number = [{"step": 1, "holdout_loss": math.nan}, *measured]
    train = tiny.config("unused", holdout=0.1).train
    assert arm._held_out(train, 5, measured) == {"held_out": 5, "holdout_loss": 3.0, "kept_step": 4}
    best = train.model_copy(update={"keep": "best"})
    assert arm._held_out(best, 5, measured)["kept_step"] == 2
    assert arm._held_out(best, 5, no_number)["kept_step"] == 2
    stages = [replace_step | {"iteration": n} for n, replace_step in ((1, measured[0]), (2, measured[2]))]
    assert arm._held_out(best, 5, stages)["kept_step"] == 4, "of the last stage"
    assert arm._held_out(tiny.config("unused").train, 0, measured) == {}
