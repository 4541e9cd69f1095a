"""What an OpenAI-compatible server says when it refuses a request, and how long it asks to wait."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx

MAX_RETRY_AFTER_S = 600.0  # limit on Retry-After; longer than our back-off

_MOVED = "the server redirects: set the endpoint's url to the address that it redirects to"
_REMEDIES = {
    **dict.fromkeys((301, 302, 303, 307, 308), _MOVED),
    401: "check the key in the environment variable that the endpoint's api_key_env names",
    402: "the account's credit is used up",
    403: "check that the key may use this model",
    404: "check the endpoint's url and model",
    405: "check the endpoint's url",
    413: "the request is longer than the server or a proxy before it takes",
}
RETRIED = (408, 409, 425, 429)  # and all from 500 on
USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # a 429 that lasts
PREFILL = {"continue_final_message": True, "add_generation_prompt": False}  # of vLLM's server
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
_WANTS_STREAM = re.compile(
    r"non-?streaming|\bstream\b[^.]{0,20}\b(?:must|has\sto|only|required)\b|\bonly\b[^.]{0,30}\bstream",
    re.IGNORECASE,
)
_NO_SUCH_PARAMETER = re.compile(
    r"unsupported|not\s(?:be\s)?support|does\snot\ssupport|un(?:known|recogni[sz]ed|expected)|extra|additional"
    r"|not\s(?:permitted|allowed|accepted|available)|only\sthe\sdefault|max_completion_tokens",
    re.IGNORECASE,
)
# A message may quote the prompt, so a parameter's name counts only in quotation marks or next to a complaint.
_COMPLAINS_OF = (
    r"""["'`]{name}["'`]|\bparameters?:?\s{name}\b|\b{name}\s?(?:[:=>]|is\b|must\b)"""
    r"""|\bun(?:known|recognized|expected|supported)\b[^."'`]{{0,40}}\b{name}\b"""
)


@dataclass(frozen=True)
class _Parameter:
    """A parameter that a server may refuse.

    instead:  the other name to send it under; None = leave it out
    whenever: also leave it out for other complaints about it, such as one about its value
    """

    instead: str | None = None
    whenever: bool = False


REFUSABLE = {
    "max_tokens": _Parameter(instead="max_completion_tokens"),
    "seed": _Parameter(whenever=True),
    "n": _Parameter(whenever=True),
    "top_p": _Parameter(),
    "temperature": _Parameter(),
    "stream": _Parameter(),  # requests have it only if a server refuses those without it
}


class Unsupported(Exception):
    """The server refuses parameters of a request that can do without them."""

    def __init__(self, parameters: frozenset[str]):
        super().__init__()
        self.parameters = parameters


class Retry(Exception):
    """A try that failed, but may succeed if repeated; `after_s` is the delay that the server asks for."""

    def __init__(self, reason: str, after_s: float = 0.0):
        super().__init__(reason)
        self.after_s = after_s


def without(body: dict, refused: frozenset[str]) -> dict:
    """A request's body without refused parameters, or with the names to use instead."""
    sent = {name: value for name, value in body.items() if name not in refused}
    sent |= {new: body[name] for name in refused if (new := REFUSABLE[name].instead)}
    return {**sent, "stream": True} if "stream" in refused else sent


def status_of(response: "httpx.Response") -> int:
    """The HTTP status; that of the error if the server wraps one in a 200 (502 if it names none)."""
    if response.status_code != 200:
        return response.status_code
    try:
        body = response.json()
        if body.get("choices") or not body.get("error"):
            return 200
        code = body["error"].get("code") if isinstance(body["error"], dict) else None
    except (ValueError, AttributeError):
        return 200
    return int(str(code)) if re.fullmatch(r"[45]\d\d", str(code)) else 502


def refused_parameters(response: "httpx.Response", sent: dict) -> frozenset[str]:
    """The parameters of a request that an error complains about and that can be left out or renamed."""
    text = _said(response)
    if "stream" not in sent and _WANTS_STREAM.search(text):
        return frozenset({"stream"})
    unknown = _NO_SUCH_PARAMETER.search(text)
    found = complained_of(response, sent, REFUSABLE)
    return frozenset(name for name in found if REFUSABLE[name].whenever or unknown)


def complained_of(response: "httpx.Response", sent: dict, names: Iterable[str]) -> set[str]:
    """Those of the parameters of a request that an error complains about."""
    text = _said(response)
    try:
        fields = set(_named(response.json()))
    except ValueError:
        return set()
    return {
        name
        for name in names
        if name in sent
        and (name in fields or re.search(_COMPLAINS_OF.format(name=name), text, re.IGNORECASE))
    }


def _said(response: "httpx.Response") -> str:
    """All texts of an error body; empty if it is no JSON."""
    try:
        return " ".join(_messages(response.json()))
    except ValueError:
        return ""


def _named(error: Any) -> Iterator[str]:
    """The parameters that an error body names in fields: OpenAI's `param`, FastAPI's `loc`."""
    if isinstance(error, dict):
        for key, value in error.items():
            if key == "param" and isinstance(value, str):
                yield value
            elif key == "loc" and isinstance(value, list) and value:
                yield str(value[-1])
            else:
                yield from _named(value)
    elif isinstance(error, list):
        for one in error:
            yield from _named(one)


def _messages(error: Any) -> Iterator[str]:
    """The texts of an error body."""
    if isinstance(error, str):
        yield error
    elif isinstance(error, dict | list):
        for one in error.values() if isinstance(error, dict) else error:
            yield from _messages(one)


def refusal(response: "httpx.Response") -> str:
    """Why a request is refused: the status and the server's error code, never the server's message."""
    status = status_of(response)
    if "context length" in response.text or "context_length" in response.text:
        return f"prompt too long for the endpoint's model (HTTP {status})"
    try:
        error = response.json()["error"]
        code = (
            str(error.get("code") or "")
            if not isinstance(error.get("code"), int)
            else str(error.get("type") or "")
        )
    except (ValueError, LookupError, TypeError, AttributeError):
        code = ""
    secret = code in response.request.headers.get("authorization", "")
    told = f" ({code})" if re.fullmatch(r"[A-Za-z_]{3,40}", code) and not secret else ""
    remedy = f"; {_REMEDIES[status]}" if status in _REMEDIES else ""
    if status == 429:
        remedy = "; the account's quota is used up"
    if status in (404, 405) and not re.search(r"/v\d", response.request.url.path):
        remedy += ": most servers answer under a path that ends in /v1"
    if status in (400, 422) and any(name in response.text for name in PREFILL):
        remedy = "; it does not seem to continue an assistant turn, as prefill: true promises"
    return f"endpoint refused the request: HTTP {status}{told}{remedy}"


def asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a response's headers ask to wait; 0 if they name none."""
    milliseconds = headers.get("retry-after-ms", "").strip()
    if _SECONDS.fullmatch(milliseconds):
        return min(float(milliseconds) / 1000, MAX_RETRY_AFTER_S)
    return _retry_after(headers.get("retry-after", ""))


def _retry_after(value: str) -> float:
    """Whole seconds that a Retry-After header asks for, rounded up; 0 if it cannot be parsed.

    Servers send a number, often with a fraction, or a date.
    """
    if _SECONDS.fullmatch(value.strip()):
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(
            UTC
        ).timestamp()
    return min(max(float(math.ceil(seconds)), 0.0), MAX_RETRY_AFTER_S)
