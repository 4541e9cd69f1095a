"""The first paper's comparison: its configuration and the toy twin have the same arms and suites."""

import re
from pathlib import Path

import pytest

from pipeline.config import Config, load
from pipeline.settings import yaml_text

ROOT = Path(__file__).parents[2]
ARMS = ["sft", "critique_revise", "chain_of_hindsight", "dpo_on_source", "mistake_analysis"]
FILES = {name: ROOT / "configs" / f"{name}.yaml" for name in ("paper_table", "paper_table_toy")}


@pytest.fixture(params=FILES, ids=FILES)
def config(request) -> Config:
    return load(FILES[request.param])


def test_all_arms_of_the_paper_are_trained(config):
    assert list(config.arms) == ARMS
    assert {name: arm.train.method for name, arm in config.arms.items()} == {
        **dict.fromkeys(ARMS, "sft"),
        "dpo_on_source": "dpo",
    }


def test_chain_of_hindsight_alone_is_asked_with_a_phrase(config):
    asked = {name for name, arm in config.arms.items() if arm.ask}
    assert asked == {"chain_of_hindsight"}


def test_every_arm_is_measured_plainly_and_with_the_reminder(config):
    suites = config.suites
    assert list(suites.items()) == ["safety", "borderline", "goal_hijacking"]
    assert suites.safety.conditions == suites.goal_hijacking.conditions == ["plain", "reminder"]
    assert suites.safety.harmless.kind == "rating" and suites.safety.help and suites.safety.helpful
    assert suites.borderline.unsafe_categories


def test_methods_read_the_same_instructions(config):
    assert len({method.instructions for method in config.methods.values()}) == 1


def test_the_toy_has_what_the_large_one_has():
    large, toy = (load(path) for path in FILES.values())
    assert {name: arm.kinds for name, arm in large.arms.items()} == {
        name: arm.kinds for name, arm in toy.arms.items()
    }
    assert {name: method.name for name, method in large.methods.items()} == {
        name: method.name for name, method in toy.methods.items()
    }
    assert {len(arm.train.seeds) for arm in toy.arms.values()} == {3}


def test_the_judge_of_the_large_one_is_never_the_model_itself():
    large = load(FILES["paper_table"])
    judges = [judge for suite in large.suites.items().values() for judge, *_ in suite.judged()]
    judges += [judge for method in large.methods.values() for judge, *_ in method.judged()]
    assert {judge.asked for judge in judges if judge.most_tokens()} == {"strong"}
    assert not large.is_own_model("strong")


def test_utility_is_two_lines_away(tmp_path):
    text = FILES["paper_table"].read_text()
    block = re.search(r"^  # utility:.*\n  #   tasks: .*\n", text, re.MULTILINE)
    (tmp_path / "c.yaml").write_text(text.replace(block[0], re.sub(r"^  # ", "  ", block[0], flags=re.M)))
    assert yaml_text.read(tmp_path / "c.yaml")["suites"]["utility"]["tasks"]
