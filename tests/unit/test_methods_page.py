"""docs/methods.md: its configurations are sound, and every method is on it."""

import re
from pathlib import Path

import pytest

from pipeline.config import Config
from pipeline.config import load as load_config
from pipeline.prompts import load
from pipeline.registry import METHODS
from pipeline.settings import yaml_text
from pipeline.training.config import DPO

PAGE = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def read(text: str, tmp_path: Path) -> dict:
    (tmp_path / "block.yaml").write_text(text)
    return yaml_text.read(tmp_path / "block.yaml")


def configured(number: int, tmp_path: Path) -> Config:
    return Config.model_validate({"run_dir": "r", "model": {"path": "toy"}, **read(BLOCKS[number], tmp_path)})


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_on_the_page(name):
    assert f"| `{name}` |" in PAGE


def test_the_comparison_of_the_first_paper_is_one_configuration(tmp_path):
    config = configured(0, tmp_path)
    assert {name: (arm.train.method, arm.kinds) for name, arm in config.arms.items()}["dpo_on_source"] == (
        "dpo",
        ["source"],
    )
    assert {schema.name: list(made) for schema, made in config.training_sets().items()} == {
        "sft": ["mistakes", "revisions", "hindsight"],
        "preferences": ["revisions", "pairs"],
    }


def test_the_authors_chain_of_hindsight_trains_on_all_forms(tmp_path):
    config = configured(2, tmp_path)
    assert set(config.methods["hindsight"].kinds) == set(config.arms["chain_of_hindsight"].kinds)


def test_arms_of_sft_and_dpo_stand_side_by_side_in_course_correction(tmp_path):
    config = configured(1, tmp_path)
    assert {name: arm.train.method for name, arm in config.arms.items()} == {
        "dpo": "dpo",
        "recovery": "sft",
        "dpo_llamafactory": "dpo",
    }
    theirs, ours = config.arms["dpo_llamafactory"].train, config.arms["dpo"].train
    assert (theirs.learning_rate, theirs.epochs, theirs.batch_size) == (5e-6, 3, 8)
    assert theirs.lora == ours.lora and theirs.beta == ours.beta, "all linear layers, β 0.1"


def test_the_7b_configuration_has_the_same_variant(tmp_path):
    text = (Path(__file__).parents[2] / "configs" / "course_correction_7b.yaml").read_text()
    variant = re.search(r"^# arms:\n(?:#   .*\n)+", text, re.MULTILINE)
    tree = read(text + re.sub(r"^# ", "", variant[0], flags=re.MULTILINE), tmp_path)
    arms = Config.model_validate(tree).arms
    page = configured(1, tmp_path).arms["dpo_llamafactory"].train
    own = arms["dpo_llamafactory"].train
    same = ("beta", "learning_rate", "epochs", "schedule", "warmup", "batch_size", "max_length", "curriculum")
    assert {name: getattr(own, name) for name in same} == {name: getattr(page, name) for name in same}
    assert arms["dpo"].train == Config.model_validate(tree).train


def test_arms_are_asked_with_a_phrase_with_another_or_plainly(tmp_path):
    asks = configured(3, tmp_path).asks
    good = load("methods/chain_of_hindsight/prompts.yaml").lines("good")
    assert asks == {
        "asked": "{{ instruction }}\n\n" + good[0],
        "asked_otherwise": "{{ instruction }}\n\nWrite the harmless answer.",
    }


def test_every_ablation_is_a_setting(tmp_path):
    table = re.search(r"^\| question \| overrides .*?\n\n", PAGE, re.MULTILINE | re.DOTALL)[0]
    overrides = re.findall(r"`([\w.]+=[\w.]+)`", table)
    base = Path(__file__).parents[2] / "configs" / "mistake_analysis_7b.yaml"
    plain = load_config(base)
    assert len(overrides) == 9 and all(load_config(base, [one]) != plain for one in overrides)


def test_both_rounds_of_red_teaming_are_configurations(tmp_path):
    parts = [read(BLOCKS[number], tmp_path) for number in (4, 5)]
    server = {"engine": {"kind": "openai", "url": "http://127.0.0.1:1/v1", "model": "m"}}
    for part, models in zip(parts, ({"writer": server, "strong": server}, {}), strict=True):
        config = Config.model_validate({"run_dir": "r", "model": {"path": "toy"}, "models": models, **part})
        assert config.methods["red_team"].prompt_hashes() and config.stages == ["generate", "mix", "report"]


def test_the_curricula_are_settings_of_dpo():
    for settings in re.findall(r"\| `(curriculum: .*?)` \|", PAGE):
        DPO(
            **{
                key: int(value) if value.isdigit() else value
                for key, value in re.findall(r"(\w+): (\w+)", settings)
            }
        )
    assert len(BLOCKS) == 6 and PAGE.count("| `curriculum: ") == 5
