"""A judge of the source's safe responses: what it does not call harmless is no example, and is counted."""

import asyncio
from collections import Counter

import pytest

from pipeline.fingerprints import fingerprints
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.mistake_analysis.recipe import MistakeAnalysisRecipe
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import SFT
from pipeline.sources.counts import Accounts
from tests import scripted
from tests.scripted import ScriptedChat, instruction

JUDGE = {"kind": "rating"}


def method(**settings) -> MistakeAnalysis:
    return MistakeAnalysis(
        instructions={"path": "unused"}, **{"verify": None, "verify_safe": JUDGE} | settings
    )


def run(said: str, row: dict | None = None, **settings) -> tuple[dict, ScriptedChat]:
    row = row or instruction()
    chat = ScriptedChat(
        induce="Take a printer and print it.",
        analyse="The response is harmful, because it helps with fraud.",
        analyse_safe="The response is harmless, because it names a lawful way.",
        verify_safe=said,
    )
    result = asyncio.run(MistakeAnalysisRecipe(method(**settings))(row, chat))
    return {**row, "error": None, **result}, chat


def kinds(rows: list[dict], drops: Counter[str], **settings) -> Counter:
    found = list(method(**settings).examples(SFT, rows, drops, 0, Accounts()))
    assert SFT.table(found).num_rows == len(found)
    return Counter(one["kind"] for one in found)


@pytest.mark.parametrize(("said", "harmful", "examples", "dropped"), [
    ("Rating: [[9]]", False, {"analysis": 1, "safe": 1}, {}),
    ("Rating: [[2]]", True, {"analysis": 1}, {"safe response judged harmful": 1}),
    ("Well.", None, {"analysis": 1}, {"safe response has no readable verdict": 1}),
])  # fmt: skip
def test_only_responses_that_the_judge_calls_harmless_are_examples(said, harmful, examples, dropped):
    row, chat = run(said)
    assert row["safe_harmful"] is harmful and "Better buy one." in chat.prompt("verify_safe")
    drops: Counter[str] = Counter()
    assert (kinds([row], drops), drops) == (examples, dropped)
    assert MISTAKES.table([{name: row[name] for name in MISTAKES.names if name in row}]).num_rows == 1


def test_without_a_judge_the_labels_are_believed_and_nothing_is_asked():
    row, chat = run("unused", verify_safe=None)
    assert "verify_safe" not in chat.steps and "safe_harmful" not in row
    assert kinds([row], Counter(), verify_safe=None) == {"analysis": 1, "safe": 1}


def test_a_response_is_judged_once_for_all_samples_of_its_instruction():
    first, _ = run("Rating: [[9]]")
    second, chat = run("unused", instruction(id="i1-1", sample=1))
    assert "verify_safe" not in chat.steps
    assert kinds([first, second], Counter()) == {"analysis": 2, "safe": 1}


def test_a_row_without_a_safe_response_is_not_judged():
    row, chat = run("unused", instruction(safe_response=None))
    drops: Counter[str] = Counter()
    assert "verify_safe" not in chat.steps and kinds([row], drops) == {"analysis": 1} and not drops


def test_a_doubted_response_is_not_analysed_as_a_harmless_one():
    settings = {"analyse_safe": 1.0}
    row, chat = run("Rating: [[2]]", **settings)
    assert "analyse_safe" not in chat.steps and "analyse_safe: no harmless answer" in " ".join(row["faults"])
    row, chat = run("Rating: [[9]]", **settings)
    assert "analyse_safe" in chat.steps and row["safe_analysis_of"] == "safe_response"


def test_it_is_counted_in_the_plan_and_part_of_the_fingerprint_only_if_it_is_set():
    assert method().most_tokens() == method(verify_safe=None).most_tokens() + method().verify_safe.tokens()
    without = fingerprints(scripted.config(recipe={"name": "mistake_analysis"}))["mistakes"]
    with_it = fingerprints(scripted.config(recipe={"name": "mistake_analysis", "verify_safe": JUDGE}))[
        "mistakes"
    ]
    assert "verify_safe" not in without["mistake_analysis"] and "rating" in with_it["prompts"]
    assert with_it["mistake_analysis"]["verify_safe"]["kind"] == "rating"
