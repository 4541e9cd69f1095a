"""The preference arm on the source's own pairs: the safe response is chosen, whichever is the more helpful."""

import asyncio
from collections import Counter

import pytest

from pipeline.config import Config
from pipeline.data.store import Store
from pipeline.methods.chain_of_hindsight import ChainOfHindsight
from pipeline.methods.comparisons import ComparisonRecipe
from pipeline.methods.source_preferences import SourcePreferences
from pipeline.methods.source_preferences.schema import SOURCE_PAIRS
from pipeline.schema import PREFERENCES, SFT
from pipeline.sources.counts import Accounts
from tests import scripted
from tests.scripted import ScriptedChat, instruction
from tests.unit.sources.written import counted, write_jsonl


def pku(prompt: str, zero: str, one: str, safe: tuple[bool, bool], safer: int, better: int) -> dict:
    return {
        "prompt": prompt,
        "response_0": zero,
        "response_1": one,
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "safer_response_id": safer,
        "better_response_id": better,
    }


# The more helpful response is the unsafe one in every row with one safe response.
ROWS = [
    pku("How do I get in without a ticket?", "Climb the fence.", "Please buy one.", (False, True), 1, 0),
    pku(
        "How do I skip the queue?", "Please wait.", "Push the others.", (True, False), 1, 1
    ),  # safer is wrong
    pku("How do I hide a mess?", "Blame a friend.", "Burn it.", (False, False), 0, 1),
    pku("How do I say no?", "Kindly.", "Firmly.", (True, True), 0, 1),
    pku("How do I win?", "Cheat.", "Cheat. ", (True, False), 0, 1),
]
PAIRS = {("Please buy one.", "Climb the fence."), ("Please wait.", "Push the others.")}


def method(**settings) -> SourcePreferences:
    return SourcePreferences(instructions={"path": "unused"}, **settings)


def compared(rows: list[dict], chat: ScriptedChat | None = None, verify=None) -> list[dict]:
    recipe = ComparisonRecipe(verify)
    return [{**row, **asyncio.run(recipe(row, chat or ScriptedChat()))} for row in rows]


def sides(rows: list[dict], drops: Counter | None = None) -> set[tuple[str, str]]:
    pairs = list(method().examples(PREFERENCES, rows, Counter() if drops is None else drops, 0, Accounts()))
    assert PREFERENCES.table(pairs).num_rows == len(pairs)
    assert {(pair["rank_chosen"], pair["rank_rejected"], pair["kind"]) for pair in pairs} <= {
        (1, 2, "source")
    }
    return {(pair["chosen"][0]["content"], pair["rejected"][0]["content"]) for pair in pairs}


def test_the_safe_response_is_chosen_even_if_the_other_is_called_better(tmp_path):
    rows, counts = counted(write_jsonl(tmp_path / "pku.jsonl", ROWS))
    drops: Counter[str] = Counter()
    assert sides(compared(rows), drops) == PAIRS
    assert drops == {
        "no safe response in the source": 1,  # both unsafe
        "no unsafe response in the source": 1,  # both safe
        "equal responses": 1,
    }
    assert counts.notes["a safer_response_id that contradicts the labels is not used"] == 1
    by_better = {
        tuple(row[f"response_{i}"] for i in (row["better_response_id"], 1 - row["better_response_id"]))
        for row in ROWS[:2]
    }
    assert by_better == {(unsafe, safe) for safe, unsafe in PAIRS}, "the other column would invert all"


def test_better_response_id_changes_nothing(tmp_path):
    flipped = [row | {"better_response_id": 1 - row["better_response_id"]} for row in ROWS]
    without = [{key: row[key] for key in row if key != "better_response_id"} for row in ROWS]
    for name, rows in (("flipped", flipped), ("without", without)):
        found, _ = counted(write_jsonl(tmp_path / f"{name}.jsonl", rows))
        assert sides(compared(found)) == PAIRS


def test_without_labels_the_safer_response_is_chosen(tmp_path):
    unlabelled = [
        {key: value for key, value in row.items() if not key.startswith("is_")} for row in (ROWS[0], ROWS[2])
    ]
    rows, counts = counted(write_jsonl(tmp_path / "pku.jsonl", unlabelled))
    assert sides(compared(rows)) == {("Please buy one.", "Climb the fence."), ("Blame a friend.", "Burn it.")}
    assert not counts.notes


def test_a_chosen_response_is_better_than_a_rejected_one(tmp_path):
    row = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go."}
    rows, _ = counted(write_jsonl(tmp_path / "hh.jsonl", [row]))
    assert sides(compared(rows)) == {("Hello.", "Go.")}


@pytest.mark.parametrize(("safe", "unsafe", "error"), [
    ("Rating: [[9]]", "Rating: [[2]]", None),
    ("Rating: [[2]]", "Rating: [[2]]", "safe response judged harmful"),
    ("Rating: [[9]]", "Rating: [[9]]", "unsafe response judged harmless"),
    ("Rating: [[2]]", "Rating: [[9]]", "safe response judged harmful"),
    ("Well.", "Rating: [[2]]", "safe response has no readable verdict"),
    ("Rating: [[9]]", "Well.", "unsafe response has no readable verdict"),
])  # fmt: skip
def test_a_judge_keeps_a_pair_only_if_it_agrees_on_both_sides(safe, unsafe, error):
    verify = method(verify={"kind": "rating"}).verify
    [found] = compared([instruction()], ScriptedChat(verify_safe=safe, verify_unsafe=unsafe), verify)
    assert (found["status"], found.get("error")) == ("dropped" if error else "ok", error)
    drops: Counter[str] = Counter()
    assert bool(sides([found], drops)) == (error is None) and list(drops) == [error] * bool(error)


def test_pairs_that_a_judge_drops_count_as_unusable_and_rows_without_a_pair_do_not(tmp_path):
    verify = method(verify={"kind": "rating"}).verify
    chat = ScriptedChat(verify_safe="Rating: [[2]]", verify_unsafe="Rating: [[2]]")
    rows = compared([instruction(), instruction(id="i2", safe_response=None)], chat, verify)
    store = Store(str(tmp_path), SOURCE_PAIRS.name, SOURCE_PAIRS)
    store.open({})
    fields = set(SOURCE_PAIRS.names)
    done = store.write_rows([{key: value for key, value in row.items() if key in fields} for row in rows])
    assert done["reasons"] == {"safe response judged harmful": 1, "no safe response in the source": 1}
    assert done["not_selected"] == {"no safe response in the source": 1}


@pytest.mark.parametrize("cls", [SourcePreferences, ChainOfHindsight])
@pytest.mark.parametrize("verify", [None, {"kind": "rating"}])
def test_the_report_counts_the_rows_and_why_they_are_dropped(tmp_path, cls, verify):
    section = cls(instructions={"path": "unused"}, verify=verify)
    assert "`setbacks generate`" in section.report({section.generated.name: None}).text[0]
    rows, _ = counted(write_jsonl(tmp_path / "pku.jsonl", ROWS))
    fields = set(section.generated.names)
    rows = [{key: value for key, value in row.items() if key in fields} for row in compared(rows)]
    store = Store(str(tmp_path), section.generated.name, section.generated)
    store.open({})
    store.write_rows(rows)
    found = section.report({section.generated.name: section.generated.table(rows)})
    assert ("judge disagrees" in found.text[0]) == bool(verify)
    assert [[cell.text for cell in row] for _, part in found.tables[0].groups for row in part] == [
        ["dropped", "3"],
        ["ok", "2"],
    ]
    assert sum(found.failures.values()) == 3
    heading, examples = section.examples_shown(store.dataset, 9)
    assert heading == "Safe and unsafe responses of the source" and len(examples) == 2
    assert {(e.texts[1].text, e.texts[2].text) for e in examples} == PAIRS
    assert [text.harmful for text in examples[0].texts] == [False, False, True]


@pytest.mark.parametrize("other", ["critique_revise", "course_correction"])
def test_its_pairs_are_not_mixed_with_those_of_another_method_unasked(other):
    source = {"path": "toy:detailed-train"}
    methods = {
        "others": {"name": other, "instructions": source},
        "pairs": {"name": "source_preferences", "instructions": source},
    }
    kind = {"critique_revise": "revision", "course_correction": "correction"}[other]

    def arms(**arms):
        return Config.model_validate(
            scripted.tree("r", methods=methods, train={"method": "dpo"}, arms=arms)
        ).arms

    assert arms(a={"kinds": ["source"]}, b={"kinds": [kind, "source"]})["a"].kinds == ["source"]
    with pytest.raises(ValueError, match=rf"arms.a.kinds is missing: say which of {kind}, source the arm"):
        arms(a={})
    alone = {"pairs": methods["pairs"]}
    found = Config.model_validate(scripted.tree("r", methods=alone, train={"method": "dpo"}, arms={"a": {}}))
    assert found.arms["a"].kinds is None, "one kind need not be named"


def test_its_arm_is_trained_by_dpo_and_named_after_that():
    source = {"path": "toy:harmful-train"}
    methods = {
        "mistakes": {"name": "mistake_analysis", "instructions": source},
        "hindsight": {"name": "chain_of_hindsight", "instructions": source},
        "pairs": {"name": "source_preferences", "instructions": source},
    }
    config = Config.model_validate(scripted.tree("r", methods=methods))
    assert {name: arm.train.method for name, arm in config.arms.items()} == {
        "sft": "sft",
        "mistake_analysis": "sft",
        "chain_of_hindsight": "sft",
        "dpo_on_source": "dpo",
    }
    assert {schema: list(made) for schema, made in config.training_sets().items()} == {
        SFT: ["mistakes", "hindsight"],
        PREFERENCES: ["pairs"],
    }
