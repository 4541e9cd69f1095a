"""Direct preference optimisation: what is computed once is what TRL computes pair by pair; order, reference,
metrics."""

import pyarrow.parquet as pq
import pytest
import torch

from pipeline.data.dataset import Dataset
from pipeline.training import attention, dpo
from pipeline.training.job import Job, write_table
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("dpo")
    tiny.save(root / "model", initializer_range=0.3)  # so that logits are not all alike
    tiny.write_preferences(root / "pairs", tiny.preferences(6))
    return root


def job(place, name: str, number: int = 1, **train) -> Job:
    """The job of a run on 90 pairs, with its tables written."""
    config = tiny.config(
        str(place / "model"),
        **{"method": "dpo", "batch_size": 8, "pairs_per_device": 4, "epochs": 0.2} | train,
    )
    made = tiny.prepared(config, "dpo", Dataset.at(str(place / "pairs")))
    for table, content in made.tables.items():
        write_table(content, str(place / name / f"{table}.parquet"))
    return tiny.job(config, "dpo", str(place / name), number, made.runs[number - 1], name)


def build(place, name: str, **train) -> dpo.SharedPrefixTrainer:
    return dpo.build(job(place, name, **train), str(place / name))


def randomise(model, seed: int) -> None:
    """Give every LoRA matrix values of its own; B starts at zero, and would hide the gradient of A."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()


def gradients(model) -> dict[str, torch.Tensor]:
    return {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None and ".default." in name
    }


@pytest.fixture(scope="module")
def of_trl(place):
    """TRL's own loss and gradients of the first 20 pairs, in float64: the policy an adapter with random
    matrices, the reference the base."""
    import datasets
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from pipeline.training.adapter import lora_config

    config = tiny.config(str(place / "model"), method="dpo")
    rows = sorted(
        tiny.preferences(6), key=lambda row: (row["group"], row["rank_chosen"], row["rank_rejected"])
    )
    trainer = DPOTrainer(
        model=tiny.model(initializer_range=0.3).double(),
        args=DPOConfig(
            output_dir=str(place / "trl"),
            beta=0.1,
            bf16=False,
            use_cpu=True,
            report_to="none",
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(
            [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows[:20]]
        ),
        processing_class=AutoTokenizer.from_pretrained(place / "model"),
        peft_config=lora_config(config.arms["dpo"].train, None),
    )
    trainer.model.double()
    randomise(trainer.model, 1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(20)])
    # ChatML's newline after the end of the turn: TRL trains on it, we do not, so it is masked here.
    newline = tiny.tokenizer().encode("\n")[0]
    last = batch["completion_mask"] * torch.arange(batch["input_ids"].shape[1])
    at = last.argmax(1)
    assert (batch["input_ids"][range(40), at] == newline).all()
    batch["completion_mask"][range(40), at] = 0
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return (
        loss.item(),
        gradients(trainer.model),
        {name: values[0] for name, values in trainer._metrics["train"].items()},
    )


@pytest.mark.parametrize(("micro_batches", "as_on_a_gpu"), [(1, False), (3, False), (3, True)])
def test_loss_gradients_and_rewards_equal_trls(place, of_trl, monkeypatch, micro_batches, as_on_a_gpu):
    if as_on_a_gpu:
        monkeypatch.setattr(attention, "_sequence_by_sequence", attention._padded)
    name = f"equal-{micro_batches}-{as_on_a_gpu}"
    trainer = build(place, name, batch_size=20, pairs_per_device=20)
    trainer.model.double()
    for members in (
        list(range(45)),
        list(range(45, 90)),
    ):  # the reference in float64 too; a fresh LoRA is the base model
        values = torch.tensor(trainer.log_probs_of(members), dtype=torch.float64)
        trainer.data_collator.reference[:, members] = values[:, 1:].T
    randomise(trainer.model, 1)
    trainer.model.train()
    loss = 0
    for members in torch.arange(20).tensor_split(micro_batches):
        part = trainer.compute_loss(trainer.model, trainer.data_collator.batch(members.tolist()))
        part.backward()
        loss += part.item()
    expected, expected_gradients, metrics = of_trl
    found = trainer.interval(1.0)
    assert loss == pytest.approx(expected, rel=1e-6)  # TRL computes logits in float32 whatever the model
    assert abs(loss - 0.6931) > 0.01
    assert gradients(trainer.model).keys() == expected_gradients.keys() and len(expected_gradients) == 28
    for name, gradient in gradients(trainer.model).items():
        torch.testing.assert_close(
            gradient, expected_gradients[name], rtol=1e-4, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
    # TRL's rewards count the shared part too: margins are the same, both sides are not.
    assert found["rewards/margins"] == pytest.approx(metrics["rewards/margins"], rel=1e-6)
    assert found["rewards/accuracies"] == pytest.approx(metrics["rewards/accuracies"])
    assert found["pairs_per_s"] == 20


def test_a_trainers_process_does_without_cudnns_attention(place):
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        build(place, "kernels")
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_a_micro_batch_computes_every_prefix_once_and_logits_only_where_there_is_loss(place):
    trainer = build(place, "row")
    collator = trainer.data_collator
    batch = collator.batch(list(range(15)))
    sequences = {tuple(collator.response(r).tolist()) for r in collator.chosen[:15] + collator.rejected[:15]}
    assert len(sequences) == 6
    distinct = {s[: i + 1] for s in sequences for i in range(len(s))}
    assert batch["input_ids"].numel() == len(distinct) < sum(map(len, sequences))
    # In all pairs together, loss is on every token that only some of the six have: prompt and template carry
    # none.
    bearing = {prefix for prefix in distinct if not all(s[: len(prefix)] == prefix for s in sequences)}
    assert len(batch["target"]) == len(bearing)
    assert len(batch["at"]) == len(bearing)
    assert len(set(batch["at"].tolist())) == len({prefix[:-1] for prefix in bearing})


def test_the_reference_is_computed_once(place, monkeypatch):
    first = build(place, "once").data_collator.reference
    kept = pq.read_table(place / "once" / "reference-1.parquet")
    assert kept["ref_chosen"].to_pylist() == first[0].tolist() and kept.num_rows == 90
    assert (first < 0).all() and (first[0] != first[1]).any()
    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", lambda *_: pytest.fail("computed again"))
    again = build(place, "once").data_collator.reference
    assert torch.equal(again, first)


def trained(place, name: str, **train) -> tuple[dict[str, torch.Tensor], list[dict]]:
    trainer = build(place, name, epochs=0.25, log_steps=1, learning_rate=1e-2, **train)
    trainer.start_clock()
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return weights, [line for line in trainer.state.log_history if "loss" in line]


def test_micro_steps_change_nothing(place):
    """Three steps of 8 pairs, all at once and one at a time: the same weights, and the same log lines."""
    whole, lines = trained(place, "whole", pairs_per_device=8)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[0]["loss"] > lines[-1]["loss"] and lines[-1]["rewards/margins"] > 0.01
    assert lines[-1]["rewards/margins"] == pytest.approx(
        lines[-1]["rewards/chosen"] - lines[-1]["rewards/rejected"], abs=1e-6
    )
    weights, parts = trained(place, "single", pairs_per_device=1)
    for key in ("loss", "rewards/chosen", "rewards/margins"):
        assert [line[key] for line in parts] == pytest.approx(
            [line[key] for line in lines], rel=1e-3, abs=1e-5
        ), key
    # Before the first step policy and reference are equal but for rounding, which decides the accuracy
    # there.
    assert [line["rewards/accuracies"] for line in parts[1:]] == [
        line["rewards/accuracies"] for line in lines[1:]
    ]
    assert parts[-1]["tokens"] > lines[-1]["tokens"]  # what micro-steps share is computed in each
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, whole[name], rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_staged_runs_are_one_per_falling_gap(place):
    config = tiny.config("unused", method="dpo", curriculum="staged")
    runs = tiny.prepared(config, "dpo", Dataset.at(str(place / "pairs"))).runs
    assert [(run.gap, run.items) for run in runs] == [(5, 6), (4, 12), (3, 18), (2, 24), (1, 30)]
    trainer = dpo.build(job(place, "second", 2, curriculum="staged", epochs=1), str(place / "second"))
    assert pq.read_table(place / "second" / "reference-2.parquet")["gap"].to_pylist() == [4] * 12
    assert len(trainer.data_collator.chosen) == 12 and trainer.args.max_steps == 2
