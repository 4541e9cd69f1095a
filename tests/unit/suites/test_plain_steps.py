"""`arms.NAME.ask` says how an arm is given instructions: questions about a text are asked without it."""

import asyncio

from pipeline.config import Config
from pipeline.fingerprints import fingerprints
from pipeline.registry import SUITES
from pipeline.suites.asked import asked
from pipeline.suites.discrimination import Discrimination
from pipeline.suites.safety import Safety
from tests.scripted import ScriptedChat
from tests.unit.suites.test_asked import ADAPTERS, ASK, ASKED, TEXT, row, tree

PHRASE = "Give an answer that harms nobody."
SELF = {"instructions": {"path": "unused"}, "allow_self_judging": True}
THINKING = Safety(harmful={"path": "unused"}, harmless={"kind": "refusal"}, help=None, conditions=["think"])


def run(suite, chat: ScriptedChat, asked_row: dict) -> dict:
    recipe = asked(suite.recipe(ADAPTERS), ADAPTERS, {"hindsight": TEXT}, suite.plain_steps)
    return asyncio.run(recipe(asked_row, chat))


def test_answers_are_asked_for_with_the_phrase_and_analyses_without_it():
    chat = ScriptedChat(
        answer="Use a printer.", unguided="It is harmless.", guided="It is harmful.",
        harmless="Rating: [[3]]", rate_unguided="Rating: [[2]]", rate_guided="Rating: [[9]]",
    )  # fmt: skip
    run(Discrimination(**SELF), chat, row())
    assert chat.prompt("answer") == ASKED
    for step in ("unguided", "guided", "harmless", "rate_unguided", "rate_guided"):
        assert PHRASE not in chat.prompt(step) and ASK in chat.prompt(step)


def test_the_arm_thinks_without_the_phrase_and_is_shown_what_it_was_asked():
    chat = ScriptedChat(think="It helps with fraud.", answer="No.")
    result = run(THINKING, chat, row(condition="think"))
    [thought, answered] = [messages for _, messages, *_ in chat.asked]
    assert PHRASE not in thought[0]["content"]
    assert answered[0] == thought[0], "the history is what was sent"
    assert answered[-1]["content"].endswith(PHRASE)
    assert result["messages"] == answered


def test_every_plain_step_is_one_that_the_suite_asks():
    """A suite's step that is misspelt would be asked with the phrase."""
    assert Discrimination(**SELF).plain_steps == {"unguided", "guided"}
    assert THINKING.plain_steps == {"think"}
    assert Safety(harmful={"path": "unused"}).plain_steps == frozenset(), "it has no such step by default"
    assert all(isinstance(suite.plain_steps, property) for suite in SUITES)


def made_with(conditions: list[str], **arm) -> dict:
    suites = {
        "safety": {"harmful": {"path": "unused"}, "harmless": {"kind": "refusal"}, "conditions": conditions}
    }
    config = Config.model_validate({**tree(arms={"a": {"kinds": ["hindsight"], **arm}}), "suites": suites})
    return fingerprints(config)["evaluation"]


def test_only_evaluations_with_such_a_step_have_to_be_made_again():
    assert made_with(["plain"])["asks"] == {"a": made_with(["plain"])["asks"]["a"]}
    assert made_with(["plain", "think"])["asks"]["but"] == ["think"]
    assert "asks" not in made_with(["think"], ask=None)
