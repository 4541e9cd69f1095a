"""Answers of all kinds of servers: parts, streams, words for the end, and what is no answer."""

import json

import pytest

from pipeline import thoughts
from pipeline.errors import RowFailed
from tests.unit.inference.endpoint.servers import Answer, ask, chat, serving


def test_content_filter_fails_the_row():
    with (
        serving(chat("", finish="content_filter")) as server,
        pytest.raises(RowFailed, match="content filter"),
    ):
        ask(server)


def test_null_content_and_refusals_and_broken_surrogates():
    odd = [{"content": None}, {"content": None, "refusal": "I cannot."}, {"content": "half \ud83d pair"}]
    body = {"choices": [{"message": m, "finish_reason": "stop"} for m in odd]}
    with serving(Answer(body=body)) as server:
        assert [c.text for c in ask(server, n=3)] == ["", "I cannot.", "half ? pair"]


def test_the_texts_of_parts_are_joined_and_their_thoughts_stand_before_them(told):
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "They may be lying."}]},
        {"type": "text", "text": "I can"},
        {"type": "reasoning", "text": "Hm."},
        {"type": "output_text", "text": "not."},
    ]
    contents = [parts, [{"type": "refusal", "refusal": "No."}], [], [parts[0]]]
    body = {"choices": [{"message": {"content": c}, "finish_reason": "stop"} for c in contents]}
    with serving(Answer(body=body)) as server:
        said = [thoughts.split(c.text) for c in ask(server, n=4)]
    assert [(s.thought, s.answer) for s in said] == [
        ("They may be lying.Hm.", "I cannot."),
        (None, "No."),
        (None, ""),
        ("They may be lying.", None),
    ]
    assert told == []


def test_parts_of_an_unknown_kind_are_told(told):
    body = {"choices": [{"message": {"content": [{"type": "image"}, {"type": "text", "text": "a"}]}}]}
    with serving(Answer(body=body)) as server:
        assert ask(server)[0].text == "a"
    assert len(told) == 1 and "neither text nor thoughts" in told[0]


@pytest.mark.parametrize(
    ("reason", "tokens", "finish"),
    [
        ("length", 5, "length"),
        ("MAX_TOKENS", 5, "length"),
        ("model_length", 5, "length"),
        (None, 20, "length"),
        (None, 19, "stop"),
        ("stop", 20, "stop"),
        ("eos", 5, "stop"),
    ],
)
def test_a_cut_answer_is_known_by_each_servers_word_for_it(reason, tokens, finish):
    with serving(chat("a", finish=reason, usage=(1, tokens))) as server:
        assert ask(server)[0].finish_reason == finish


def one(content=None, reason="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}}
    return Answer(body={"choices": [{**choice, "finish_reason": reason}]})


def events(*chunks) -> Answer:
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    return Answer(body=("".join(lines) + "data: [DONE]\n\n").encode())


def piece(reason=None, index=0, **delta) -> dict:
    return {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}


STREAMED = events(
    piece(role="assistant", content=""),
    piece(reasoning_content="hm"),
    piece(content="Su"),
    piece(index=1, content="No."),
    piece(content="re."),
    piece("length", index=1),
    piece("stop"),
    {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 4}},
)


def test_the_pieces_of_a_stream_are_joined(told):
    with serving(STREAMED) as server:
        found = ask(server, n=2)
    assert [(c.text, c.finish_reason) for c in found] == [
        ("<think>hm</think>Sure.", "stop"),
        ("No.", "length"),
    ]
    assert found[0].prompt_tokens == 7 and not told


def test_a_server_that_streams_only_is_asked_so(told):
    refusal = "parameter.enable_thinking must be set to false for non-streaming calls"
    with serving(Answer(400, {"error": {"message": refusal}}), STREAMED) as server:
        assert [c.finish_reason for c in ask(server, n=2)] == ["stop", "length"]
    assert [body.get("stream") for *_, body in server.requests] == [None, True]
    assert told == [
        f"the server {server.url} does not accept requests without stream: they are sent with it, and the"
        " parts joined"
    ]


def test_a_stream_that_breaks_off_is_asked_for_again():
    with serving(events(piece(content="Su")), chat("Sure.")) as server:
        assert ask(server)[0].text == "Sure."


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (one(None, "tool_calls", tool_calls=[{"function": {"name": "f"}}]), "called a tool"),
        (one("", "function_call", function_call={"name": "f"}), "called a tool"),
        (one(None, "stop", tool_calls=[{"function": {"name": "f"}}]), "called a tool"),
        (one("", "SAFETY"), "content filter withheld"),
        (one("", "sensitive"), "content filter withheld"),
        (one("half", "insufficient_system_resource"), "in 3 tries, last: the answer is empty or broken off"),
        (one("half", "network_error"), "in 3 tries, last: the answer is empty or broken off"),
        (Answer(body=b"<!DOCTYPE html><html>"), "in 3 tries, last: the body is a web page; check the"),
        (Answer(429, {"error": {"code": "insufficient_quota"}}), "quota is used up"),
        (Answer(402, {}), "HTTP 402; the account's credit is used up"),
        (Answer(413, b"<html>"), "HTTP 413; the request is longer"),
        (Answer(307, b"", {"Location": "https://other/v1"}), "HTTP 307; the server redirects: set the"),
    ],
    ids=str,
)
def test_what_is_no_answer_fails_the_row_with_a_remedy(answer, why):
    with serving(answer) as server, pytest.raises(RowFailed, match=why):
        ask(server)
    assert len(server.requests) == (3 if "3 tries" in why else 1)


def test_a_refusal_beside_an_empty_text_is_the_text():
    with serving(one("", refusal="I cannot.")) as server:
        assert ask(server)[0].text == "I cannot."


@pytest.mark.parametrize("reason", ["max_output_tokens", "MODEL_CONTEXT_WINDOW_EXCEEDED", "budget", {"a": 1}])
def test_an_unknown_reason_to_finish_counts_as_cut_and_is_told(reason, told):
    with serving(one("It ends in mid", reason)) as server:
        assert ask(server)[0].is_cut
    unknown = reason == "budget" or not isinstance(reason, str)
    assert bool(told) == unknown and all("unknown finish_reason" in notice for notice in told)


def test_equal_samples_are_told(told):
    text = "A text that two samples have in common by no chance."
    with serving(chat(text, text), chat("Yes.", "Yes.")) as server:
        ask(server, n=2)
        ask(server, n=2)
    assert told == [
        f"the server {server.url} gave equal texts for several samples of a request: it seems to draw them with"
        " one seed"
    ]


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": float("nan")}, {"completion_tokens": "many"}])
def test_no_usage_costs_an_answer(usage):
    answer = one("Sure.")
    answer.body["usage"] = usage
    with serving(answer) as server:
        assert ask(server)[0].text == "Sure."
