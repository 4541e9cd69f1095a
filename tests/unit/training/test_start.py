"""Adapters that training begins from: continued, or refused if that cannot be exact."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import Config
from pipeline.data import adapter as adapter_files
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.training import arm, identity, sft
from pipeline.training.job import Run, write_table
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("start")
    tiny.save(root / "model")
    tiny.adapter(root, "other", seed=1, r=6, lora_alpha=9, use_rslora=True)
    tiny.write(root / "sft", tiny.rows(12))
    return root


def config(place: Path, name: str = "other", **train):
    return tiny.config(str(place / "model"), start={"adapter": str(place / name)}, **train)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits


def published(place: Path, name: str):
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(place / name)


def test_training_begins_where_the_adapter_ended(place, tmp_path):
    """Before the first step the model is base + adapter; the adapter's matrices are trained; switched off,
    the base is left."""
    config_ = config(place)
    made = tiny.prepared(config_, "sft", Dataset.at(str(place / "sft")))
    for name, table in made.tables.items():
        write_table(table, str(tmp_path / f"{name}.parquet"))
    [job] = arm._jobs(tiny.spec(config_, "sft"), str(tmp_path), made.runs)
    model = sft.build(job, str(tmp_path)).model.eval()
    model.set_attn_implementation("eager")
    expected = logits(published(place, "other"))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-5)
    trained = {p.shape[0] for name, p in model.named_parameters() if p.requires_grad and "lora_A" in name}
    assert trained == {6}
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(tiny.model()), rtol=1e-4, atol=1e-5)
    model.save_pretrained(tmp_path / "saved")
    assert sorted(os.listdir(tmp_path / "saved")) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_its_size_is_known_before_training(place):
    fresh = arm.check(tiny.spec(tiny.config(str(place / "model"), lora={"rank": 4}), "sft"))
    assert arm.check(tiny.spec(config(place), "sft")) * 4 == fresh * 6
    assert "lora is not used" in arm._notice(config(place).arms["sft"].train, 7)


def test_stacking_is_answered_with_the_other_way(place):
    start = {"adapter": str(place / "other"), "how": "stack"}
    with pytest.raises(ValueError, match="is not possible: leave how out"):
        tiny.config(str(place / "model"), start=start)


UNFIT = {
    "no adapter_config.json; name the directory": (None, {}),
    "lora_magnitude_vector|use_dora makes it more than plain LoRA": ("dora", {"use_dora": True}),
    "rank_pattern makes it more": ("patterned", {"rank_pattern": {"q_proj": 2}}),
    "init_lora_weights makes it more": ("pissa", {"init_lora_weights": "pissa"}),
}


@pytest.mark.parametrize(("sentence", "case"), UNFIT.items())
def test_what_cannot_be_begun_from_is_refused(place, sentence, case):
    name, settings = case
    if name is not None:
        tiny.adapter(place, name, 0, **settings)
    with pytest.raises(UserError, match=rf"train\.start\.adapter = .*({sentence})"):
        arm.check_lora([tiny.spec(config(place, name or "nowhere"), "sft")])


def test_an_adapter_of_another_model_is_refused(place, tmp_path):
    tiny.save(tmp_path / "wide")
    tiny.model(hidden_size=64).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="does not fit the model"):
        arm.check_lora([replace(tiny.spec(config(place), "sft"), model_dir=str(tmp_path / "wide"))])


def test_every_distinct_training_is_checked_and_no_other(place, monkeypatch):
    checked = []
    monkeypatch.setattr(arm, "check", lambda spec: checked.append(spec.name))
    tree = tiny.config(str(place / "model")).model_dump(mode="json", exclude={"arms"})
    arms = {
        "a": {"kinds": ["safe"]},
        "b": {"kinds": ["analysis"]},
        "c": {"kinds": ["safe"], "train": {"lora": {"rank": 2}}},
    }
    config_ = Config.model_validate({**tree, "arms": arms})
    arm.check_lora(tiny.spec(config_, name) for name in arms)
    assert checked == ["a", "c"]


def test_the_adapters_content_belongs_to_the_fingerprint(place):
    names = []
    for seed in (1, 2, 1):
        tiny.adapter(place, "mine", seed)
        names.append(identity.fingerprint(tiny.spec(config(place, "mine"), "sft"), {}))
    assert names[0] == names[2] != names[1]


def test_every_run_begins_from_the_one_before(place, tmp_path):
    config_ = config(place, method="dpo", curriculum="staged")
    runs = [Run(6, 5), Run(12, 4), Run(18, 3)]
    jobs = arm._chained(arm._jobs(tiny.spec(config_, "dpo"), str(tmp_path), runs))
    begun = str(tmp_path / "start")
    assert [job.start for job in jobs] == [begun, jobs[0].finished, jobs[1].finished]
    assert adapter_files.is_whole(begun)
    adapter_files.copy(str(place / "other"), jobs[0].done)  # the driver has kept the first one
    assert [job.start for job in arm._chained(jobs)] == [begun, jobs[0].done, jobs[1].finished]
    assert [job.run for job in jobs] == runs and len({job.name for job in jobs}) == 3
    first, second = (
        arm._numbering(jobs, job, before)
        for job, before in ((jobs[0], []), (jobs[1], [{"step": 1, "tokens": 50}]))
    )
    assert first({"step": 1, "tokens": 50}) == {"step": 1, "steps": 3, "tokens": 50, "iteration": 1}
    assert second({"step": 1, "tokens": 20}) == {"step": 2, "steps": 3, "tokens": 70, "iteration": 2}


def test_lm_head_is_refused_before_trl_refuses_it(place):
    with pytest.raises(UserError, match=r"train.lora.target_modules = .*lm_head.*leave lm_head out"):
        arm.check_lora(
            [
                tiny.spec(
                    tiny.config(str(place / "model"), method="dpo", lora={"target_modules": ["lm_head"]}),
                    "dpo",
                )
            ]
        )
