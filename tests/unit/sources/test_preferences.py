"""Preference sets with a prompt of their own, and the data sets that this project writes itself."""

import json

import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.methods.course_correction.schema import CORRECTIONS
from pipeline.methods.critique_revise.schema import REVISIONS
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.schema import PREFERENCES, SFT
from pipeline.suites.c2_eval.schema import CONTINUATIONS
from pipeline.suites.safety.schema import ANSWERS
from tests.unit.sources.written import counted, of_row, rows_of, write_jsonl

ASKED, GOOD, BAD = "Name a prime.", "Seven.", "No idea."


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


WHOLE = "\n\nHuman: {}\n\nAssistant: {}"
PAIRS = {
    "strings": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "messages": {"prompt": [user(ASKED)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]},
    "messages that repeat the prompt": {
        "prompt": ASKED,
        "chosen": [user(ASKED), bot(GOOD)],
        "rejected": [user(ASKED), bot(BAD)],
    },
    "strings that repeat the prompt": {
        "prompt": ASKED,
        "chosen": f"{ASKED} {GOOD}",
        "rejected": f"{ASKED}\n{BAD}",
    },
    "question": {"question": ASKED, "chosen": GOOD, "rejected": BAD},
    "query": {"query": ASKED, "chosen_response": GOOD, "rejected_response": BAD},
    "upper case": {"Instruction": ASKED, "Chosen": GOOD, " rejected": BAD},
    "one message each": {"conversations": [user(ASKED)], "chosen": bot(GOOD), "rejected": bot(BAD)},
    "from and value": {
        "conversations": [{"from": "human", "value": ASKED}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "OpenAI's": {
        "input": {"messages": [user(ASKED)]},
        "preferred_output": [bot(GOOD)],
        "non_preferred_output": [bot(BAD)],
    },
    "JSON text": {
        "prompt": json.dumps([user(ASKED)]),
        "chosen": json.dumps([bot(GOOD)]),
        "rejected": json.dumps([bot(BAD)]),
    },
    "a system turn": {
        "prompt": [{"role": "system", "content": "Count."}, user(ASKED)],
        "chosen": [bot(GOOD)],
        "rejected": [bot(BAD)],
    },
    "a prompt as transcript": {
        "prompt": f"\n\nHuman: {ASKED}\n\nAssistant:",
        "chosen": f" {GOOD}",
        "rejected": f" {BAD}",
    },
    "transcripts beside a prompt": {
        "prompt": ASKED,
        "chosen": WHOLE.format(ASKED, GOOD),
        "rejected": WHOLE.format(ASKED, BAD),
    },
    "transcripts": {"chosen": WHOLE.format(ASKED, GOOD), "rejected": WHOLE.format(ASKED, BAD)},
}


@pytest.mark.parametrize("name", PAIRS)
def test_chosen_is_safe_and_rejected_unsafe(tmp_path, name):
    asked, good, bad = of_row(tmp_path, PAIRS[name])
    assert (asked, good.strip(), bad.strip()) == (ASKED, GOOD, BAD)


def test_an_input_belongs_to_the_prompt(tmp_path):
    row = {"instruction": "Translate.", "input": "tea", "chosen": "thé", "rejected": "eau"}
    assert of_row(tmp_path, row) == ("Translate.\n\ntea", "thé", "eau")


def test_a_response_that_only_begins_like_the_prompt_is_whole(tmp_path):
    rows = [
        ({"prompt": "I", "chosen": "It is late.", "rejected": "In vain."}, ("It is late.", "In vain.")),
        ({"prompt": "Say hi", "chosen": "Say hi yourself", "rejected": "Hi"}, ("Say hi yourself", "Hi")),
        ({"prompt": "List", "chosen": "[1, 2]", "rejected": '["a"]'}, ("[1, 2]", '["a"]')),
    ]
    for row, responses in rows:
        assert of_row(tmp_path, row)[1:] == responses


def test_several_turns_are_a_transcript_and_another_dialogue_is_told(tmp_path):
    talk = [user("Hi"), bot("Hello."), user("And now?")]
    transcript = "Human: Hi\n\nAssistant: Hello.\n\nHuman: And now?"
    row = {"prompt": talk, "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}
    assert of_row(tmp_path, row) == (transcript, GOOD, BAD)
    row = {"prompt": "Hi", "chosen": [*talk, bot(GOOD)], "rejected": [*talk, bot(BAD)]}
    assert of_row(tmp_path, row) == (transcript, GOOD, BAD)
    rest = [bot("Hello."), user("And now?")]
    row = {"prompt": "Hi", "chosen": [*rest, bot(GOOD)], "rejected": [*rest, bot(BAD)]}
    assert of_row(tmp_path, row) == (transcript, GOOD, BAD)
    other = [user("Hi"), bot("Yo."), user("And now?"), bot(BAD)]
    rows, counts = counted(
        write_jsonl(tmp_path / "a.jsonl", [{"prompt": "Hi", "chosen": [*talk, bot(GOOD)], "rejected": other}])
    )
    assert (rows[0]["safe_response"], rows[0]["unsafe_response"]) == (GOOD, None)
    assert counts.notes == {"a rejected response to another dialogue is not used": 1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rejected": None}, (ASKED, GOOD, None)),
        ({"chosen": float("nan")}, (ASKED, None, BAD)),
        ({"rejected": GOOD}, (ASKED, GOOD, None)),  # no preference
        ({"prompt": None}, "chosen is not a transcript of Human and Assistant turns"),
        ({"prompt": 7}, "instruction is not a string but int"),
        ({"chosen": 7}, "safe_response is not a string but int"),
        ({"chosen": [user("x")]}, "chosen has no assistant turn"),
        (
            {"chosen": [bot([{"type": "image"}])]},
            "chosen has a message with a part that is no text, such as an image",
        ),
    ],
)
def test_pairs_that_lack_something(tmp_path, changes, expected):
    assert of_row(tmp_path, PAIRS["strings"] | changes) == expected


def test_a_prompt_that_its_dialogues_do_not_repeat_is_not_used_and_told(tmp_path):
    row = {
        "prompt": "Another question",
        "chosen": [user(ASKED), bot(GOOD)],
        "rejected": [user(ASKED), bot(BAD)],
    }
    [made], counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (made["instruction"], made["safe_response"], made["unsafe_response"]) == (ASKED, GOOD, BAD)
    assert counts.notes == {"a prompt that differs from the dialogue before its responses is not used": 1}
    _, counts = counted(write_jsonl(tmp_path / "a.jsonl", [row | {"prompt": f" {ASKED}\n"}]))
    assert not counts.notes, "white space is no difference"


# -- the project's own data sets


def write(tmp_path, schema, *rows):
    pq.write_table(schema.table(list(rows)), tmp_path / "part.parquet")
    return str(tmp_path / "part.parquet")


def test_the_projects_own_preferences_are_a_source(tmp_path):
    row = {"id": "a", "instruction_id": "a", "category": "fraud", "rank_chosen": 1, "rank_rejected": 2}
    row |= {"prompt": [user(ASKED)], "chosen": [bot(GOOD)], "rejected": [bot(BAD)]}
    rows, counts = counted(write(tmp_path, PREFERENCES, row, row | {"id": "b", "rejected": [bot("X.")]}))
    made = [(r["instruction"], r["safe_response"], r["unsafe_response"], r["category"]) for r in rows]
    assert made == [(ASKED, GOOD, BAD, "fraud")]
    assert counts.duplicates == 1


def test_the_projects_own_training_rows_are_a_source(tmp_path):
    row = {"id": "a", "instruction_id": "a", "kind": "safe", "messages": [user(ASKED), bot(GOOD)]}
    [made] = rows_of(write(tmp_path, SFT, row))
    assert (made["instruction"], made["safe_response"]) == (ASKED, GOOD)


def test_a_mistake_is_never_taken_for_the_safe_response(tmp_path):
    row = {"instruction_id": "a", "response": BAD, "status": "ok"}
    rows = [
        row | {"id": "a", "instruction": "a", "harmful": True, "safe_response": GOOD},
        row | {"id": "b", "instruction": "b", "harmful": True},
        row | {"id": "c", "instruction": "c", "harmful": None},
        row | {"id": "d", "instruction": "cut", "status": "failed", "error": "x"},
    ]
    made = rows_of(write(tmp_path, MISTAKES, *rows))
    assert [(r["safe_response"], r["unsafe_response"]) for r in made[:3]] == [
        (GOOD, BAD),
        (None, BAD),
        (None, None),
    ]
    assert made[3]["error"] == "the row failed in the run that wrote it"
    [made] = rows_of(write(tmp_path, REVISIONS, row | {"id": "a", "instruction": "a", "revision": GOOD}))
    assert (made["safe_response"], made["unsafe_response"]) == (None, None)
    row = {"id": "a", "instruction_id": "a", "instruction": "a", "unsafe_response": BAD, "status": "ok"}
    [made] = rows_of(write(tmp_path, CORRECTIONS, row))
    assert (made["safe_response"], made["unsafe_response"]) == (None, BAD)


@pytest.mark.parametrize("schema", [ANSWERS, CONTINUATIONS], ids=lambda schema: schema.name)
def test_what_evaluate_wrote_is_named_for_what_it_is(tmp_path, schema):
    row = {"id": "a", "instruction_id": "a", "instruction": "a", "arm": "vanilla"}
    with pytest.raises(UserError, match="holds the arms' answers that `evaluate` wrote; name the source"):
        rows_of(write(tmp_path, schema, row))
