"""Texts that ended at max_tokens: no method trains on half a sentence unasked, and every one is counted."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import making
from pipeline.chat import Completion
from pipeline.commands import report_data
from pipeline.data import endings
from pipeline.data.card import Origin, write_card
from pipeline.data.store import Store
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.course_correction.recipe import CourseCorrectionRecipe, pairs
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.critique_revise import CritiqueRevise
from pipeline.methods.critique_revise import recipe as revising
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.methods.mistake_analysis.mixture import examples
from pipeline.methods.mistake_analysis.recipe import MistakeAnalysisRecipe
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.methods.unfinished import Sampled, whole_sentences
from tests.scripted import Cut, ScriptedChat, instruction

HARM = " ".join(f"Take printer number {i}, then print." for i in range(20))  # 40 marks
REASON = " it is against the law. It would hurt people."
CUT_REASON = Cut(" it is against the law. It would hurt")


# -- sentences


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It harms people. It also", "It harms people."),
        ("It harms people. It also costs much.", "It harms people. It also costs much."),
        ("It harms people", ""),
        ("", ""),
        ("Is it fair? No! It is", "Is it fair? No!"),
        ('She said "stop." Then the', 'She said "stop."'),
        ('She said "stop." and then', ""),
        ("This is wrong (and mean). It", "This is wrong (and mean)."),
        ("**Do not do this.** It is", "**Do not do this.**"),
        ("It costs 3.50 a piece and", ""),
        ("It is mean. It costs 3.", "It is mean."),  # 3.50, perhaps
        ("It is mean. Ask Dr. Smith about", "It is mean."),
        ("It is mean. Use tools, e.g. A hammer or", "It is mean."),
        ("It is mean, says J. R. Miller of", ""),
        ("You lose. So do I. We all", "You lose. So do I."),
        ("It harms people.\n\n1. It hurts them.\n2. It", "It harms people.\n\n1. It hurts them."),
        ("It harms people.\n2.", "It harms people."),
        ("It harms people.\n\n- It hurts them\n- It sca", "It harms people."),
        ("See www.example.org or call", ""),
        ("I wait... and then", ""),
        ("I wait... Then I", "I wait..."),
        ("Look.\n```python\nx = 1  # Set. Then\n", "Look."),
        ("Look.\n```\nx. Y\n```\nThat is all. It", "Look.\n```\nx. Y\n```\nThat is all."),
        ("这样做会伤害别人。所以我", "这样做会伤害别人。"),
        ("यह गलत है। इससे", "यह गलत है।"),
        ("هل هذا صحيح؟ لا أظن", "هل هذا صحيح؟"),
        ("Das ist falsch. Es schadet", "Das ist falsch."),
        ("C'est mal. » Et puis", "C'est mal. »"),
    ],
)
def test_a_cut_text_ends_with_its_last_whole_sentence(text, whole):
    assert whole_sentences(text) == whole


@given(st.text())
def test_any_text_is_trimmed_to_its_own_beginning(text):
    whole = whole_sentences(text)
    assert text.startswith(whole)
    assert whole_sentences(whole) in (whole, whole_sentences(whole))


@pytest.mark.parametrize(
    ("rule", "text", "used", "ending"),
    [
        ("trim", "It hurts. It", "It hurts.", "trimmed"),
        ("trim", "It hurts and", None, "dropped"),
        ("drop", "It hurts. It", None, "dropped"),
        ("keep", "It hurts. It", "It hurts. It", "kept"),
    ],
)
def test_the_rule_decides_about_targets(rule, text, used, ending):
    sampled = Sampled(rule)
    assert sampled.target("analyse", Completion(text, 1, 1, "length")) == used
    assert sampled.target("analyse", Completion("It hurts and", 1, 1, "stop")) == "It hurts and"
    assert sampled.other("induce", Completion(text, 1, 1, "length")) == text
    assert sampled.endings == sorted([f"analyse: {ending}", "analyse: whole", "induce: cut"])


# -- the methods


def analysed(**changes) -> dict:
    settings = {key: changes.pop(key) for key in ("unfinished",) if key in changes}
    chat = ScriptedChat(**{"induce": "Sure. First", "analyse": "It harms people. It"} | changes)
    method = MistakeAnalysis(instructions={"path": "unused"}, **settings)
    return {**instruction(), **asyncio.run(MistakeAnalysisRecipe(method)(instruction(), chat))}


def test_a_cut_analysis_is_trimmed_and_a_cut_mistake_stays_as_it_is():
    row = analysed(induce=Cut("Sure. First"), analyse=Cut("It harms people. It"))
    assert (row["status"], row["analysis"], row["response"]) == ("ok", "It harms people.", "Sure. First")
    assert row["endings"] == ["analyse: trimmed", "induce: cut"]
    assert MISTAKES.table([{name: row.get(name) for name in MISTAKES.names}]).num_rows == 1


def test_an_analysis_without_a_whole_sentence_is_dropped_with_a_reason_and_its_safe_pair_stays():
    row = analysed(analyse=Cut("It harms the railway because"))
    assert (row["status"], row.get("analysis")) == ("dropped", None)
    assert row["error"] == "analysis ended at max_tokens without a usable sentence"
    assert row["endings"] == ["analyse: dropped", "induce: whole"]
    made = examples(MistakeAnalysis(instructions={"path": "x"}), [{"analysis": None, **row}], [], 0)
    assert [example["kind"] for example in made] == ["safe"]


def test_keep_trains_on_the_cut_text_and_says_so():
    row = analysed(analyse=Cut("It harms people. It"), unfinished="keep")
    assert (row["analysis"], row["endings"]) == ("It harms people. It", ["analyse: kept", "induce: whole"])


def corrected(**changes) -> dict:
    settings = {key: changes.pop(key) for key in ("unfinished", "judge") if key in changes}
    row = {key: changes.pop(key) for key in ("safe_response",) if key in changes}
    chat = ScriptedChat(**{f"syn{i}": REASON for i in range(1, 5)} | changes)
    settings = {"safe_from": "source_then_aligned", **settings}
    method = CourseCorrection(instructions={"path": "unused"}, **settings)
    recipe = CourseCorrectionRecipe(method, 0)
    return asyncio.run(recipe(instruction(unsafe_response=HARM, **row), chat))


def test_no_chosen_side_ends_in_mid_sentence():
    result = corrected(**{f"syn{i}": CUT_REASON for i in range(1, 5)})
    made = list(pairs([{**instruction(), **result}], Counter()))
    assert len(made) == 15
    assert all(pair["chosen"][0]["content"].endswith(".") for pair in made)
    assert result["endings"] == ["continuation: trimmed"] * 4
    trimmed = result["responses"][1]
    assert trimmed["text"].endswith("it is against the law.") and trimmed["finish_reason"] == "length"


def test_a_continuation_without_a_whole_sentence_is_lost_with_its_reason():
    result = corrected(syn2=Cut(" it is against"))
    assert result["lost"] == ["rank 3: continuation ended at max_tokens without a usable sentence"]
    assert Counter(result["endings"]) == {"continuation: whole": 3, "continuation: dropped": 1}
    assert CORRECTIONS.table([{"id": "a", **result}]).num_rows == 1


def test_what_is_judged_is_what_is_trained_on():
    result = corrected(syn1=Cut(" it is against the law. Still, if you insist, first you need a van"))
    assert result["responses"][1]["kind"] == "syn", "the resumption is in the half sentence that is cut off"


def test_a_refusal_of_the_models_own_is_trimmed_too():
    refusal = Cut("I cannot help you with this. It would")
    result = corrected(safe_response=None, safe=refusal)
    assert result["responses"][0]["text"] == "I cannot help you with this."
    lost = corrected(safe_response=None, safe=Cut("I cannot help you with"))
    assert lost["lost"] == ["rank 1: refusal ended at max_tokens without a usable sentence"]


@pytest.mark.parametrize("rule", ["trim", "drop"])
def test_a_cut_revision_is_trimmed_or_dropped(rule):
    chat = ScriptedChat(
        induce=Cut("Sure. First"), critique1=Cut("It helps"), revise1=Cut("Better buy one. It")
    )
    method = CritiqueRevise(instructions={"path": "unused"}, unfinished=rule)
    result = asyncio.run(revising.CritiqueReviseRecipe(method, 0)(instruction(), chat))
    done = {"trim": ("ok", "Better buy one."), "drop": ("dropped", None)}[rule]
    assert (result["status"], result.get("revision")) == done
    ending = {"trim": "trimmed", "drop": "dropped"}[rule]
    assert result["endings"] == ["critique: cut", "induce: cut", f"revise: {ending}"]
    assert REVISIONS.table([{"id": "a", **result}]).num_rows == 1


# -- how they are counted and told


def test_the_counts_say_what_was_cut_and_what_to_raise():
    counts = {"analyse: whole": 6, "analyse: trimmed": 3, "analyse: dropped": 1, "induce: whole": 10}
    assert endings.told({"endings": counts}) == [
        "analyse: 4 of 10 texts (40.0%) ended at max_tokens (3 trimmed to the last whole sentence, 1 dropped);"
        " raise analyse.max_tokens for whole texts"
    ]
    assert endings.told({"endings": {"analyse: whole": 6}}) == []


def test_a_finished_data_set_keeps_the_counts_of_its_endings(tmp_path):
    rows = [
        {"id": "a", "status": "ok", "endings": ["analyse: trimmed", "induce: whole"]},
        {"id": "b", "status": "failed", "error": "x"},
    ]
    store = Store(str(tmp_path), "mistakes", MISTAKES)
    store.open({"seed": 1})
    done = store.write_rows(rows)
    assert done["endings"] == {"analyse: trimmed": 1, "induce: whole": 1}
    assert store.complete["endings"] == done["endings"]
    told = "analyse: 1 of 1 texts (100.0%) ended at max_tokens (1 trimmed to the last whole sentence)"
    write_card(store, Origin(["`toy`"], 0, ["here"], []), {}, {})
    assert f"* {told}; raise analyse.max_tokens" in (tmp_path / "mistakes" / "README.md").read_text()
    lines: list[str] = []
    making._log_dataset(SimpleNamespace(log=lines.append), "generate", store)
    assert lines[1].startswith(f"generate: {told}; raise analyse.max_tokens") and len(lines) == 2


def test_thoughts_without_an_end_are_counted_and_told(tmp_path):
    thought = {"step": "induce", "text": "hm", "ended": True}
    rows = [
        {"id": "a", "status": "ok", "thoughts": [thought, thought]},
        {"id": "b", "status": "failed", "error": "x", "thoughts": [thought, {**thought, "ended": False}]},
        {"id": "c", "status": "ok", "thoughts": []},
    ]
    store = Store(str(tmp_path), "mistakes", MISTAKES)
    store.open({"seed": 1})
    done = store.write_rows(rows)
    assert (done["thoughts"], done["unended_thoughts"]) == (4, 1)
    told = "1 of 4 answers with a thought were thoughts without an end: raise max_tokens, or turn"
    write_card(store, Origin(["`toy`"], 0, ["here"], []), {}, {})
    assert f"* {told}" in (tmp_path / "mistakes" / "README.md").read_text()
    lines: list[str] = []
    making._log_dataset(SimpleNamespace(log=lines.append), "generate", store)
    assert lines[1].startswith(f"generate: {told}") and len(lines) == 2
    found = report_data.thoughts([{"name": "generate", **done}, {"name": "mix"}])
    assert [text.startswith(f"generate: {told}") for text in found.text] == [True]
    assert report_data.thoughts([{"name": "mix", "thoughts": 3, "unended_thoughts": 0}]) is None


def test_the_report_has_a_table_of_cut_texts_only_if_there_are_any():
    method = MistakeAnalysis(instructions={"path": "unused"})

    def titles(*found) -> list[str]:
        rows = [
            {"id": str(i), "instruction_id": str(i), "status": "ok", "endings": list(entries)}
            for i, entries in enumerate(found)
        ]
        numbers: dict[str, pa.Table | None] = {"mistakes": MISTAKES.table(rows), "sft": None}
        return [table.title for table in report_data.data([method], numbers, []).tables]

    assert "Texts cut at max_tokens" in titles(["analyse: trimmed"], ["analyse: whole"])
    assert "Texts cut at max_tokens" not in titles(["analyse: whole"])


def test_unreadable_verdicts_on_revisions_are_in_the_report():
    method = CritiqueRevise(instructions={"path": "unused"}, verify={"kind": "rating"})
    rows = [
        {"id": str(i), "status": "ok", "principles": ["harm"], "revision_harmful": verdict}
        for i, verdict in enumerate([None, None, False])
    ]
    found = report_data.data([method], {"revisions": REVISIONS.table(rows)}, [])
    [table] = [table for table in found.tables if table.title.startswith("Verdicts")]
    assert [[cell.text for cell in row] for row in table.groups[0][1]] == [
        ["no verdict", "2"],
        ["harmless", "1"],
    ]
