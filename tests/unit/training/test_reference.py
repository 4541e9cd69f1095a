"""The reference's pass: what an earlier start has kept is read, and not computed again."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.training import dpo, reference
from tests.unit.training.test_dpo import build, place, randomise  # noqa: F401  a fixture


def test_a_pass_that_was_killed_goes_on_where_it_was(place, monkeypatch):  # noqa: F811
    expected = build(place, "whole").data_collator.reference
    computed, log_probs_of = [], dpo.SharedPrefixTrainer.log_probs_of

    def dies_in_the_fourth(trainer, members):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(members)
        return log_probs_of(trainer, members)

    monkeypatch.setattr(reference, "KEEP_S", 0)
    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", dies_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        build(place, "killed")
    parts = place / "killed" / "reference-1"
    assert len(list(parts.glob("*.parquet"))) == 3
    (parts / "000000099.parquet.tmp").write_bytes(b"PAR1")  # a worker was killed while it wrote
    before = [pair for members in computed for pair in members]
    after = []

    def noted(trainer, members):
        after.extend(members)
        return log_probs_of(trainer, members)

    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", noted)
    found = build(place, "killed").data_collator.reference
    assert torch.equal(found, expected)
    assert sorted(before + after) == list(range(90)) and before and after
    assert not parts.exists() and (place / "killed" / "reference-1.parquet").exists()


def test_parts_for_other_micro_batches_are_used_as_far_as_they_go(place, monkeypatch):  # noqa: F811
    """A restart with other pairs_per_device computes the batches anew of which not every pair is known."""
    expected = build(place, "in_fours").data_collator.reference
    monkeypatch.setattr(reference, "KEEP_S", 0)
    calls, log_probs_of = [], dpo.SharedPrefixTrainer.log_probs_of

    def dies(trainer, members):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(members)
        return log_probs_of(trainer, members)

    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", dies)
    with pytest.raises(KeyboardInterrupt):
        build(place, "other")
    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", log_probs_of)
    found = build(place, "other", batch_size=40, pairs_per_device=20).data_collator.reference
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_its_progress_is_told(monkeypatch):
    told = []
    monkeypatch.setattr(reference, "KEEP_S", 0)
    monkeypatch.setattr(reference, "_keep", lambda *_: None)
    monkeypatch.setattr(reference, "gather_object", lambda entries: entries)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(process_index=0, num_processes=1),
        log_probs_of=lambda members: [(pair, -1.0, -2.0) for pair in members],
    )
    job = SimpleNamespace(
        name="dpo-1",
        run=SimpleNamespace(items=10),  # of which four were known before
        train=SimpleNamespace(fsdp=False),
        progress=SimpleNamespace(post=SimpleNamespace(remote=told.append)),
    )
    reference._computed(trainer, job, [[4, 5], [6, 7, 8, 9]], "unused", 10)
    assert told == [
        {"run": "dpo-1", "reference": 6, "pairs": 10},
        {"run": "dpo-1", "reference": 10, "pairs": 10},
    ]


def test_a_sharded_model_takes_all_workers_in_every_pass(monkeypatch):
    """The second of two workers has one batch less, and computes the last one with the first worker."""
    monkeypatch.setattr(reference, "gather_object", lambda entries: entries)
    for fsdp, expected in ((True, [[2], [4]]), (False, [[2]])):
        passes = []
        trainer = SimpleNamespace(
            accelerator=SimpleNamespace(process_index=1, num_processes=2),
            log_probs_of=lambda members, passes=passes: passes.append(members) or [(members[0], 0.0, 0.0)],
        )
        job = SimpleNamespace(train=SimpleNamespace(fsdp=fsdp))
        entries = reference._computed(trainer, job, [[0], [2], [4]], "unused", 6)
        assert passes == expected and entries == [(2, 0.0, 0.0)]


def test_a_fresh_adapter_is_left_out_of_the_pass_and_changes_nothing(place, monkeypatch):  # noqa: F811
    seen = []
    log_probs_of = dpo.SharedPrefixTrainer.log_probs_of

    def noted(trainer, members):
        seen.append(trainer.model.get_model_status().enabled)
        return log_probs_of(trainer, members)

    monkeypatch.setattr(dpo.SharedPrefixTrainer, "log_probs_of", noted)
    fresh = build(place, "without")
    without = fresh.data_collator.reference
    assert set(seen) == {False}
    seen.clear()
    monkeypatch.setattr(reference, "_adds_nothing", lambda model: False)
    trainer = build(place, "with")
    assert set(seen) == {True}
    assert torch.equal(trainer.data_collator.reference, without)
    monkeypatch.undo()
    assert reference._adds_nothing(trainer.model)
    randomise(trainer.model, seed=1)
    assert not reference._adds_nothing(trainer.model)
    assert fresh.model.get_model_status().enabled is True
    assert all(p.requires_grad for name, p in fresh.model.named_parameters() if ".lora_" in name)
