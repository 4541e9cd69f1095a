"""Conversations as other people write them: names, roles, parts, what is left out of them and told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from tests.unit.sources.written import counted, of_row, only, rows_of, write_jsonl

ASKED, SAID = "How do I prune a rose bush?", "Cut above an outward bud."


def turns(*pairs, role="role", content="content"):
    return [{role: who, content: text} for who, text in pairs]


EXCHANGE = turns(("user", ASKED), ("assistant", SAID))
READ = {
    "sharegpt": {"conversations": turns(("human", ASKED), ("gpt", SAID), role="from", content="value")},
    "roles human and gpt": {"messages": turns(("human", ASKED), ("gpt", SAID))},
    "prompter": {"messages": turns(("prompter", ASKED), ("assistant", SAID), content="text")},
    "model": {"messages": turns(("user", ASKED), ("model", SAID))},
    "chatbot": {"dialogue": turns(("User", ASKED), ("Chatbot", SAID), role="speaker", content="text")},
    "instruction and bot": {"conversation": turns(("instruction", ASKED), ("bot", SAID))},
    "marked roles": {"messages": turns(("<|user|>", ASKED), ("ASSISTANT:", SAID))},
    "langchain": {"messages": turns(("human", ASKED), ("ai", SAID), role="type")},
    "typed parts": {
        "messages": turns(
            ("user", [{"type": "text", "text": ASKED}]), ("assistant", [{"type": "text", "text": SAID}])
        )
    },
    "parts of a response's API": {
        "messages": turns(
            ("user", [{"type": "input_text", "text": ASKED}]),
            ("assistant", [{"type": "output_text", "text": SAID}]),
        )
    },
    "parts as strings": {"messages": turns(("user", [ASKED]), ("assistant", {"type": "text", "text": SAID}))},
    "JSON text": {"messages": json.dumps(EXCHANGE)},
    "Python text": {"conversations": repr(EXCHANGE)},
    "nested": {"messages": {"messages": EXCHANGE}},
    "a struct of lists": {"messages": {"role": ["user", "assistant"], "content": [ASKED, SAID]}},
    "a transcript": {"conversation": f"\n\nHuman: {ASKED}\n\nAssistant: {SAID}"},
    "upper-case column": {" Messages ": EXCHANGE},
    "prompt and completion": {"prompt": EXCHANGE[:1], "completion": EXCHANGE[1:]},
    "a prompt with a string's response": {"prompt": EXCHANGE[:1], "response": SAID},
    "a whole conversation in prompt": {"prompt": EXCHANGE},
    "a response beside an unanswered conversation": {"messages": EXCHANGE[:1], "answer": SAID},
    "exchanges": {"conversation": [{"human": ASKED, "assistant": SAID}, {"human": "More?", "assistant": 7}]},
    "exchanges by other names": {"dialog": [{"instruction": ASKED, "output": SAID}]},
    "a model's name as role": {"messages": turns(("user", ASKED), ("gpt-3.5-turbo", SAID))},
    "text inside text": {
        "messages": turns(("user", [{"type": "text", "text": {"value": ASKED}}]), ("assistant", SAID))
    },
    "texts in turn": {"data": [ASKED, SAID, "More?"]},
    "JSON of texts in turn": {"conversations": json.dumps([ASKED, SAID])},
    "Python of texts in turn": {"conversations": repr([ASKED, SAID])},
    "pairs": {"conversation": [[ASKED, SAID], ["More?", "No."]]},
    "roles and texts": {"messages": [["user", ASKED], ["assistant", SAID]]},
    "JSON in JSON": {"messages": json.dumps(json.dumps(EXCHANGE))},
    "a list of JSON texts": {"messages": [*map(json.dumps, EXCHANGE)]},
    "Gemini's parts": {
        "contents": turns(("user", [{"text": ASKED}]), ("model", [{"text": SAID}]), content="parts")
    },
    "a transcript by lines": {"transcript": f"Human: {ASKED}\nAssistant: {SAID}\nHuman: More?"},
    "a transcript of Windows": {"conversation": f"Human: {ASKED}\r\n\r\nAssistant: {SAID}"},
    "no conversation but a prompt": {"turns": 2, "prompt": ASKED, "response": SAID},
    "parts as JSON text": {
        "messages": turns(("user", json.dumps([{"type": "text", "text": ASKED}])), ("assistant", SAID))
    },
    "a refusal beside empty content": {
        "messages": [EXCHANGE[0], {"role": "assistant", "content": None, "refusal": SAID}]
    },
    "an answer in two messages": {
        "messages": turns(("user", ASKED), ("assistant", "Cut above"), ("assistant", "an outward bud."))
    },
}


@pytest.mark.parametrize("name", READ)
def test_a_conversation_is_read_whatever_it_is_called(tmp_path, name):
    asked, said, unsafe = of_row(tmp_path, READ[name])
    assert (asked, " ".join(said.split()), unsafe) == (ASKED, SAID, None)


def test_a_prompt_that_is_a_list_of_messages_is_its_user_turn(tmp_path):
    assert of_row(tmp_path, {"prompt": EXCHANGE[:1]}) == (ASKED, None, None)
    with_system = turns(("system", "Be brief."), ("user", ASKED))
    pair = {"prompt": with_system, "chosen": [*with_system, EXCHANGE[1]], "rejected": "No."}
    for row in ({"prompt": with_system}, pair):
        rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
        assert rows[0]["instruction"] == ASKED
        assert counts.notes == {"a system turn is not used": 1}, "rows are counted"


def test_conversations_of_parquet(tmp_path):
    table = pa.Table.from_pylist([READ["sharegpt"], READ["sharegpt"] | {"id": "x"}])
    pq.write_table(table, tmp_path / "a.parquet")
    assert only(tmp_path / "a.parquet")["safe_response"] == SAID


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        (["How do I prune", " a rose bush?"], "How do I prune a rose bush?"),
        (["Look at this.", "What is it?"], "Look at this.\nWhat is it?"),
        (["one\n", "two"], "one\ntwo"),
    ],
)
def test_text_parts_are_joined_and_words_do_not_run_into_each_other(tmp_path, parts, text):
    content = [{"type": "text", "text": part} for part in parts]
    assert of_row(tmp_path, {"messages": turns(("user", content))})[0] == text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "x"}},
        {"type": "image"},
        {"type": "input_audio", "input_audio": {}},
        {"image": "x.png"},
        {"type": "text", "text": None},
        7,
    ],
)
def test_a_part_that_is_no_text_spoils_its_row(tmp_path, part):
    row = {"messages": turns(("user", [{"type": "text", "text": "What is this?"}, part]))}
    assert of_row(tmp_path, row) == "messages has a message with a part that is no text, such as an image"


def test_texts_in_turns_are_all_the_users(tmp_path):
    rows, counts = counted(
        write_jsonl(tmp_path / "a.jsonl", [{"turns": [ASKED, "More?"], "category": "garden"}])
    )
    made = rows[0]
    assert (made["instruction"], made["safe_response"], made["category"]) == (ASKED, None, "garden")
    assert counts.notes == {"turns after the first exchange are not used": 1}


def test_what_is_no_conversation_beside_a_prompt_is_told(tmp_path):
    _, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"turns": 2, "prompt": ASKED}]))
    assert counts.notes == {"turns that is not a list of messages is not used": 1}


@pytest.mark.parametrize("weight", [{"weight": 0}, {"weight": 0.0}, {"train": False}])
def test_an_answer_not_to_learn_is_no_response_and_told(tmp_path, weight):
    row = {"messages": [EXCHANGE[0], EXCHANGE[1] | weight]}
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (rows[0]["instruction"], rows[0]["safe_response"]) == (ASKED, None)
    assert counts.notes == {"an answer of weight 0 is not used": 1}
    for kept in ({"weight": 1}, {"weight": None}, {"train": True}):
        assert of_row(tmp_path, {"messages": [EXCHANGE[0], EXCHANGE[1] | kept]}) == (ASKED, SAID, None)


def test_replies_in_a_tree_are_told(tmp_path):
    prompt = {"role": "prompter", "text": ASKED, "replies": [{"role": "assistant", "text": SAID}]}
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"prompt": prompt}]))
    assert (rows[0]["instruction"], rows[0]["safe_response"]) == (ASKED, None)
    assert counts.notes == {"replies in a tree of messages are not used": 1}


def test_rows_that_are_single_messages_are_refused_for_what_they_are(tmp_path):
    rows = [{"message_id": 1, "parent_id": None, "role": "prompter", "text": ASKED}]
    with pytest.raises(UserError, match="its rows are single messages; join those of a conversation"):
        rows_of(write_jsonl(tmp_path / "a.jsonl", rows))


LATER = {
    "an image": turns(("user", [{"type": "image"}]))[0],
    "no content": {"role": "user", "content": None},
    "a number": {"role": "assistant", "content": 7},
    "an unknown role": {"role": "narrator", "content": "x"},
    "no message": None,
    "a text": "hello",
    "a tool": {"role": "user", "tool_calls": [{}]},
}


@pytest.mark.parametrize("name", LATER)
def test_turns_that_are_not_used_spoil_nothing(tmp_path, name):
    row = {"messages": [*EXCHANGE, {"role": "user", "content": "More"}, LATER[name]]}
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [row]))
    assert (rows[0]["instruction"], rows[0]["safe_response"]) == (ASKED, SAID)
    assert counts.notes == {"turns after the first exchange are not used": 1}
    answered = {"messages": [*row["messages"], {"role": "assistant", "content": "Z"}], "output": "unused"}
    assert of_row(tmp_path, answered) == (ASKED, SAID, None)


LEFT_OUT = {
    "a system turn is not used": turns(("system", "Be kind."), ("user", ASKED), ("assistant", SAID)),
    "an assistant's turn before the first user turn is not used": turns(
        ("gpt", "Hello!"), ("human", ASKED), ("gpt", SAID)
    ),
    "a thought of the assistant is not used": turns(
        ("user", ASKED),
        ("assistant", [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": SAID}]),
    ),
}


@pytest.mark.parametrize("note", LEFT_OUT)
def test_what_is_left_out_of_a_conversation_is_told(tmp_path, note):
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"messages": LEFT_OUT[note]}]))
    assert (rows[0]["instruction"], rows[0]["safe_response"]) == (ASKED, SAID)
    assert counts.notes == {note: 1} and f"{note}: 1" in counts.told()


@pytest.mark.parametrize(
    "after",
    [
        [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}, {"role": "tool", "content": "3"}],
        [{"role": "assistant", "content": "I look."}, {"role": "tool", "content": "3"}],
        turns(("function_call", "{}"), ("observation", "3"), ("gpt", SAID)),
        turns(("assistant", [{"type": "text", "text": "I look."}, {"type": "tool_use", "name": "f"}])),
        [{"role": "model", "parts": [{"functionCall": {"name": "f"}}]}],
    ],
)
def test_an_answer_through_a_tool_is_no_response_and_told(tmp_path, after):
    rows, counts = counted(write_jsonl(tmp_path / "a.jsonl", [{"messages": [EXCHANGE[0], *after]}]))
    assert (rows[0]["instruction"], rows[0]["safe_response"]) == (ASKED, None)
    assert counts.notes == {"an answer that goes through a tool is not used": 1}


def test_turns_in_a_row_are_one_turn(tmp_path):
    row = {"messages": turns(("user", "Two things."), ("user", "How tall?"), ("assistant", SAID))}
    assert of_row(tmp_path, row) == ("Two things.\n\nHow tall?", SAID, None)


def test_a_response_to_a_whole_dialogue_has_the_dialogue_as_instruction(tmp_path):
    asked = turns(("user", "Hi"), ("assistant", "Hello."), ("user", "And now?"))
    row = {"prompt": asked, "completion": turns(("assistant", "Tea."))}
    transcript = "Human: Hi\n\nAssistant: Hello.\n\nHuman: And now?"
    assert of_row(tmp_path, row) == (transcript, "Tea.", None)
    assert of_row(tmp_path, {"prompt": asked}) == ("Hi", "Hello.", None)


@pytest.mark.parametrize(
    ("talk", "reason"),
    [
        (turns(("system", "Be kind.")), "messages has no user turn"),
        (turns(("assistant", "Hello.")), "messages has no user turn"),
        (turns(("narrator", "Once"), ("user", ASKED)), "messages has a message without a known role"),
        (turns(("user", ASKED), ("oracle", SAID)), "messages has a message without a known role"),
        (turns(("user", None)), "messages has a message without text content"),
        (turns(("user", " ")), "instruction is empty"),
        ("[{'role': ", "messages is not a list of messages"),
        ('{"a": 1}', "messages is not a list of messages"),
        ("[" * 100_000, "messages is not a list of messages"),
        (["hello", 7], "messages is not a list of messages"),
        ([["hello", "ho", "he"]], "messages is not a list of messages"),
        (7, "messages is not a list of messages"),
    ],
)
def test_a_conversation_that_cannot_be_used_has_its_reason(tmp_path, talk, reason):
    assert of_row(tmp_path, {"messages": talk}) == reason


def test_a_mapped_column_may_hold_a_conversation(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"talk": EXCHANGE, "prompt": "not me"}])
    [row] = rows_of(path, columns={"instruction": "talk"})
    assert (row["instruction"], row["safe_response"]) == (ASKED, SAID)
