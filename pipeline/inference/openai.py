"""An OpenAI-compatible server as engine, and its client: concurrency limit, retries, n samples, prefill.

Servers accept different parameters. If a server refuses one, the request is sent again without it or under
its other name; the client remembers this and reports it once.

The key is read from the environment, kept only in the request header, and never part of a message. A server's
error text is never part of a message either, because it may repeat the prompt or the key.
"""

import asyncio
import json
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.request import getproxies

from pydantic import Field

from pipeline import thoughts
from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed, UserError
from pipeline.inference import notices
from pipeline.inference.base import Engine
from pipeline.settings.base import Endpoint, Model

if TYPE_CHECKING:
    import httpx

FIRST_DELAY_S = 0.5  # before the first retry; doubled for each further one
MAX_DELAY_S = 60.0
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
_RETRIED = (408, 409, 425, 429)  # and all from 500 on
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # a 429 that lasts
_PREFILL = {"continue_final_message": True, "add_generation_prompt": False}  # of vLLM's server
_SECONDS = re.compile(r"\d{1,9}(?:\.\d{1,9})?", re.ASCII)
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
_SAME_SAMPLES = 40  # characters of equal samples from which on they are no coincidence
_WANTS_STREAM = re.compile(
    r"non-?streaming|\bstream\b[^.]{0,20}\b(?:must|has\sto|only|required)\b|\bonly\b[^.]{0,30}\bstream",
    re.IGNORECASE,
)
_TEXT_PARTS = ("text", "output_text", "refusal")
_THOUGHT_PARTS = ("thinking", "reasoning", "redacted_thinking")
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


_REFUSABLE = {
    "max_tokens": _Parameter(instead="max_completion_tokens"),
    "seed": _Parameter(whenever=True),
    "n": _Parameter(whenever=True),
    "top_p": _Parameter(),
    "temperature": _Parameter(),
    "stream": _Parameter(),  # requests have it only if a server refuses those without it
}


class OpenAI(Endpoint, Engine):
    """An OpenAI-compatible server answers; an actor is a client. The server's model is `engine.model`; the
    run's `model` is the one that is trained."""

    reads_model: ClassVar = False
    is_client: ClassVar = True

    kind: Literal["openai"] = Field("openai", description="selects this engine")

    @property
    def requests(self) -> int:
        return self.concurrency

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> "EndpointModel":
        return EndpointModel(self, model.chat_template_kwargs)

    def check(self, field: str) -> None:
        check(self, field)

    def check_prefill(self, field: str, asker: str) -> None:
        if not self.prefill:
            raise UserError(
                f"{field}.prefill = false: {asker} continues turns; set it to true if the server can, or use"
                " another engine"
            )

    def determines(self) -> dict:
        return {"endpoint": {"url": self.url, "model": self.model}}

    def author(self, model: Model) -> str:
        return f"`{self.model}` of an OpenAI-compatible server"

    def described(self) -> str:
        return f"{self.url}, {self.concurrency} requests in flight per actor × {self.actors_told}"


def check(endpoint: Endpoint, field: str = "endpoint") -> None:
    """Check an endpoint before anything is sent.

    Raises UserError if the URL has no host or may hold a secret, or if the key is not in the environment.
    """
    import httpx

    try:
        url = httpx.URL(endpoint.url)
    except httpx.InvalidURL:
        url = httpx.URL()
    odd = "%" in url.host and ":" not in url.host  # a space, say; an IPv6 address may have a zone
    if not url.host or odd or (url.port or 0) > 65535:
        raise UserError(
            f"{field}.url = {endpoint.url}: not a URL with a host; write it as http://host:8000/v1"
        )
    if url.userinfo:  # would be stored with the configuration and logged with every request
        raise UserError(
            f"{field}.url: holds a user or password; leave them out, a key goes into the environment"
        )
    if url.query or url.fragment:  # some servers take their key in the query
        raise UserError(
            f"{field}.url: holds more than a path (? or #); leave it out, a key goes into the environment"
        )
    if added := re.search(r"(/chat)?/completions$|/chat$|/models$|/responses$", url.path.rstrip("/")):
        raise UserError(
            f"{field}.url = {endpoint.url}: the path of the requests is added to it; leave out {added[0]}"
        )
    _key(endpoint, field)
    _check_proxy(field)


def _check_proxy(field: str) -> None:
    """Raises UserError for a proxy in the environment that httpx cannot use, whatever the host."""
    import httpx

    try:
        httpx.Client(verify=False).close()  # nothing is sent; certificates take a while to load
    except (ImportError, ValueError, httpx.InvalidURL):
        odd = {name: url.partition("://")[0] for name, url in getproxies().items()}
        names = [
            f"{name}_proxy ({scheme}://)" for name, scheme in odd.items() if not scheme.startswith("http")
        ]
        raise UserError(
            f"{field}.url: the proxy in the environment variable {' or '.join(names) or '*_proxy'} cannot be"
            " used; unset it or name an http:// proxy, or write socks5:// and install httpx[socks]"
        ) from None


class EndpointModel:
    """A client of one server and model. The same calls as `vllm.VllmModel`, without adapters.

    chat_template_kwargs: for the server to render prompts with; a server that cannot may refuse them.
    """

    def __init__(self, endpoint: Endpoint, chat_template_kwargs: Mapping[str, Any] | None = None):
        import httpx

        check(endpoint)
        self._arguments = dict(chat_template_kwargs or {})
        key = _key(endpoint)
        self._endpoint = endpoint
        self._refused: frozenset[str] = frozenset()  # parameters that this server does not take
        self._slots = asyncio.Semaphore(endpoint.concurrency)
        self._client = httpx.AsyncClient(
            base_url=endpoint.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(
                max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency
            ),
            # _post limits the time of a whole try. httpx's limits are per read, so a slow trickle would pass.
            timeout=None,
        )

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` continuations. If the server returns fewer choices, request the missing ones.

        A request's seed is seed + the number of samples so far, so the i-th sample has seed + i on servers
        that, like vLLM's, count up within a request. Servers may ignore the seed.

        Raises RowFailed if the server refuses the request, gives no usable answer after all retries, or does
        not support the request.
        """
        answered = not isinstance(prompt, str) and prompt[-1]["role"] == "assistant"
        prefilled = answered and prefill
        if adapter is not None:
            raise RowFailed(
                "an endpoint has no adapters, it serves each under a model name: use an engine that takes"
                " adapters"
            )
        if prefilled and not self._endpoint.prefill:
            raise RowFailed(
                "the endpoint may not continue an assistant turn: set its prefill: true if the server can"
            )
        body = {
            "model": self._endpoint.model,
            **({"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}),
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if self._arguments and not isinstance(prompt, str):  # vLLM's and SGLang's name
            body["chat_template_kwargs"] = self._arguments
        if prefilled:
            body |= _PREFILL
        elif answered:
            body |= {"add_generation_prompt": True}
        completions: list[Completion] = []
        while (missing := sampling.n - len(completions)) > 0:
            completions += await self._request(body | {"n": missing, "seed": seed + len(completions)})
        texts = {completion.text for completion in completions}
        if sampling.n > 1 and sampling.temperature and len(texts) == 1 and len(texts.pop()) > _SAME_SAMPLES:
            notices.tell(
                f"the server {self._endpoint.url} gave equal texts for several samples of a request: it seems"
                " to draw them with one seed"
            )
        return completions[: sampling.n]

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _request(self, body: dict) -> list[Completion]:
        """One request with retries; at least one completion. Holds its slot while waiting to retry."""
        async with self._slots:
            retry, refused = 0, self._refused
            while True:
                try:
                    found = _completions(await self._post(_without(body, refused)), body["max_tokens"])
                    self._remember(refused)
                    return found
                except _Unsupported as e:  # at most once per parameter
                    refused |= e.parameters
                    continue
                except _Retry as e:
                    problem = e
                if retry == self._endpoint.retries:
                    break
                await asyncio.sleep(max(_backoff(retry), problem.after_s))
                retry += 1
        raise RowFailed(f"endpoint gave no usable answer in {retry + 1} tries, last: {problem}")

    def _remember(self, refused: frozenset[str]) -> None:
        """Leave out these parameters from now on, because the server answered without them; report that."""
        for name in sorted(refused - self._refused):
            instead = _REFUSABLE[name].instead
            done = (
                f"{instead} is sent instead" if instead else "it is left out, so the server's default applies"
            )
            if name == "stream":
                name, done = "requests without stream", "they are sent with it, and the parts joined"
            notices.tell(f"the server {self._endpoint.url} does not accept {name}: {done}")
        self._refused |= refused

    async def _post(self, body: dict) -> "httpx.Response":
        """Raises _Retry if there is no answer or a retryable status, RowFailed if the server refuses.

        Raises _Unsupported if it refuses parameters that can be left out.
        """
        import httpx

        path = "completions" if "prompt" in body else "chat/completions"
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await self._client.post(path, json=body)
        except TimeoutError:
            raise _Retry(f"no answer in {self._endpoint.timeout_s:g} s") from None
        except httpx.HTTPError as e:
            raise _Retry(type(e).__name__) from None
        status = _status(response)
        if 200 <= status < 300:
            return response
        if (status in _RETRIED or status >= 500) and not any(name in response.text for name in _USED_UP):
            raise _Retry(f"HTTP {status}", _asked_to_wait(response.headers))
        if status in (400, 422) and (odd := _refused_parameters(response, body)):
            raise _Unsupported(odd)
        raise RowFailed(_refusal(response))


class _Unsupported(Exception):
    """The server refuses parameters of a request that can do without them."""

    def __init__(self, parameters: frozenset[str]):
        super().__init__()
        self.parameters = parameters


class _Retry(Exception):
    """A try that failed, but may succeed if repeated; `after_s` is the delay that the server asks for."""

    def __init__(self, reason: str, after_s: float = 0.0):
        super().__init__(reason)
        self.after_s = after_s


def _key(endpoint: Endpoint, field: str = "endpoint") -> str | None:
    name = endpoint.api_key_env
    if name is None:
        return None
    key = os.environ.get(name, "").strip()
    if not key:
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,60}", name):  # users may put the key itself into the field
            raise UserError(f"{field}.api_key_env: not a variable that is set; name the one with the key")
        raise UserError(
            f"{field}.api_key_env = {name}: not set; export it, or api_key_env: null for a server without"
            " keys"
        )
    # Such a key would make the header fail, with the key in the message.
    if not (key.isascii() and key.isprintable()) or " " in key or key[0] in "\"'":
        raise UserError(f"{field}.api_key_env = {name}: holds characters that no key has; export it again")
    return key


def _without(body: dict, refused: frozenset[str]) -> dict:
    """A request's body without refused parameters, or with the names to use instead."""
    sent = {name: value for name, value in body.items() if name not in refused}
    sent |= {new: body[name] for name in refused if (new := _REFUSABLE[name].instead)}
    return {**sent, "stream": True} if "stream" in refused else sent


def _status(response: "httpx.Response") -> int:
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


def _refused_parameters(response: "httpx.Response", sent: dict) -> frozenset[str]:
    """The parameters of a request that an error complains about and that can be left out or renamed."""
    try:
        body = response.json()
    except ValueError:
        return frozenset()
    named = set(_named(body))
    text = " ".join(_messages(body))
    named |= {name for name in _REFUSABLE if re.search(_COMPLAINS_OF.format(name=name), text, re.IGNORECASE)}
    if "stream" not in sent and _WANTS_STREAM.search(text):
        return frozenset({"stream"})
    unknown = _NO_SUCH_PARAMETER.search(text)
    return frozenset(
        name
        for name, parameter in _REFUSABLE.items()
        if name in named and name in sent and (parameter.whenever or unknown)
    )


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


def _completions(response: "httpx.Response", max_tokens: int) -> list[Completion]:
    """The choices of a completion of a chat or of a text.

    Raises _Retry for other bodies, RowFailed for filtered text and calls of tools.

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
            raise _Retry("the body is a web page; check the endpoint's url") from None
        raise _Retry("the body is no chat completion") from None
    reasons = {str(reason).lower() for _, reason in choices}
    if not choices or reasons.intersection(_BROKEN_OFF):
        raise _Retry("the answer is empty or broken off")
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


def _refusal(response: "httpx.Response") -> str:
    """Why a request is refused: the status and the server's error code, never the server's message."""
    status = _status(response)
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
    if status in (400, 422) and any(name in response.text for name in _PREFILL):
        remedy = "; it does not seem to continue an assistant turn, as prefill: true promises"
    return f"endpoint refused the request: HTTP {status}{told}{remedy}"


def _backoff(retry: int) -> float:
    """Exponential back-off; the upper half is random, so that clients do not retry in step."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2**retry) * random.uniform(0.5, 1.0)


def _asked_to_wait(headers: Mapping[str, str]) -> float:
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
