"""Critique-Revise on a scripted model: what is asked, what is kept, and what it makes for each trainer."""

import asyncio
from collections import Counter

import pytest

from pipeline.config import Config
from pipeline.errors import RowFailed, UserError
from pipeline.fingerprints import fingerprints
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.critique_revise import recipe as module
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.schema import PREFERENCES, SFT
from pipeline.sources.counts import Accounts
from tests import scripted
from tests.scripted import ScriptedChat, instruction

BAD, CRITIQUE, GOOD = "Sure. First take a printer.", "It helps with fraud.", "Better buy a ticket."


def method(**settings) -> CritiqueRevise:
    return CritiqueRevise(instructions={"path": "unused"}, **settings)


def run(chat=None, row=None, seed=0, **settings) -> dict:
    recipe = module.CritiqueReviseRecipe(method(**settings), seed)
    return asyncio.run(recipe(row or instruction(), chat or asked()))


def asked(**changes) -> ScriptedChat:
    rounds = {
        f"{step}{i}": text for i in range(1, 4) for step, text in (("critique", CRITIQUE), ("revise", GOOD))
    }
    return ScriptedChat(**{"induce": BAD} | rounds | changes)


@pytest.mark.parametrize("rounds", [1, 2])
def test_each_round_is_two_calls_in_one_conversation(rounds):
    chat = asked()
    result = run(chat, rounds=rounds)
    assert chat.steps == ["induce"] + [
        f"{step}{i}" for i in range(1, rounds + 1) for step in ("critique", "revise")
    ]
    assert (result["status"], result["revision"], result["critiques"]) == ("ok", GOOD, [CRITIQUE] * rounds)
    last = chat.asked[-1][1]
    assert [message["role"] for message in last] == ["user", "assistant"] * (2 * rounds) + ["user"]
    assert last[0]["content"] == instruction()["instruction"] and last[1]["content"] == BAD
    assert REVISIONS.table([{"id": "a", **result}]).num_rows == 1


def test_the_first_answer_may_be_the_models_own_or_the_sources():
    chat = asked()
    run(chat, answer="plain")
    assert chat.prompt("induce") == instruction()["instruction"]
    assert run(answer="reference")["response"] == instruction()["unsafe_response"]
    with pytest.raises(RowFailed, match="no unsafe response"):
        run(row=instruction(unsafe_response=None), answer="reference")


def test_principles_are_drawn_by_seed_and_row_and_none_twice():
    drawn = [run(row=instruction(id=f"r{i}"), rounds=3)["principles"] for i in range(20)]
    assert all(len(set(names)) == 3 for names in drawn) and len({tuple(names) for names in drawn}) > 10
    assert drawn[5] == run(row=instruction(id="r5"), rounds=3)["principles"], "whatever came before"
    assert drawn != [run(row=instruction(id=f"r{i}"), rounds=3, seed=1)["principles"] for i in range(20)]
    assert run(rounds=3, principles=["law"])["principles"] == ["law"] * 3


@pytest.mark.parametrize(("changes", "why"), [
    ({"critique1": " "}, "empty critique"),
    ({"revise1": "\n"}, "empty revision"),
    ({"revise1": "Here is the revised response:"}, "empty revision"),
    ({"revise1": "Sure.  First take\na printer."}, "unchanged"),
])  # fmt: skip
def test_what_cannot_be_used_is_dropped_with_its_reason(changes, why):
    result = run(asked(**changes))
    assert (result["status"], result["error"], result.get("revision")) == ("dropped", why, None)
    assert result["response"] == BAD


@pytest.mark.parametrize("line", [
    "Here is the revised response: ", "Sure, here's a rewritten version:\n", "My improved answer: ", "**Revised**: ",
])  # fmt: skip
def test_a_leading_line_about_the_revision_is_cut(line):
    kept = run(asked(revise1=f"{line}{GOOD}"))["revision"]
    assert kept == GOOD if "**" not in line else kept.endswith(GOOD)
    assert (
        run(asked(revise1="Here is how you buy a ticket: go there."))["revision"]
        == "Here is how you buy a ticket: go there."
    )


def test_a_filter_keeps_harmless_revisions_alone():
    judge = {"kind": "refusal"}
    kept = run(asked(revise1="I cannot help with that."), verify=judge, filter=True)
    assert (kept["status"], kept["revision_harmful"]) == ("ok", False)
    dropped = run(verify=judge, filter=True)
    assert (dropped["status"], dropped["error"], dropped["revision_harmful"]) == (
        "dropped",
        "revision judged harmful",
        True,
    )
    with pytest.raises(ValueError, match="filter needs a verdict"):
        method(filter=True)


def test_revisions_make_conversations_and_pairs():
    rows = [
        {"id": f"r{i}", **{key: instruction()[key] for key in ("instruction_id", "instruction", "category")}}
        for i in range(3)
    ]
    answers = [asked(), asked(revise1=""), asked(revise1=BAD)]
    rows = [
        {**row, "error": None, **run(chat, instruction(id=row["id"]))}
        for row, chat in zip(rows, answers, strict=True)
    ]
    drops: Counter[str] = Counter()
    made = list(method().examples(SFT, rows, drops, 0, Accounts()))
    pairs = list(method().examples(PREFERENCES, rows, drops, 0, Accounts()))
    assert SFT.table(made).num_rows == PREFERENCES.table(pairs).num_rows == 1
    assert made[0]["kind"] == "revision" and [m["content"] for m in made[0]["messages"]] == [
        instruction()["instruction"],
        GOOD,
    ]
    assert (pairs[0]["chosen"][0]["content"], pairs[0]["rejected"][0]["content"]) == (GOOD, BAD)
    assert drops == {"empty revision": 1, "unchanged": 1}


def test_an_unknown_principle_is_one_sentence():
    with pytest.raises(UserError, match=r"principles: kindness is not a principle of .*; known are law, "):
        method(principles=["kindness"]).prompt_hashes()


def test_its_arms_stand_beside_those_of_mistake_analysis():
    source = {"path": "toy:harmful-train"}
    methods = {"mistakes": {"name": "mistake_analysis", "instructions": source}}
    alone = Config.model_validate(scripted.tree("r", methods=methods))
    both = {**methods, "revisions": {"name": "critique_revise", "instructions": source}}
    arms = {
        "sft": {"kinds": ["safe"]},
        "mistake_analysis": {"kinds": ["safe", "analysis"]},
        "critique_revise": {"kinds": ["safe", "revision"]},
        "pairs": {"train": {"method": "dpo"}},
    }
    config = Config.model_validate(scripted.tree("r", methods=both, arms=arms))
    assert {schema.name: list(made) for schema, made in config.training_sets().items()} == {
        "sft": ["mistakes", "revisions"],
        "preferences": ["revisions"],
    }
    assert list(Config.model_validate(scripted.tree("r", methods=both)).arms) == [
        "sft",
        "mistake_analysis",
        "critique_revise",
    ]
    assert fingerprints(config)["mistakes"] == fingerprints(alone)["mistakes"]


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_default_arm_fits_the_trainer(tmp_path, method):
    tree = {
        "run_dir": str(tmp_path),
        "model": {"path": "toy"},
        "methods": {"revisions": {"name": "critique_revise", "instructions": {"path": "toy:harmful-train"}}},
        "train": {"method": method},
    }
    [(name, arm)] = Config.model_validate(tree).arms.items()
    assert (name, arm.train.method, arm.kinds) == ("critique_revise", method, ["revision"])
    both = {
        **tree["methods"],
        "mistakes": {"name": "mistake_analysis", "instructions": {"path": "toy:harmful-train"}},
    }
    arms = Config.model_validate({**tree, "methods": both}).arms
    assert {name: arm.train.method for name, arm in arms.items()} == {
        "critique_revise": method, "sft": "sft", "mistake_analysis": "sft"
    }  # fmt: skip
