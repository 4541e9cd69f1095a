"""The loss of DPO against numbers from a calculator: −ln σ(β · (gain of chosen − gain of rejected))."""

from types import SimpleNamespace

import pytest
import torch

from pipeline.training import dpo


@pytest.mark.parametrize(("difference", "expected"), [(3, 0.554355), (0, 0.693147), (-3, 0.854355)])
def test_the_loss_of_a_pair_at_beta_0_1(monkeypatch, difference, expected):
    """The chosen response gains as much over the reference as the rejected one, plus the difference."""
    policy = torch.tensor([[-20.0 + 1.5 + difference], [-30.0 + 1.5]])
    monkeypatch.setattr(dpo, "log_probs", lambda *_: policy)
    trainer = SimpleNamespace(
        beta=0.1, _head=None, _sums=torch.zeros(5, dtype=torch.float64), pairs_per_step=1,
        accelerator=SimpleNamespace(num_processes=1),
    )  # fmt: skip
    batch = {"reference": torch.tensor([[-20.0], [-30.0]]), "input_ids": torch.zeros(1, 7)}
    loss = dpo.SharedPrefixTrainer.compute_loss(trainer, None, batch)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert trainer._sums[4] == (difference > 0), "a tie is in no right order"
