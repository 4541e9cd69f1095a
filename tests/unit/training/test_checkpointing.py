"""Recomputed activations: the gradients are those of kept ones."""

import pytest
import torch
from transformers import TrainerCallback

from pipeline.data.dataset import Dataset
from pipeline.training import dpo, sft
from pipeline.training.job import write_table
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpointing")
    tiny.save(root / "model", initializer_range=0.3)
    tiny.write(root / "sft", tiny.rows(12))
    tiny.write_preferences(root / "pairs", tiny.preferences(2))
    return root


def gradients(place, method: str, recomputed: bool) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of the first step, of one micro-batch, and how often a layer ran."""
    of_method = {"batch_size": 4, "pairs_per_device": 4} if method == "dpo" else {"batch_size": 1}
    config = tiny.config(
        str(place / "model"), method=method, gradient_checkpointing=recomputed, max_length=160, **of_method
    )
    arm, examples = ("dpo", "pairs") if method == "dpo" else ("sft", "sft")
    made = tiny.prepared(config, arm, Dataset.at(str(place / examples)))
    state = place / f"{method}-{recomputed}"
    for table, content in made.tables.items():
        write_table(content, str(state / f"{table}.parquet"))
    module = {"sft": sft, "dpo": dpo}[method]
    trainer = module.build(tiny.job(config, arm, str(state), 1, made.runs[0], "x"), str(state))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in trainer.model.named_parameters():
            if ".lora_" in name:
                parameter.normal_()
    calls, found = [], {}
    trainer.model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))

    class Note(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.update(
                (n, p.grad.clone()) for n, p in trainer.model.named_parameters() if p.grad is not None
            )

    trainer.add_callback(Note())
    trainer.args.max_steps = 1
    trainer.start_clock()
    trainer.train()
    return found, len(calls)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_gradients_are_equal(place, method):
    kept, once = gradients(place, method, recomputed=False)
    again, twice = gradients(place, method, recomputed=True)
    assert (once, twice) == (1, 2), "the layer was computed again"
    assert kept.keys() == again.keys() and len(kept) == 28
    for name, gradient in kept.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(
            again[name], gradient, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
