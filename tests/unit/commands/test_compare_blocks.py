"""What differs in two configurations, if one of them lacks a whole block."""

from pipeline.commands.compare import Compared, _differing
from pipeline.config import Config
from tests import scripted

REVISIONS = {
    "name": "critique_revise",
    "instructions": {"path": "toy:harmful-train"},
    "revise": {"max_tokens": 9},
}


def differing(*changes: dict) -> dict[str, list[str]]:
    trees = [scripted.tree("run") for _ in changes]
    for tree, change in zip(trees, changes, strict=True):
        for section, values in change.items():
            tree[section] = tree.get(section, {}) | values if isinstance(values, dict) else values
    return _differing([Compared(f"r{n}", f"r{n}", Config.model_validate(t)) for n, t in enumerate(trees)])


def test_a_method_that_one_run_lacks_is_one_line():
    found = differing({}, {"methods": {"revisions": REVISIONS}})
    assert [key for key in found if key.startswith("methods.")] == ["methods.revisions"]
    none, given = found["methods.revisions"]
    assert none == "(none)"
    assert given.startswith('{"name": "critique_revise", "instructions": {"path": "toy:harmful-train"}')


def test_its_arm_is_one_line_too():
    found = differing({}, {"methods": {"revisions": REVISIONS}})
    assert [key for key in found if key.startswith("arms.")] == ["arms.critique_revise"]


def test_a_suite_that_is_null_in_one_run_is_one_line():
    found = differing({}, {"suites": {"jailbreak": {"goals": {"path": "toy:harmful-heldout"}}}})
    assert list(found) == ["suites.jailbreak"]
    assert found["suites.jailbreak"][0] == "null" and "toy:harmful-heldout" in found["suites.jailbreak"][1]


def test_blocks_that_both_have_differ_by_their_single_settings():
    other = {**REVISIONS, "revise": {"max_tokens": 10}, "rounds": 2}
    found = differing({"methods": {"revisions": REVISIONS}}, {"methods": {"revisions": other}, "seed": 3})
    assert found == {
        "seed": ["0", "3"],
        "methods.revisions.rounds": ["1", "2"],
        "methods.revisions.revise.max_tokens": ["9", "10"],
    }


def test_a_block_of_defaults_alone_says_so():
    found = differing(
        {"methods": {"revisions": REVISIONS}}, {"methods": {"revisions": {**REVISIONS, "gates": None}}}
    )
    assert found == {"methods.revisions.gates": ["(defaults)", "null"]}
