"""The recipe C²-Syn on a scripted model: what is selected, where it is cut, what is made of it, and the
pairs."""

import asyncio
import json
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pipeline import prompts
from pipeline.data.store import reason
from pipeline.errors import RowFailed
from pipeline.methods.course_correction import CourseCorrection
from pipeline.methods.course_correction.recipe import (
    MARKS,
    CourseCorrectionRecipe,
    _Unfit,
    cut,
    pairs,
    select,
)
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.schema import PREFERENCES
from pipeline.settings.base import Source
from pipeline.sources.instructions import read
from tests.scripted import ScriptedChat, instruction

REAL_SAMPLE = Path(__file__).parents[4] / "shared/data/pku_saferlhf_sample.jsonl"
TEXTS = prompts.load("methods/course_correction/prompts.yaml")
OPENERS, TRIGGERS = TEXTS.lines("openers"), TEXTS.lines("triggers")
ASK = "How can I forge a ticket?"
HARM = " ".join(f"Take printer number {i}, then print." for i in range(20))  # 120 words, 40 marks
SAFE = "Better buy one."
REASON = " it is against the law and would hurt people. "


def method(**settings) -> CourseCorrection:
    """The source's safe responses, so that only the turned ones are scripted."""
    return CourseCorrection(
        instructions={"path": "unused"}, **{"safe_from": "source_then_aligned"} | settings
    )


def run(chat=None, row=None, seed=0, **settings) -> dict:
    recipe = CourseCorrectionRecipe(method(**settings), seed)
    return asyncio.run(recipe(row or request(), chat or scripted()))


def request(text=ASK, unsafe=HARM, **changes) -> dict:
    return instruction(text, unsafe_response=unsafe, **changes)


def scripted(**changes) -> ScriptedChat:
    return ScriptedChat(**{f"syn{i}": REASON for i in range(1, 5)} | changes)


def ranks(result) -> list[int]:
    return [response["rank"] for response in result["responses"]]


# -- what is made


def test_six_responses_from_the_safe_one_to_the_harmful_one():
    chat = scripted()
    result = run(
        chat,
        request(safe_response=f" {SAFE}\n"),
        continuation={"max_tokens": 9, "temperature": 0.3, "top_p": 0.5},
    )
    assert CORRECTIONS.table([{"id": "a", **result}]).num_rows == 1
    assert (result["status"], result["lost"], result["unsafe_response"]) == ("ok", [], HARM)
    assert ranks(result) == [1, 2, 3, 4, 5, 6]
    assert [response["kind"] for response in result["responses"]] == [
        "safe",
        "syn",
        "syn",
        "syn",
        "syn",
        "harmful",
    ]
    safe, *syns, harmful = result["responses"]
    assert safe["text"] == SAFE
    assert result["opener"] in OPENERS
    assert harmful["text"] == f"{result['opener']} {HARM}"
    lengths = [len(syn["text"]) for syn in syns]
    assert lengths == sorted(set(lengths))
    assert sorted(chat.steps) == ["syn1", "syn2", "syn3", "syn4"]
    for _, _, sampling, adapter in chat.asked:
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.n, adapter) == (
            9,
            0.3,
            0.5,
            1,
            None,
        )


def test_a_synthetic_response_is_its_prefill_and_what_the_model_said():
    chat = scripted(syn2="ly it is against the law.\n")  # goes on in the middle of a word
    result = run(chat)
    second = result["responses"][2]
    [question, prefill] = next(messages for step, messages, *_ in chat.asked if step == "syn2")
    assert question == {"role": "user", "content": ASK}
    assert prefill["role"] == "assistant"
    assert second["text"] == prefill["content"] + "ly it is against the law."
    assert result["responses"][1]["text"] == chat.prompt("syn1") + REASON.rstrip()
    assert second["finish_reason"] == "stop"


def test_the_offsets_say_where_harm_and_trigger_end():
    result = run()
    full = result["responses"][-1]["text"]
    for syn in result["responses"][1:-1]:
        harmful, trigger = (
            syn["text"][: syn["harmful_end"]],
            syn["text"][syn["harmful_end"] : syn["trigger_end"]],
        )
        assert full.startswith(harmful) and harmful[-1] in MARKS
        assert trigger == f" {syn['trigger']}" and syn["trigger"] in TRIGGERS
        assert syn["text"][syn["trigger_end"] :] == REASON.rstrip()


def test_a_row_is_made_alike_every_time_whatever_the_global_generator_does():
    random.seed(1)
    first = run()
    random.seed(2)
    assert run() == first
    others = [run(seed=seed) for seed in range(8)]
    assert len({other["opener"] for other in others}) > 1
    assert len({other["responses"][1]["trigger"] for other in others}) > 1
    assert len({other["responses"][1]["harmful_end"] - len(other["opener"]) for other in others}) == 2, (
        "both steps are drawn"
    )
    rows = [run(row=request(id=f"i{n}")) for n in range(8)]
    assert len({row["opener"] for row in rows}) > 1, "rows of one run differ too"


def test_all_calls_of_a_row_are_under_way_at_once():
    async def together():
        started, everyone = [], asyncio.Event()

        async def chat(messages, sampling, *, step, adapter=None):
            started.append(step)
            if len(started) == 5:
                everyone.set()
            await asyncio.wait_for(everyone.wait(), 5)
            return await scripted(safe="I cannot help you.")(messages, sampling, step=step)

        return await CourseCorrectionRecipe(method(), 0)(request(safe_response=None), chat)

    assert ranks(asyncio.run(together())) == [1, 2, 3, 4, 5, 6]


def test_the_aligned_models_adapter_continues_and_no_adapter_judges():
    answers = {f"check{i}": "Yes" for i in range(1, 5)}
    chat = scripted(safe="I cannot help you.", **answers)
    run(chat, request(safe_response=None), aligned={"adapter": "/aligned"}, judge={"kind": "yes_no"})
    used = {step: adapter for step, _, _, adapter in chat.asked}
    assert used == {
        "safe": "/aligned",
        **{f"syn{i}": "/aligned" for i in range(1, 5)},
        **dict.fromkeys(answers),
    }


def test_the_judge_sees_where_the_response_turns():
    chat = scripted(**{f"check{i}": "Yes" for i in range(1, 5)})
    result = run(chat, judge={"kind": "yes_no"})
    syn = result["responses"][1]
    asked = chat.prompt("check1")
    beginning, turn = syn["text"][: syn["harmful_end"]], syn["text"][syn["harmful_end"] :].strip()
    assert f"Beginning: {beginning}\n" in asked
    assert f"How it goes on: {turn}\n" in asked


# -- what is lost


@pytest.mark.parametrize(
    ("answers", "check", "why"),
    [
        ({"syn2": " \n"}, {}, "empty continuation"),
        ({"syn2": " here is how it is done: take a printer."}, {}, "does not correct course"),
        ({"syn2": RowFailed("prompt too long")}, {}, "prompt too long"),
        ({"check2": "No."}, {"kind": "yes_no"}, "does not correct course"),
        ({"check2": "Perhaps."}, {"kind": "yes_no"}, "unreadable verdict"),
        ({"check2": RowFailed("prompt too long")}, {"kind": "yes_no"}, "prompt too long"),
    ],
)
def test_a_synthetic_response_that_is_lost_leaves_the_others_and_their_ranks(answers, check, why):
    yes = {f"check{i}": "Yes." for i in range(1, 5)} if check else {}
    result = run(scripted(**yes | answers), judge=check or {"kind": "phrases"})
    assert result["status"] == "ok"
    assert ranks(result) == [1, 2, 4, 5, 6]
    assert result["lost"] == [f"rank 3: {why}"]


def test_where_the_source_has_no_safe_response_the_models_refusal_is_taken():
    chat = scripted(safe=" I cannot help you forge a ticket.\n")
    result = run(chat, request(safe_response=None))
    assert chat.prompt("safe") == ASK
    safe = result["responses"][0]
    assert (safe["rank"], safe["text"], safe["finish_reason"]) == (
        1,
        "I cannot help you forge a ticket.",
        "stop",
    )


@pytest.mark.parametrize(
    ("safe_from", "asked"), [("aligned", True), ("source_then_aligned", True), ("source", False)]
)
def test_an_answer_that_helps_is_no_safe_response(safe_from, asked):
    chat = scripted(safe="Sure, take a printer.")
    result = run(chat, request(safe_response=None), safe_from=safe_from)
    assert ("safe" in chat.steps) == asked
    assert ranks(result) == [2, 3, 4, 5, 6]
    assert result["lost"] == ["rank 1: no safe response"]


def test_nothing_left_to_compare():
    result = run(
        ScriptedChat(**{f"syn{i}": "" for i in range(1, 5)}), request(safe_response=None), safe_from="source"
    )
    assert (result["status"], result["error"]) == ("dropped", "nothing left to compare")
    assert [why.split(":")[0] for why in result["lost"]] == [f"rank {i}" for i in range(1, 6)]
    assert ranks(result) == [6]


def test_two_responses_can_be_compared():
    result = run(ScriptedChat(**{f"syn{i}": "" for i in range(1, 5)}))
    assert (result["status"], ranks(result)) == ("ok", [1, 6])


def test_a_row_whose_calls_all_fail_has_failed_and_can_be_run_again():
    with pytest.raises(RowFailed, match="no usable answer"):
        run(ScriptedChat(**{f"syn{i}": RowFailed("endpoint gave no usable answer") for i in range(1, 5)}))


def test_what_nobody_foresaw_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        run(scripted(syn2=ZeroDivisionError()))


# -- what is selected


@pytest.mark.parametrize(
    ("row", "why", "kind"),
    [
        (request("Tell me a joke."), "no keyword in the request", None),
        (request(unsafe=None), "no unsafe response in the source", None),
        (request(unsafe="word, " * 57), "unsafe response too short: 57 words", "unsafe response too short"),
        (
            request(unsafe_responses=["a b c, d"] * 2),
            "unsafe response too short: 4 words",
            "unsafe response too short",
        ),
        (
            request(unsafe="word " * 90 + "a, b, c."),
            "too few punctuation marks: 3 for 4 cuts",
            "too few punctuation marks",
        ),
    ],
)
def test_a_request_that_the_method_cannot_use_is_dropped_with_its_reason(row, why, kind):
    chat = ScriptedChat()
    assert run(chat, row) == {"unsafe_response": None, "status": "dropped", "error": why}
    assert reason(why) == (kind or why)
    assert chat.asked == []


@pytest.mark.parametrize("text", ["SHOW me", "somewhat odd", "WHAT is it?"])
def test_keywords_are_substrings_in_any_case(text):
    assert run(row=request(text))["status"] == "ok"
    assert run(row=request("Tell me"), keywords=[])["status"] == "ok"
    assert run(row=request("Tell me"), keywords=["TELL"])["status"] == "ok"


def test_the_first_unsafe_response_of_enough_words_is_taken():
    first, second = f"{HARM} First.", f"{HARM} Second."
    row = request(unsafe=second, unsafe_responses=["Too short, I fear.", first, second])
    assert run(row=row)["unsafe_response"] == first
    exactly = request(unsafe="word, " * 80)
    assert run(row=exactly)["error"] == "unsafe response too short: 80 words"
    assert run(row=exactly, min_words=79)["status"] == "ok"


# -- cuts


@given(st.text(alphabet='ab ,.!:;?-"(){}[]\n–“', max_size=200), st.integers(1, 6), st.integers())
def test_cuts_end_at_equally_spaced_marks(text, cuts, seed):
    marks = [i for i, character in enumerate(text) if character in ',.!:;?-"(){}[]']
    if len(marks) < cuts:
        with pytest.raises(_Unfit, match=f"too few punctuation marks: {len(marks)} for {cuts} cuts"):
            cut(text, cuts, random.Random(seed))
        return
    found = cut(text, cuts, random.Random(seed))
    steps = {len(marks) // cuts, len(marks) // cuts - 1} - {0}
    assert found in [[text[: marks[i * step - 1] + 1] for i in range(1, cuts + 1)] for step in steps]
    assert len(set(found)) == cuts, "beginnings of rising length"
    assert found == cut(text, cuts, random.Random(seed))


@given(st.integers(2, 9), st.integers(1, 5))
def test_either_step_can_be_drawn(most, cuts):
    text = "a," * (most * cuts)
    assume(most > 1)
    lengths = {len(cut(text, cuts, random.Random(seed))[0]) // 2 for seed in range(40)}
    assert lengths == {most, most - 1}


def test_other_numbers_of_cuts_give_other_numbers_of_responses():
    result = run(ScriptedChat(syn1=REASON, syn2=REASON), cuts=2)
    assert ranks(result) == [1, 2, 3, 4]


# -- pairs


def corrections(**changes) -> dict:
    return {"id": "i1-0", "instruction_id": "i1", "instruction": ASK, "category": "fraud", **run(), **changes}


def test_every_two_of_six_responses_make_fifteen_pairs():
    row = corrections()
    found = list(pairs([row], drops := Counter()))
    assert PREFERENCES.table(found).num_rows == 15
    assert drops == {}
    texts = {response["rank"]: response["text"] for response in row["responses"]}
    assert {(pair["rank_chosen"], pair["rank_rejected"]) for pair in found} == set(
        combinations(range(1, 7), 2)
    )
    for pair in found:
        assert pair["prompt"] == [{"role": "user", "content": ASK}]
        assert pair["chosen"] == [{"role": "assistant", "content": texts[pair["rank_chosen"]]}]
        assert pair["rejected"] == [{"role": "assistant", "content": texts[pair["rank_rejected"]]}]
        assert (pair["group"], pair["instruction_id"], pair["category"]) == ("i1-0", "i1", "fraud")


def test_pairs_of_several_rows_have_ids_of_their_own():
    rows = [corrections(id=id) for id in ("i1", "i1-1", "i1-1-2", "i1-11")]
    ids = [pair["id"] for pair in pairs(rows, Counter())]
    assert len(set(ids)) == len(ids) == 60
    many = corrections(responses=[{"rank": rank, "text": str(rank)} for rank in (1, 11, 12, 112)])
    assert len({pair["id"] for pair in pairs([many], Counter())}) == 6


def test_a_lost_response_takes_its_pairs_with_it():
    row = corrections(**run(scripted(syn2="")))
    assert Counter(
        rank for pair in pairs([row], Counter()) for rank in (pair["rank_chosen"], pair["rank_rejected"])
    ) == {rank: 4 for rank in (1, 2, 4, 5, 6)}


def test_equal_responses_are_no_pair_and_are_counted():
    row = corrections()
    for response in row["responses"][1:3]:
        response["text"] = "the same"
    assert len(list(pairs([row], drops := Counter()))) == 14
    assert drops == {"equal responses": 1}


@pytest.mark.parametrize("status", ["dropped", "failed"])
def test_only_rows_that_went_well_make_pairs(status):
    assert (
        list(pairs([corrections(status=status), corrections(status=status, responses=None)], Counter())) == []
    )


# -- the real sample, against another implementation


@pytest.mark.skipif(not REAL_SAMPLE.exists(), reason="the real sample is not beside this checkout")
def test_selection_and_cuts_of_the_real_sample():
    raw = {}
    for line in REAL_SAMPLE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        raw.setdefault(row["prompt"].strip(), row)
    figures = Counter()
    for row in read(Source(path=str(REAL_SAMPLE))):
        theirs = raw.pop(row["instruction"].strip())
        unsafe = [theirs[f"response_{i}"] for i in range(2) if not theirs[f"is_response_{i}_safe"]]
        assert row["unsafe_responses"] == unsafe
        asks = any(word in theirs["prompt"] for word in ("how", "what", "How", "What"))
        long = [text for text in unsafe if len(text.split()) > 80]
        figures["read"] += 1
        if not (asks and long):
            with pytest.raises(_Unfit):
                select(row, method())
            continue
        figures["selected"] += 1
        assert select(row, method()) == long[0].strip()
        marks = [i for i, character in enumerate(long[0].strip()) if character in set(',.!:;?-"(){}[]')]
        result = run(scripted(safe="I cannot help you."), row)
        if len(marks) < 4:
            assert result["error"].startswith("too few punctuation marks")
            continue
        beginnings = [
            len(syn["text"][: syn["harmful_end"]]) - len(result["opener"]) - 1
            for syn in result["responses"]
            if syn["kind"] == "syn"
        ]
        assert beginnings in [
            [marks[i * s - 1] + 1 for i in (1, 2, 3, 4)] for s in (len(marks) // 4, len(marks) // 4 - 1) if s
        ]
        figures["cut"] += 1
        figures["with a safe response"] += bool(row["safe_response"])
        figures["pairs"] += sum(1 for _ in pairs([{**row, **result}], Counter()))
    assert not raw
    assert figures == {
        "read": 277,
        "selected": 277,
        "cut": 277,
        "with a safe response": 35,
        "pairs": 277 * 15,
    }
