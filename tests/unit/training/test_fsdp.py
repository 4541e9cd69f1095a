"""Weights that are split over the workers: what is refused before anything starts, and what it changes."""

import pytest
from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.training import arm, identity, workers
from tests import tiny


@pytest.mark.parametrize("count", [1, [1, 4]])
def test_one_worker_cannot_split_the_weights(count):
    with pytest.raises(ValidationError, match=r"workers = .* may be one: set workers to 2 or more, or fsdp"):
        tiny.config("unused", workers=count, fsdp=True)
    assert tiny.config("unused", workers=[2, 4], batch_size=12, fsdp=True).train.fsdp


def test_a_model_whose_layers_cannot_be_sharded_is_refused(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=400)).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lora = {"rank": 4, "target_modules": ["c_attn"]}
    whole, split = (
        tiny.spec(tiny.config(str(tmp_path), workers=2, fsdp=fsdp, lora=lora), "sft")
        for fsdp in (False, True)
    )
    arm.check_lora([whole])
    with pytest.raises(UserError, match=r"train.fsdp = true: GPT2LMHeadModel has no layers that"):
        arm.check_lora([split])


def test_arms_of_one_shape_are_checked_for_each_way_of_holding_them(tmp_path):
    """The check of the arm before does not stand for an arm that splits the weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=400)).save_pretrained(tmp_path)
    lora = {"rank": 4, "target_modules": ["c_attn"]}
    specs = [
        tiny.spec(tiny.config(str(tmp_path), workers=2, fsdp=fsdp, lora=lora), "sft")
        for fsdp in (False, True)
    ]
    with pytest.raises(UserError, match=r"train.fsdp = true"):
        arm.check_lora(specs)


def test_a_training_can_go_on_with_split_weights(tmp_path):
    """Like the number of workers, it changes the weights by rounding alone."""
    tiny.save(tmp_path)
    facts = [
        identity.facts_of(tiny.spec(tiny.config(str(tmp_path), workers=2, fsdp=fsdp), "sft"))
        for fsdp in (False, True)
    ]
    assert facts[0] == facts[1]


def test_the_allocator_of_gpus_grows_its_segments(monkeypatch):
    for name in workers._ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    assert workers.worker_environment(True)["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    assert "PYTORCH_CUDA_ALLOC_CONF" not in workers.worker_environment(False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync")
    assert "PYTORCH_CUDA_ALLOC_CONF" not in workers.worker_environment(True), "the user's is kept"
