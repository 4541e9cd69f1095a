"""docs/methods.md: its configurations are sound, and every method is on it."""

import re
from pathlib import Path

import pytest

from pipeline.config import METHODS, Config
from pipeline.prompts import load
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
    config = configured(1, tmp_path)
    assert set(config.methods["hindsight"].kinds) == set(config.arms["chain_of_hindsight"].kinds)


def test_the_prompt_file_is_one_for_the_safety_suite(tmp_path):
    (tmp_path / "asked.yaml").write_text(BLOCKS[2])
    texts = load("methods/mistake_analysis/prompts.yaml", str(tmp_path / "asked.yaml"))
    assert texts.texts["reminder"] in load("methods/chain_of_hindsight/prompts.yaml").lines("good")


def test_both_rounds_of_red_teaming_are_configurations(tmp_path):
    parts = [read(BLOCKS[number], tmp_path) for number in (3, 4)]
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
    assert len(BLOCKS) == 5 and PAGE.count("| `curriculum: ") == 5
