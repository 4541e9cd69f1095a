"""C²-Eval: which prefills are continued, by our rules and by the authors', and how the paths are judged."""

import asyncio
import json
import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import prompts
from pipeline.data.store import reason
from pipeline.errors import RowFailed, UserError
from pipeline.models import check_prefill
from pipeline.settings.base import Source
from pipeline.sources.instructions import read
from pipeline.suites.c2_eval import C2Eval
from pipeline.suites.c2_eval.recipe import ContinuationRecipe, work
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from tests import tiny
from tests.scripted import ScriptedChat, instruction

REAL_SAMPLE = Path(__file__).parents[4] / "shared/data/pku_saferlhf_sample.jsonl"
OPENERS = prompts.load("methods/course_correction/prompts.yaml").lines("openers")
ARMS = ("vanilla", "sft", "mistake_analysis", "other")
ADAPTERS = {"sft": "/run/sft", "mistake_analysis": "/run/analysis", "other": "/elsewhere"}
LONG = "\n".join(f"{i}.  Take  number {i}" for i in range(25))  # 100 words, lines and double spaces
TURN, HELP = " However, I cannot go on with this.", " a printer and some paper."


def suite(**settings) -> C2Eval:
    return C2Eval(entries={"path": "unused"}, **settings)


def listed(entries, seed=0, tokenizer=None, **settings) -> list[dict]:
    return list(work(suite(**settings), ARMS, seed, entries, tokenizer))


def entry(*unsafe: str, id="e1") -> dict:
    return instruction(id=id, instruction_id=id, unsafe_responses=list(unsafe))


def prefills(*unsafe, seed=0, tokenizer=None, **settings) -> dict[int, list[str]]:
    rows = listed([entry(*unsafe)], seed, tokenizer, **settings)
    return {row["k"]: row["prefills"] for row in rows if row["arm"] == "vanilla"}


def opener_of(text: str) -> str:
    return next(opener for opener in OPENERS if text.startswith(opener + " "))


# -- the work


def test_every_entry_is_continued_from_every_length_by_every_arm():
    rows = listed([entry(LONG), entry(LONG, id="e2")])
    assert CONTINUATIONS.table(rows).num_rows == 2 * 4 * 8
    assert Counter((row["instruction_id"], row["arm"]) for row in rows) == {
        (e, arm): 8 for e in ("e1", "e2") for arm in ARMS
    }
    assert {row["k"] for row in rows} == set(range(10, 90, 10))
    assert len({row["id"] for row in rows}) == len(rows)
    assert all("status" not in row and len(row["prefills"]) == 1 for row in rows)


def test_all_arms_continue_the_same_prefills():
    by_arm = {arm: {} for arm in ARMS}
    for row in listed([entry(LONG)]):
        by_arm[row["arm"]][row["k"]] = row["prefills"]
    assert by_arm["vanilla"] == by_arm["sft"] == by_arm["mistake_analysis"] == by_arm["other"]


def test_a_prefill_is_an_opener_and_k_words_with_their_own_white_space():
    for k, [text] in prefills(f"  {LONG}").items():
        said = text.removeprefix(opener_of(text) + " ")
        assert LONG.startswith(said)
        assert said.split() == LONG.split()[:k]
        assert text == text.rstrip()


def test_the_opener_is_fixed_by_seed_entry_and_length():
    assert prefills(LONG) == prefills(LONG)
    of_seeds = [opener_of(prefills(LONG, seed=seed)[10][0]) for seed in range(12)]
    of_lengths = [opener_of(text) for [text] in prefills(LONG).values()]
    assert len(set(of_seeds)) > 1 and len(set(of_lengths)) > 1


def test_the_first_response_longer_than_the_longest_prefill_is_taken():
    exactly, first, second = "word " * 80, "first " * 81, "second " * 81
    assert prefills("short", exactly, first, second)[10] == prefills(first)[10] != prefills(second)[10]
    assert prefills(exactly, lengths=[5, 79])[79][0].endswith(" word" * 79)


@pytest.mark.parametrize(
    ("unsafe", "why"),
    [
        ([], "no unsafe response in the source"),
        (["word " * 80, "word"], "unsafe response not longer than the longest prefill: 80 words"),
    ],
)
def test_an_entry_that_cannot_be_measured_is_one_dropped_row(unsafe, why):
    row, *others = listed([entry(*unsafe), entry(LONG, id="e2")])
    assert (row["id"], row["instruction_id"], row["status"], row["error"]) == (
        "e1-dropped",
        "e1",
        "dropped",
        why,
    )
    [written] = CONTINUATIONS.table([row]).to_pylist()
    assert written["arm"] is written["k"] is written["prefills"] is None
    assert len(others) == 4 * 8
    assert ":" not in reason(why) and not any(c.isdigit() for c in reason(why))


# -- tokens

SAID = "how can i bake a cake, forge the ticket ☃ first. " * 8


def test_a_prefill_of_k_tokens_is_the_responses_first_k_tokens():
    tokenizer = tiny.tokenizer()
    ids = tokenizer(SAID.strip(), add_special_tokens=False)["input_ids"]
    whole = [
        k
        for k in (1, 7, 30, 71)
        if tokenizer.decode(ids[:k]) == tokenizer.decode(ids[:k]).rstrip()
        and "\ufffd" not in tokenizer.decode(ids[:k])
    ]
    assert len(whole) >= 3
    for k, [text] in prefills(SAID, tokenizer=tokenizer, unit="tokens", lengths=whole).items():
        said = text.removeprefix(opener_of(text) + " ")
        assert tokenizer(said, add_special_tokens=False)["input_ids"] == ids[:k]


def test_no_prefill_of_tokens_ends_in_half_a_character_or_in_white_space():
    tokenizer = tiny.tokenizer()
    count = len(tokenizer(SAID.strip(), add_special_tokens=False)["input_ids"])
    for [text] in prefills(SAID, tokenizer=tokenizer, unit="tokens", lengths=list(range(1, count))).values():
        said = text.removeprefix(opener_of(text) + " ")
        assert SAID.startswith(said) and said == said.rstrip()


def test_the_response_is_longer_than_the_longest_prefill_in_tokens_too():
    tokenizer = tiny.tokenizer()
    count = len(tokenizer(SAID.strip(), add_special_tokens=False)["input_ids"])
    row = listed([entry(SAID)], tokenizer=tokenizer, unit="tokens", lengths=[count])[0]
    assert row["error"] == f"unsafe response not longer than the longest prefill: {count} tokens"


def test_a_tokenizer_without_offsets_is_one_sentence():
    with pytest.raises(UserError, match=r"unit = tokens: the tokenizer of my/model .* use unit: words"):
        listed(
            [entry(LONG)], tokenizer=SimpleNamespace(is_fast=False, name_or_path="my/model"), unit="tokens"
        )


# -- the authors' rules


def by_the_scripts(openers: list[str], response: str, k: int) -> list[str]:
    texts = [f"{opener} {response}" for opener in openers]
    return [text if len(text.split()) < k else " ".join(text.split()[:k]) for text in texts]


def agrees_with_the_scripts(row: dict, response: str, k: int) -> bool:
    """Some sequence of openers gives these prefills."""
    return all(
        any(text == by_the_scripts([opener], response, k)[0] for opener in OPENERS)
        for text in row["prefills"]
    )


def test_the_authors_count_the_opener_and_join_words_by_one_space():
    found = prefills(LONG, authors_rules=True, paths=30)
    assert {k: {len(text.split()) for text in texts} for k, texts in found.items()} == {
        k: {k} for k in range(10, 90, 10)
    }
    assert all("\n" not in text and "  " not in text for texts in found.values() for text in texts)
    assert all(agrees_with_the_scripts({"prefills": texts}, LONG, k) for k, texts in found.items())
    assert len({opener_of(text) for text in found[80]}) > 3, "an opener for every path"
    assert [len(texts) for texts in found.values()] == [30] * 8


def test_the_authors_take_the_first_unsafe_response_however_short():
    found = prefills("Use  a\nprinter.", LONG, authors_rules=True, paths=2)
    assert all(text == f"{opener_of(text)} Use  a\nprinter." for text in found[80])
    for k, [text] in prefills(
        "Use  a\nprinter.", authors_rules=True, paths=1, lengths=list(range(1, 20))
    ).items():
        assert ("  " in text) == (len(text.split()) < k), (
            "a text of exactly k words is joined like a longer one"
        )
    [row] = listed([entry()], authors_rules=True)
    assert (row["status"], row["error"]) == ("dropped", "no unsafe response in the source")


@pytest.mark.skipif(not REAL_SAMPLE.exists(), reason="the real sample is not beside this checkout")
def test_prefills_of_the_real_sample():
    raw = {}
    for line in REAL_SAMPLE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        raw.setdefault(
            row["prompt"].strip(), [row[f"response_{i}"] for i in (0, 1) if not row[f"is_response_{i}_safe"]]
        )
    entries = list(read(Source(path=str(REAL_SAMPLE))))
    ours = [row for row in listed(entries) if row["arm"] == "vanilla"]
    theirs = [row for row in listed(entries, authors_rules=True, paths=2) if row["arm"] == "vanilla"]
    assert len(ours) == len(theirs) == 277 * 8
    for row in ours:
        response = next(text for text in raw[row["instruction"].strip()] if len(text.split()) > 80)
        [text] = row["prefills"]
        said = text.removeprefix(opener_of(text) + " ")
        assert response.strip().startswith(said) and said.split() == response.split()[: row["k"]]
    assert all(agrees_with_the_scripts(row, raw[row["instruction"].strip()][0], row["k"]) for row in theirs)


# -- the recipe


def row(arm="sft", texts=("Sure. Take",), **changes) -> dict:
    return {
        "id": "r",
        "instruction": "How?",
        "arm": arm,
        "k": 10,
        "prefills": list(texts),
        "status": None,
    } | changes


def run(chat, asked=None, **settings) -> dict:
    return asyncio.run(ContinuationRecipe(suite(**settings), ADAPTERS)(asked or row(), chat))


@pytest.mark.parametrize(("arm", "adapter"), [("vanilla", None), *ADAPTERS.items()])
def test_one_call_samples_all_paths_of_the_arm(arm, adapter):
    chat = ScriptedChat(**{"continue": [TURN, HELP, TURN]})
    result = run(chat, row(arm), paths=3, draw={"max_tokens": 7, "temperature": 0.2, "top_p": 0.4})
    assert result == {"paths": [TURN, HELP, TURN], "corrected": [True, False, True], "status": "ok"}
    [(step, messages, sampling, used)] = chat.asked
    assert (step, used) == ("continue", adapter)
    assert (sampling.n, sampling.max_tokens, sampling.temperature, sampling.top_p) == (3, 7, 0.2, 0.4)
    assert messages == [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Sure. Take"}]


def test_every_path_is_judged_by_the_model_without_adapter():
    chat = ScriptedChat(**{"continue": [TURN, " \n", HELP], "judge0": "Yes", "judge2": "Hm."})
    result = run(chat, paths=3, judge={"kind": "yes_no"})
    assert result["corrected"] == [
        True,
        False,
        None,
    ], "nothing said corrects nothing, an unreadable verdict is unknown"
    assert [(step, adapter) for step, _, _, adapter in chat.asked] == [
        ("continue", "/run/sft"),
        ("judge0", None),
        ("judge2", None),
    ]
    assert "Beginning: Sure. Take\n" in chat.prompt("judge0") and TURN in chat.prompt("judge0")


def test_by_the_authors_rules_every_path_begins_in_its_own_way_and_what_is_unreadable_is_a_no():
    chat = ScriptedChat(continue0=TURN, continue1=HELP, judge0="Yes", judge1="Hm.")
    result = run(
        chat,
        row(texts=["Sure. Take", "Of course. Take"]),
        paths=2,
        authors_rules=True,
        judge={"kind": "yes_no"},
    )
    assert (result["paths"], result["corrected"]) == ([TURN, HELP], [True, False])
    assert (chat.prompt("continue0"), chat.prompt("continue1")) == ("Sure. Take", "Of course. Take")
    assert "Beginning: Of course. Take\n" in chat.prompt("judge1")
    assert [
        (sampling.n, adapter) for step, _, sampling, adapter in chat.asked if step.startswith("continue")
    ] == [(1, "/run/sft")] * 2


def test_a_verdict_whose_call_fails_is_unknown_unless_all_fail():
    failed = RowFailed("prompt too long")
    yes_no = {"paths": 2, "judge": {"kind": "yes_no"}}
    assert run(ScriptedChat(**{"continue": HELP, "judge0": failed, "judge1": "No"}), **yes_no)[
        "corrected"
    ] == [None, False]
    with pytest.raises(RowFailed, match="prompt too long"):
        run(ScriptedChat(**{"continue": HELP, "judge0": failed, "judge1": failed}), **yes_no)
    with pytest.raises(RowFailed, match="prompt too long"):
        run(ScriptedChat(**{"continue": failed}))
    with pytest.raises(ZeroDivisionError):
        run(ScriptedChat(**{"continue": HELP, "judge0": ZeroDivisionError(), "judge1": "No"}), **yes_no)


def test_a_dropped_entry_stays_as_it_is():
    chat = ScriptedChat()
    assert run(chat, row(None, k=None, prefills=None, status="dropped")) == {}
    assert chat.asked == []


def test_the_recipe_travels():
    assert pickle.loads(pickle.dumps(ContinuationRecipe(suite(judge={"kind": "yes_no"}), ADAPTERS)))


# -- templates


def test_a_template_that_can_continue_a_turn():
    check_prefill(tiny.template(), "my/model")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}",
        "{{ raise_exception('Roles must end with user') }}",
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'].split(':')[-1] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] }}{% endfor %}{{ messages[-1]['content'].split(':')[-1] }}",
    ],
)
def test_a_template_that_cannot_is_one_sentence(template):
    with pytest.raises(
        UserError,
        match=r"^model\.path = my/model: its chat template cannot continue .*; replace chat_template\.jinja",
    ):
        check_prefill(tiny.template(template), "my/model")
