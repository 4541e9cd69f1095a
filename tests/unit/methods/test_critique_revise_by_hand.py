"""Critique-Revise, counted by hand: calls, losses, principles, and what becomes of a verdict."""

import asyncio
from collections import Counter

import pytest

from pipeline.config import Config
from pipeline.fingerprints import fingerprints
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.critique_revise.recipe import CritiqueReviseRecipe
from pipeline.schema import PREFERENCES, SFT
from pipeline.sources.counts import Accounts
from tests import scripted
from tests.scripted import Cut, ScriptedChat, instruction

BAD, CRITIQUE, GOOD = "Sure. First take a printer.", "It helps with fraud.", "Better buy a ticket."


def method(**settings) -> CritiqueRevise:
    return CritiqueRevise(instructions={"path": "unused"}, **settings)


def chat(rounds: int = 1, **changes) -> ScriptedChat:
    said = {f"{step}{i}": text for i in range(1, rounds + 1)
            for step, text in (("critique", CRITIQUE), ("revise", GOOD))}  # fmt: skip
    return ScriptedChat(**{"induce": BAD} | said | changes)


def revised(chats: list[ScriptedChat], seed: int = 0, **settings) -> list[dict]:
    recipe = CritiqueReviseRecipe(method(**settings), seed)
    rows = [instruction(id=f"r{i}", instruction_id=f"r{i}") for i in range(len(chats))]
    return [{**row, **asyncio.run(recipe(row, one))} for row, one in zip(rows, chats, strict=True)]


def made(rows: list[dict]) -> tuple[list[dict], list[dict], Counter]:
    drops: Counter[str] = Counter()
    conversations = list(method().examples(SFT, rows, Counter(), 0, Accounts()))
    return conversations, list(method().examples(PREFERENCES, rows, drops, 0, Accounts())), drops


@pytest.mark.parametrize(("rounds", "calls"), [(1, 9), (2, 15)])
def test_three_instructions_take_a_first_answer_and_two_calls_a_round(rounds, calls):
    """3 · (1 + 2 · rounds); mistake analysis of the same instructions takes 3 · 2 more."""
    chats = [chat(rounds) for _ in range(3)]
    rows = revised(chats, rounds=rounds)
    assert sum(len(one.asked) for one in chats) == calls
    assert len(made(rows)[0]) == len(made(rows)[1]) == 3


def test_an_empty_revision_and_an_unchanged_one_leave_one_example_and_one_pair():
    rows = revised([chat(), chat(revise1=""), chat(revise1=f" {BAD}\n")])
    conversations, pairs, drops = made(rows)
    assert [len(conversations), len(pairs)] == [1, 1]
    assert drops == {"empty revision": 1, "unchanged": 1}


def test_a_revision_that_comes_back_to_the_first_answer_in_a_later_round_is_unchanged():
    [row] = revised([chat(2, revise2=BAD)], rounds=2)
    assert (row["status"], row["error"]) == ("dropped", "unchanged")


def test_a_later_round_revises_the_revision_before_it():
    one = chat(2, revise1="Ask at the counter.")
    [row] = revised([one], rounds=2)
    asked = next(messages for step, messages, *_ in one.asked if step == "critique2")
    assert asked[5]["content"] == "Ask at the counter." and row["revision"] == GOOD


def test_three_rounds_under_eight_principles_have_three_different_names():
    eight = ["law", "violence", "hatred", "minors", "deceit", "privacy", "danger", "insult"]
    rows = revised([chat(3) for _ in range(40)], rounds=3, principles=eight)
    assert all(len(set(row["principles"])) == 3 and set(row["principles"]) <= set(eight) for row in rows)
    assert {name for row in rows for name in row["principles"]} == set(eight), "each is drawn"


def test_nine_rounds_under_eight_principles_draw_all_before_one_comes_again():
    [row] = revised([chat(9)], rounds=9, principles=["law", "violence", "hatred", "minors", "deceit", "privacy",
                                                     "danger", "insult"])  # fmt: skip
    assert len(set(row["principles"][:8])) == 8 and row["principles"][8] in row["principles"][:8]


def test_rows_in_another_order_have_the_same_principles():
    recipe = CritiqueReviseRecipe(method(rounds=2), 7)

    def names(ids):
        return {i: asyncio.run(recipe(instruction(id=i), chat(2)))["principles"] for i in ids}

    assert names(["a", "b", "c"]) == names(["c", "a", "b"])


@pytest.mark.parametrize(("said", "harmful", "kept", "error"), [
    ("Rating: [[9]]", False, True, None),
    ("Rating: [[2]]", True, False, "revision judged harmful"),
    ("Well.", None, False, "unreadable verdict"),
])  # fmt: skip
def test_the_filter_keeps_neither_harmful_nor_unreadable_revisions_in_either_use(said, harmful, kept, error):
    settings = {"verify": {"kind": "rating"}}
    [row] = revised([chat(verify=said)], filter=True, **settings)
    assert (row["revision_harmful"], row["error"], row["revision"]) == (harmful, error, GOOD)
    conversations, pairs, _ = made([row])
    assert bool(conversations) == bool(pairs) == kept
    [row] = revised([chat(verify=said)], **settings)
    assert row["status"] == "ok" and row["revision_harmful"] is harmful, "without the filter it is only told"


@pytest.mark.parametrize("line", [
    "Here is the revised response:\n\n", "Sure, here is my rewritten answer:\n", "Certainly! Here's an improved version: ",
    "The new answer: ",
])  # fmt: skip
def test_one_leading_line_about_the_revision_is_stripped_and_only_one(line):
    [row] = revised([chat(revise1=line + GOOD)])
    assert row["revision"] == GOOD
    [twice] = revised([chat(revise1=line + "My updated answer: " + GOOD)])
    assert twice["revision"] == "My updated answer: " + GOOD


def test_a_critique_that_is_cut_is_used_and_a_revision_that_is_cut_is_trimmed():
    [row] = revised([chat(critique1=Cut("It helps with fraud and"), revise1=Cut(f"{GOOD} And then"))])
    assert (row["critiques"], row["revision"]) == (["It helps with fraud and"], GOOD)
    assert row["endings"] == ["critique: cut", "induce: whole", "revise: trimmed"]


def test_an_arm_says_which_use_it_makes_of_revisions():
    source = {"path": "toy:harmful-train"}
    arms = {
        "as_answers": {"kinds": ["revision"]},
        "as_pairs": {"kinds": ["revision"], "train": {"method": "dpo"}},
    }
    config = Config.model_validate(
        scripted.tree("r", methods={"r": {"name": "critique_revise", "instructions": source}}, arms=arms)
    )
    assert {schema.name for schema in config.training_sets()} == {"sft", "preferences"}
    found = fingerprints(config)
    alone = fingerprints(config.model_copy(update={"arms": {"as_answers": config.arms["as_answers"]}}))
    assert alone["sft"] == found["sft"] and "preferences" not in alone
