"""Parameters that servers refuse are left out, or sent under another name, and that is told once."""

import pytest

from pipeline.chat import assistant, user
from pipeline.errors import RowFailed
from tests.unit.inference.endpoint.servers import KEY, PROMPT, Answer, ask, ask_twice, picky, serving

UNSUPPORTED = {
    "openai": (
        "max_tokens",
        {
            "message": "Unsupported parameter: 'max_tokens' is not supported with this model. Use"
            " 'max_completion_tokens' instead.",
            "type": "invalid_request_error",
            "param": "max_tokens",
            "code": "unsupported_parameter",
        },
    ),
    "openai in words": ("max_tokens", {"message": "max_tokens is not supported, use max_completion_tokens"}),
    "seed by param": ("seed", {"message": "no", "param": "seed"}),
    "seed in words": ("seed", {"message": "Unrecognized request argument supplied: seed"}),
    "seed of a JSON schema": (
        "seed",
        {"message": "Additional properties are not allowed ('seed' was unexpected)"},
    ),
    "seed of a proto": ("seed", {"message": 'Invalid JSON payload. Unknown name "seed": Cannot find field.'}),
    "seed's range": ("seed", {"message": "seed must be less than 2147483648"}),
    "top_p": ("top_p", {"message": "`top_p` is not supported by this model"}),
    "n": ("n", {"message": "Only n=1 is supported"}),
    "n by param": ("n", {"message": "too many", "param": "n"}),
    "temperature": (
        "temperature",
        {
            "message": "Unsupported value: 'temperature' does not support 0.5 with this model. Only the default"
            " (1) value is supported.",
            "param": "temperature",
            "code": "unsupported_value",
        },
    ),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_a_parameter_that_the_server_refuses_is_left_out_from_then_on_and_told_once(case, told):
    name, error = UNSUPPORTED[case]
    with picky(Answer(400, {"error": error}), name) as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    bodies = [body for _, _, body in server.requests]
    assert [name in body for body in bodies] == [True, False, False], "refused once, then left out"
    assert all(
        body.get("max_completion_tokens") == (20 if name == "max_tokens" else None) for body in bodies[1:]
    )
    [notice] = told
    assert f"does not accept {name}: " in notice and PROMPT not in notice and KEY not in notice


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(
            422,
            {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "input": 1, "msg": "Extra"}]},
        ),
        Answer(
            422, {"message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}}
        ),
        Answer(200, {"error": {"code": 400, "message": "unknown field `seed`"}}),
    ],
    ids=["FastAPI", "Mistral", "wrapped in a 200"],
)
def test_other_forms_of_refusal(refusal, told):
    with picky(refusal, "seed") as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    assert len(server.requests) == 3 and len(told) == 1


def test_several_refused_parameters_are_found_one_after_the_other(told):
    also = {
        name: Answer(400, {"error": {"message": f"Unsupported parameter: '{name}'"}})
        for name in ("max_tokens", "seed", "top_p")
    }
    with picky(Answer(500), also=also) as server:
        assert ask_twice(server) == ["Hello.", "Hello."]
    assert len(server.requests) == 3 + 2 and len(told) == 3
    assert set(server.requests[-1][2]) == {"model", "messages", "temperature", "n", "max_completion_tokens"}


def test_samples_are_asked_for_one_by_one_where_n_is_refused(told):
    with picky(Answer(400, {"error": {"message": "n must be 1", "param": "n"}}), "n") as server:
        assert len(ask(server, n=3)) == 3
    assert [body.get("seed") for _, _, body in server.requests] == [100, 100, 101, 102]


@pytest.mark.parametrize(
    "error",
    [
        {"message": f"{PROMPT}: a seed of n grapes", "code": "invalid"},
        {"message": "max_tokens is too large: 20. This model supports at most 10.", "param": "max_tokens"},
        {"message": "temperature must be at most 0.1", "param": "temperature"},
        {"message": "bad request", "param": "messages"},
    ],
    ids=["words of the prompt", "value of max_tokens", "value of temperature", "messages"],
)
def test_other_complaints_are_no_reason_to_leave_something_out(error, told):
    with serving(Answer(400, {"error": error})) as server, pytest.raises(RowFailed, match="HTTP 400"):
        ask(server)
    assert len(server.requests) == 1 and told == []


def test_nothing_is_remembered_if_the_request_fails_anyway(told):
    refused = Answer(400, {"error": {"message": "no", "param": "seed"}})
    with serving(refused) as server, pytest.raises(RowFailed, match="HTTP 400"):
        ask(server)
    assert ["seed" in body for _, _, body in server.requests] == [True, False] and told == []


def test_a_server_that_cannot_continue_turns_is_said_to_be_one():
    error = {"error": {"message": "Unrecognized request argument supplied: continue_final_message"}}
    with serving(Answer(400, error)) as server, pytest.raises(RowFailed, match="as prefill: true promises"):
        ask(server, messages=[user("Hi"), assistant("Sure,")], prefill=True)
