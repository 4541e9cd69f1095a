"""What an arm needs to fit its GPUs, it needs while it is trained further, too."""

import pytest

from pipeline import placement, preflight
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from tests import scripted

OWN = {
    "sft": {"kinds": ["helpful", "safe"], "train": {"fsdp": True, "workers": 4, "use_gpu": True}},
    "mistakes": {"kinds": ["helpful", "analysis"], "train": {"load_in_4bit": True, "max_length": 512}},
}
FURTHER = {"data": {"path": "toy:helpful-train"}, "steps": [0, 5]}


def config(durability: dict | None = None, arms: dict | None = None, **changes):
    return scripted.config(
        "/runs/mine",
        mix={"helpful": {"path": "toy:helpful-train"}},
        arms=arms or OWN,
        durability=FURTHER | (durability or {}),
        **changes,
    )


def test_each_is_trained_further_on_its_arm_s_workers():
    specs = preflight.further_specs(config(), "toy", {})
    found = {
        name: (one.train.fsdp, one.train.workers, one.train.use_gpu, one.train.load_in_4bit)
        for name, one in specs.items()
    }
    assert found == {
        "vanilla_after_5": (False, 1, False, False),
        "sft_after_5": (True, 4, True, False),
        "mistakes_after_5": (False, 1, False, True),
    }
    assert {one.train.max_length for one in specs.values()} == {1024}, "alike for all arms"


def test_the_cluster_has_to_have_room_for_all_of_them():
    needs = {need.stage: (need.least, need.gpus) for need in placement.needs(config(), ["train"])}
    assert needs == {"train sft, durability": (4, 1), "train mistakes, durability": (1, 0)}


def test_messages_name_the_field_that_decides():
    specs = preflight.further_specs(config(), "toy", {})
    sft, vanilla = specs["sft_after_5"].field, specs["vanilla_after_5"].field
    assert (sft("use_gpu"), sft("max_length")) == ("arms.sft.train.use_gpu", "train.max_length")
    assert (vanilla("fsdp"), vanilla("learning_rate")) == ("train.fsdp", "durability.learning_rate")


def test_only_what_changes_the_weights_makes_them_anew():
    plain = {name: {**arm, "train": {"use_gpu": name == "sft"}} for name, arm in OWN.items()}
    before, after = (fingerprints(config(arms=arms)) for arms in (plain, OWN))
    changed = {name for name in before if name.endswith("_after_5") and before[name] != after[name]}
    assert changed == {"adapter/mistakes_after_5"}, "4 bits, but neither workers nor shards"


def test_a_batch_that_the_arm_s_workers_cannot_share_is_refused():
    told = r"durability, with the workers of sft: batch_size = 6 cannot be shared by 4 workers"
    with pytest.raises(ValueError, match=told):
        config({"batch_size": 6})
    assert config({"batch_size": 6, "arms": ["vanilla", "mistakes"]}).further


def test_bitsandbytes_is_missed_for_vanilla_alone_too(monkeypatch):
    monkeypatch.setattr(preflight, "find_spec", lambda _name: None)
    whole = {name: {**arm, "train": {"load_in_4bit": False}} for name, arm in OWN.items()}
    given = {"arms": whole, "train": {"load_in_4bit": True}}
    with pytest.raises(UserError, match=r"^train\.load_in_4bit = true: bitsandbytes is not installed"):
        preflight.check_build(config(**given), {"train"})
    preflight.check_build(config({"arms": ["sft"]}, **given), {"train"})
    preflight.check_build(config(**given), {"generate"})
