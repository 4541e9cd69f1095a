"""The endpoint client against a real HTTP server on 127.0.0.1: what it sends, and what it makes of the answer."""

import asyncio

import pytest

from pipeline import thoughts
from pipeline.chat import Completion, Sampling, assistant, user
from pipeline.errors import RowFailed
from pipeline.inference.openai import EndpointModel
from pipeline.settings.base import Endpoint
from tests.unit.inference.endpoint.servers import (
    KEY,
    PROMPT,
    Answer,
    ask,
    chat,
    serving,
)


def test_request_and_answer():
    with serving(chat("Hello.", finish="length")) as server:
        assert ask(server) == [Completion("Hello.", 7, 10, "length")]
    [(path, headers, body)] = server.requests
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 1,
        "seed": 100,
    }


def test_a_thought_that_the_server_splits_off_stands_before_the_answer():
    details = {"completion_tokens_details": {"reasoning_tokens": 6}}
    for key in ("reasoning_content", "reasoning"):
        message = {"role": "assistant", "content": "\n\nSure.", key: "hm"}
        usage = {"prompt_tokens": 7, "completion_tokens": 9} | details
        body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}
        with serving(Answer(body=body)) as server:
            [completion] = ask(server)
        assert thoughts.split(completion.text) == ("hm", "Sure.")
        assert completion.thought_tokens == 6
    cut = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    with serving(Answer(body={"choices": [{"message": cut, "finish_reason": "length"}]})) as server:
        [completion] = ask(server)
    assert thoughts.split(completion.text) == ("hm", None) and completion.thought_tokens is None
    with serving(chat("hm\n</think>\nSure.")) as server:  # its own prompt has begun the thought
        assert thoughts.split(ask(server)[0].text) == ("hm", "Sure.")


def test_arguments_of_the_chat_template_are_sent():
    async def run(url):
        model = EndpointModel(Endpoint(url=url, model="m"), {"enable_thinking": False})
        try:
            await model.complete([user(PROMPT)], Sampling(20), seed=1, adapter=None)
        finally:
            await model.aclose()

    with serving(chat("Hello.")) as server:
        asyncio.run(run(server.url))
    assert server.requests[0][2]["chat_template_kwargs"] == {"enable_thinking": False}


def test_no_key_no_header():
    with serving(chat("Hello.")) as server:
        ask(server, api_key_env=None)
    assert "Authorization" not in server.requests[0][1]


def test_n_choices_share_the_usage():
    with serving(chat("a", "b", "c", usage=(7, 11))) as server:
        completions = ask(server, n=3)
    assert [c.text for c in completions] == ["a", "b", "c"]
    assert [c.prompt_tokens for c in completions] == [7, 7, 7]
    assert [c.completion_tokens for c in completions] == [4, 4, 3]
    assert server.requests[0][2]["n"] == 3


def test_missing_choices_are_asked_for_with_other_seeds():
    with serving(chat("a", "b"), chat("c"), chat("d", "surplus")) as server:
        assert [c.text for c in ask(server, n=4)] == ["a", "b", "c", "d"]
    assert [(body["n"], body["seed"]) for _, _, body in server.requests] == [(4, 100), (2, 102), (1, 103)]


def test_usage_may_be_missing():
    with serving(chat("a", usage=None)) as server:
        assert ask(server) == [Completion("a", 0, 0, "stop")]


def test_concurrency_is_limited_and_used():
    answer = chat("a")
    answer.hang_s = 0.05
    with serving(answer) as server:
        assert len(ask(server, calls=12, concurrency=3)) == 12
    assert server.most_in_flight == 3


def test_prefill_needs_a_server_that_can():
    messages = [user("Hi"), assistant("Sure,")]
    with serving(chat(" here.")) as server:
        with pytest.raises(RowFailed, match="set its prefill: true"):
            ask(server, messages=messages)
        assert server.requests == []
        assert ask(server, messages=messages, prefill=True)[0].text == " here."
    body = server.requests[0][2]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["messages"] == messages


@pytest.mark.parametrize("prefill", [False, True])
def test_a_closed_turn_is_followed_by_the_judges_own(prefill):
    """Every server can do that, so it does not matter whether this one can continue a turn."""
    messages = [user("Hi"), assistant("Hello.")]
    with serving(chat("safe")) as server:
        assert ask(server, messages=messages, closed=True, prefill=prefill)[0].text == "safe"
    body = server.requests[0][2]
    assert body["add_generation_prompt"] is True
    assert "continue_final_message" not in body
    assert body["messages"] == messages


def test_a_conversation_that_ends_in_a_request_is_sent_alike_whether_turns_are_closed_or_not():
    bodies = []
    for closed in (False, True):
        with serving(chat("a")) as server:
            ask(server, closed=closed)
        bodies.append(server.requests[0][2])
    assert bodies[0] == bodies[1]
    assert "add_generation_prompt" not in bodies[0]


def text(*texts, finish="stop"):
    choices = [{"index": i, "text": t, "finish_reason": finish} for i, t in enumerate(texts)]
    return Answer(body={"choices": choices, "usage": {"prompt_tokens": 4, "completion_tokens": 6}})


def test_a_text_is_completed_without_a_template():
    with serving(text(" yes", " no", finish="length")) as server:
        answers = ask(server, messages="[INST] Is it? [/INST]", n=2)
    assert answers == [Completion(" yes", 4, 3, "length"), Completion(" no", 4, 3, "length")]
    [(path, _, body)] = server.requests
    assert path == "/v1/completions"
    assert body == {
        "model": "m",
        "prompt": "[INST] Is it? [/INST]",
        "max_tokens": 20,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": 100,
    }


@pytest.mark.parametrize(
    "body",
    [{"choices": [{"finish_reason": "stop"}]}, {"choices": [{"text": 5}]}],
)
def test_a_completion_without_text_is_asked_for_again(body):
    with serving(Answer(body=body), text(" yes")) as server:
        assert ask(server, messages="Is it?")[0].text == " yes"
    assert len(server.requests) == 2


def test_adapters_need_vllm():
    with (
        serving(chat("a")) as server,
        pytest.raises(RowFailed, match="use an engine that takes adapters"),
    ):
        ask(server, adapter="run/adapter/sft")
    assert server.requests == []
