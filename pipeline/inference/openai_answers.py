"""The completions in an answer of an OpenAI-compatible server."""

import json
import re
from typing import TYPE_CHECKING, Any

from pipeline import thoughts
from pipeline.chat import Completion
from pipeline.errors import RowFailed
from pipeline.inference import notices
from pipeline.inference.openai_refusals import Retry

if TYPE_CHECKING:
    import httpx

# Finish reasons of several servers, in any case. Any other reason is reported and counts as cut.
_ENDS = (
    "stop", "eos", "eos_token", "stop_token", "end_turn", "stop_sequence", "end", "done", "complete",
    "completed", "finished",
)  # fmt: skip
_CUT_REASONS = (
    "length", "max_tokens", "model_length", "max_output_tokens", "max_completion_tokens",
    "model_context_window_exceeded",
)  # fmt: skip
_BROKEN_OFF = ("abort", "error", "insufficient_system_resource", "network_error")
_WITHHELD = ("content_filter", "safety", "sensitive", "prohibited_content", "blocklist", "recitation")
_CALLS = ("tool_calls", "tool_call", "tool_use", "function_call")
_TEXT_PARTS = ("text", "output_text", "refusal")
_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")


def completions_of(response: "httpx.Response", max_tokens: int) -> list[Completion]:
    """The choices of a completion of a chat or of a text.

    Raises Retry for other bodies, RowFailed for filtered text and calls of tools.

    A choice without a finish reason is cut if it is as long as it may be.

    Usage is reported per request. Every completion gets all prompt tokens, since the server reads the prompt
    once. Completion tokens are divided evenly, the remainder among the first, so the sum is right. Zero if
    not reported.
    """
    try:
        body = _body(response)
        choices = [
            (c["message"] if "message" in c else {"content": c["text"]}, c.get("finish_reason"))
            for c in body["choices"]
        ]
        usage = body.get("usage") or {}
        prompt_tokens, total = (_count(usage.get(f"{part}_tokens")) for part in ("prompt", "completion"))
        texts = [_text(message) for message, _ in choices]
        details = usage.get("completion_tokens_details") or {}
        thinking = int(details["reasoning_tokens"]) if details.get("reasoning_tokens") is not None else None
    except (ValueError, LookupError, TypeError, AttributeError):
        if response.text.lstrip()[:9].lower().startswith(("<!doctype", "<html")):
            raise Retry("the body is a web page; check the endpoint's url") from None
        raise Retry("the body is no chat completion") from None
    reasons = {str(reason).lower() for _, reason in choices}
    if not choices or reasons.intersection(_BROKEN_OFF):
        raise Retry("the answer is empty or broken off")
    if reasons.intersection(_WITHHELD):
        raise RowFailed("the endpoint's content filter withheld the answer")
    if reasons.intersection(_CALLS) or any(m.get("tool_calls") and not m.get("content") for m, _ in choices):
        raise RowFailed("the endpoint called a tool instead of answering, although it was given none")
    if unknown := reasons - {*_ENDS, *_CUT_REASONS, "none"}:
        told = ", ".join(sorted(name for name in unknown if re.fullmatch(r"[a-z_]{1,40}", name))) or "no word"
        notices.tell(f"the server ends texts with an unknown finish_reason ({told}): they count as cut")
    share, rest = divmod(total, len(choices))
    # Reported for the whole request: a share of it would be a guess.
    counted = thinking if len(choices) == 1 else None
    found = []
    for i, (text, (_, reason)) in enumerate(zip(texts, choices, strict=True)):
        tokens = share + (i < rest)
        cut = str(reason).lower() not in _ENDS if reason is not None else tokens >= max_tokens
        thought_tokens = 0 if thoughts.split(text).thought is None else counted
        end = "length" if cut else "stop"
        found.append(Completion(text, prompt_tokens, tokens, end, thought_tokens=thought_tokens))
    return found


def _count(tokens: Any) -> int:
    """A number of tokens; 0 if the server reports none."""
    try:
        return int(tokens)
    except (ValueError, TypeError, OverflowError):
        return 0


def _body(response: "httpx.Response") -> dict:
    """The body of a completion; the pieces of a streamed one (server-sent events) are joined.

    Raises ValueError for other bodies.
    """
    if not response.text.lstrip().startswith("data:"):
        return response.json()
    whole: dict[str, Any] = {}
    choices: dict[int, dict] = {}
    for line in response.text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        chunk = json.loads(data)
        whole |= {"usage": chunk.get("usage") or whole.get("usage")}
        for piece in chunk.get("choices") or ():
            choice = choices.setdefault(piece.get("index", 0), {"message": {}, "finish_reason": None})
            new = piece["delta"] if "delta" in piece else {"content": piece["text"]}
            for name, text in new.items():
                if isinstance(text, str) and name != "role":
                    choice["message"][name] = choice["message"].get(name, "") + text
                elif text:
                    choice["message"][name] = text
            choice["finish_reason"] = piece.get("finish_reason") or choice["finish_reason"]
    if any(choice["finish_reason"] is None for choice in choices.values()):
        raise ValueError("the stream broke off")
    return {**whole, "choices": [choices[index] for index in sorted(choices)]}


def _text(message: dict) -> str:
    """The new text; null counts as empty, and the text of a separate refusal field counts as text.

    The texts of a list of parts are joined. A thought that the server has split off, as a field or a part,
    is put back before the answer (see `thoughts.split`).
    """
    content, thought = message.get("content"), message.get("reasoning_content") or message.get("reasoning")
    if isinstance(content, list):
        thought = thought or "".join(map(_thought, content))
        content = "".join(map(_part, content))
    text = content or message.get("refusal") or ""
    if isinstance(thought, str) and thought.strip():
        text = thoughts.written(thought, text, ended=bool(text.strip()))
    else:
        text = thoughts.guessed(text)
    # JSON can hold half a surrogate pair, which Parquet cannot.
    return text.encode("utf-8", "replace").decode()


def _part(part: dict) -> str:
    kind = part["type"]
    if kind in _TEXT_PARTS:
        return part["refusal" if kind == "refusal" else "text"] or ""
    if kind not in _THOUGHT_PARTS:
        notices.tell("the server's answers hold parts that are neither text nor thoughts: they are left out")
    return ""


def _thought(part: dict) -> str:
    """The text of a part that is a thought: a text, or a list of text parts."""
    if part["type"] not in _THOUGHT_PARTS:
        return ""
    text = part.get(part["type"]) or part.get("text") or ""
    if isinstance(text, list):
        return "".join(one.get("text") or "" for one in text if isinstance(one, dict))
    return text if isinstance(text, str) else ""
