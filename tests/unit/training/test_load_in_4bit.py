"""Training an adapter on a base in 4 bits: it learns, both trainers take it, and nothing else changes."""

from importlib.util import find_spec

import pytest
import torch
from pydantic import ValidationError

from pipeline import preflight
from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.training.job import write_table
from pipeline.training.loop import BaseWeights
from tests import scripted, tiny

with_library = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="pip install 'setbacks[qlora]'")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("nf4")
    tiny.save(root / "model", hidden_size=64, intermediate_size=128)
    tiny.write(root / "rows", tiny.rows(12))
    tiny.write_preferences(root / "pairs", tiny.preferences(2))
    return root


def trained(place, arm: str, rows: str, **train):
    """A trainer after its training, its losses, and the base weights before and after."""
    config = tiny.config(str(place / "model"), **{"load_in_4bit": True, "learning_rate": 1e-2} | train)
    name = f"{arm}-{config.arms[arm].train.load_in_4bit}"
    made = tiny.prepared(config, arm, Dataset.at(str(place / rows)))
    for table, content in made.tables.items():
        write_table(content, str(place / name / f"{table}.parquet"))
    job = tiny.job(config, arm, str(place / name), 1, made.runs[0], name)
    base = BaseWeights()
    trainer = config.arms[arm].train.build(job, str(place / f"{name}-out"), base=base)
    before = {key: p.clone() for key, p in trainer.model.named_parameters() if not p.requires_grad}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return trainer, losses, before


SETTINGS = {
    "sft": ("rows", {"epochs": 8, "batch_size": 1, "max_length": 512, "log_steps": 1}),
    "dpo": (
        "pairs",
        {"method": "dpo", "learning_rate": 3e-3, "epochs": 4, "batch_size": 15, "pairs_per_device": 15, "gradient_checkpointing": True, "log_steps": 1},
    ),
}  # fmt: skip


@with_library
@pytest.mark.parametrize("arm", SETTINGS)
def test_an_adapter_learns_as_on_the_base_in_full(place, arm):
    rows, settings = SETTINGS[arm]
    trainer, losses, before = trained(place, arm, rows, **settings)
    linear = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert type(linear).__name__ == "Linear4bit" and linear.weight.dtype == torch.uint8
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    states = [state for kept in trainer.optimizer.state.values() for state in kept.values()]
    assert len(states) > 2 and {state.dtype for state in states} == {torch.float32}
    after = dict(trainer.model.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    _, in_full, _ = trained(place, arm, rows, **settings, load_in_4bit=False)
    print(f"{arm}: {[round(one, 3) for one in losses]}, in full {[round(one, 3) for one in in_full]}")
    assert losses == pytest.approx(in_full, rel=0.1)
    assert min(losses) < 0.95 * losses[0]


@with_library
def test_small_updates_are_not_lost(place):
    """In bfloat16, most weights of an adapter would round a step of 2e-5 away."""
    rows, settings = SETTINGS["sft"]
    small = settings | {
        "learning_rate": 2e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "lora": {"dropout": 0.0},
    }
    trainer, losses, _ = trained(place, "sft", rows, **small)
    begun, _, _ = trained(place, "sft", rows, **small | {"epochs": 1, "learning_rate": 1e-12})
    first = dict(begun.model.named_parameters())
    matrices = [(first[name], p) for name, p in trainer.model.named_parameters() if "lora_A" in name]
    moved = sum((before != after).sum().item() for before, after in matrices)
    share = moved / sum(after.numel() for _, after in matrices)
    print(f"{share:.1%} of A moved; losses {losses[0]:.4f} … {losses[-1]:.4f}")
    assert share > 0.99


@with_library
def test_gradients_are_those_of_the_rounded_weights(place):
    """Also after a pass in evaluation, as DPO's reference is: there, bitsandbytes repacks weights."""
    import bitsandbytes
    from peft import LoraConfig, get_peft_model

    settings = {"dtype": "bfloat16", "attention": "sdpa"}
    ids = torch.arange(5, 45)[None]

    def gradients(base):
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        with torch.no_grad():
            model.eval()(input_ids=ids)
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(input_ids=ids, labels=ids).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).float()

    rounded = BaseWeights().load(str(place / "model"), None, **settings)
    packed = BaseWeights().load(str(place / "model"), None, **settings, load_in_4bit=True)
    for name, part in packed.named_modules():
        if isinstance(part, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(part.weight.data, part.weight.quant_state)
            rounded.get_submodule(name).weight.data = weight.to(torch.bfloat16)
    exact, found = gradients(rounded), gradients(packed)
    assert torch.linalg.norm(found - exact) < 0.02 * torch.linalg.norm(exact)


@with_library
def test_runs_of_a_worker_share_the_base_in_4_bits(place):
    base = BaseWeights()
    settings = {"dtype": "float32", "attention": "sdpa", "load_in_4bit": True}
    first, second = (base.load(str(place / "model"), None, **settings) for _ in range(2))
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(first(ids).logits, second(ids).logits)
    weights = [m.model.layers[0].mlp.up_proj.weight.data_ptr() for m in (first, second)]
    assert weights[0] == weights[1]
    plain = base.load(str(place / "model"), None, dtype="float32", attention="sdpa")
    with torch.no_grad():
        assert not torch.equal(first(ids).logits, plain(ids).logits), "4 bits are not exact"


def test_finished_adapters_keep_their_fingerprints():
    plain, off = scripted.config(), scripted.config(train={"load_in_4bit": False})
    assert fingerprints(plain) == fingerprints(off)
    found = fingerprints(plain)["adapter/sft"]["train"]
    assert "load_in_4bit" not in found
    changed = fingerprints(scripted.config(train={"load_in_4bit": True}))["adapter/sft"]["train"]
    assert changed == {**found, "load_in_4bit": True}
    dumped = scripted.config(train={"load_in_4bit": True}).model_dump(mode="json")
    assert Config.model_validate(dumped).train.load_in_4bit is True


def test_without_bitsandbytes_it_is_refused(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^train.load_in_4bit = true: bitsandbytes is not installed; .*qlora"
    ):
        preflight.check_build(scripted.config(train={"load_in_4bit": True}), {"train"})
    preflight.check_build(scripted.config(), {"train"})


def test_weights_in_4_bits_are_not_split_over_workers():
    with pytest.raises(ValidationError, match="load_in_4bit and fsdp are both true"):
        scripted.config(train={"load_in_4bit": True, "fsdp": True, "workers": 2})
