"""The engine's calls on an OpenAI-compatible server: concurrency limit, retries, n samples, prefill.

The key is read from the environment, kept only in the request header, and never part of a message. A server's
error
text is never part of a message either: it may repeat the prompt or the key.
"""

import asyncio
import os
import random
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from pipeline import thoughts
from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed, UserError
from pipeline.settings.base import Endpoint

FIRST_DELAY_S = 0.5  # before the first retry; doubled for each further one
MAX_DELAY_S = 60.0
MAX_RETRY_AFTER_S = 600.0  # limit on Retry-After; longer than our back-off

_MENDS = {
    401: "check the key in the environment variable that the endpoint's api_key_env names",
    403: "check that the key may use this model",
    404: "check the endpoint's url and model",
}


def check(endpoint: Endpoint, field: str = "inference.endpoint") -> None:
    """Check an endpoint before anything is sent.

    Raises UserError if the URL has no host or may hold a secret, or if the key is not in the environment.
    """
    try:
        url = httpx.URL(endpoint.url)
    except httpx.InvalidURL:
        url = httpx.URL()
    if not url.host:
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
    _key(endpoint, field)


class EndpointModel:
    """A client of one server and model. The same calls as `engine.VllmModel`, without adapters.

    chat_template_kwargs: for the server to render prompts with; a server that cannot may refuse them.
    """

    def __init__(self, endpoint: Endpoint, chat_template_kwargs: Mapping[str, Any] | None = None):
        check(endpoint)
        self._arguments = dict(chat_template_kwargs or {})
        key = _key(endpoint)
        self._endpoint = endpoint
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
        self, messages: list[Message], sampling: Sampling, *, seed: int, adapter: str | None
    ) -> list[Completion]:
        """Sample `sampling.n` continuations. If the server returns fewer choices, request the missing ones.

        A request's seed is seed + the number of samples so far, so the i-th sample has seed + i on servers
        that, like vLLM's, count up within a request. Servers may ignore the seed.

        Raises RowFailed if the server refuses the request, gives no usable answer after all retries, or does
        not support the request.
        """
        prefilled = messages[-1]["role"] == "assistant"
        if adapter is not None:
            raise RowFailed(
                "an endpoint has no adapters, it serves each under a model name: leave inference.endpoint"
                " unset to use vLLM"
            )
        if prefilled and not self._endpoint.prefill:
            raise RowFailed(
                "the endpoint may not continue an assistant turn: set inference.endpoint.prefill: true if the"
                " server can"
            )
        body = {
            "model": self._endpoint.model,
            "messages": messages,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        if self._arguments:  # vLLM's and SGLang's name
            body["chat_template_kwargs"] = self._arguments
        if prefilled:  # the parameters of vLLM's server
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        completions: list[Completion] = []
        while (missing := sampling.n - len(completions)) > 0:
            completions += await self._request(body | {"n": missing, "seed": seed + len(completions)})
        return completions[: sampling.n]

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _request(self, body: dict) -> list[Completion]:
        """One request with retries; at least one completion. Holds its slot while waiting to retry."""
        async with self._slots:
            for retry in range(self._endpoint.retries + 1):
                try:
                    return _completions(await self._post(body))
                except _Retry as e:
                    problem = e
                if retry < self._endpoint.retries:
                    await asyncio.sleep(max(_backoff(retry), problem.after_s))
        raise RowFailed(
            f"endpoint gave no usable answer in {self._endpoint.retries + 1} tries, last: {problem}"
        )

    async def _post(self, body: dict) -> httpx.Response:
        """Raises _Retry if there is no answer or a retryable status, RowFailed if the server refuses."""
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await self._client.post("chat/completions", json=body)
        except TimeoutError:
            raise _Retry(f"no answer in {self._endpoint.timeout_s:g} s") from None
        except httpx.HTTPError as e:
            raise _Retry(type(e).__name__) from None
        if response.is_success:
            return response
        if response.status_code in (408, 429) or response.is_server_error:
            raise _Retry(
                f"HTTP {response.status_code}", _retry_after(response.headers.get("retry-after", ""))
            )
        raise RowFailed(_refusal(response))


class _Retry(Exception):
    """A try that failed, but may succeed if repeated; `after_s` is the delay that the server asks for."""

    def __init__(self, reason: str, after_s: float = 0.0):
        super().__init__(reason)
        self.after_s = after_s


def _key(endpoint: Endpoint, field: str = "inference.endpoint") -> str | None:
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
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(f"{field}.api_key_env = {name}: holds characters that no key has; export it again")
    return key


def _completions(response: httpx.Response) -> list[Completion]:
    """The choices of a chat completion. Raises _Retry for other bodies, RowFailed for filtered text.

    Usage is reported per request. Every completion gets all prompt tokens, since the server reads the prompt
    once. Completion tokens are divided evenly, the remainder among the first, so the sum is right. Zero if
    not reported.
    """
    try:
        body = response.json()
        choices = [(c["message"], c.get("finish_reason")) for c in body["choices"]]
        usage = body.get("usage") or {}
        prompt_tokens, total = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        texts = [_text(message) for message, _ in choices]
        details = usage.get("completion_tokens_details") or {}
        thinking = int(details["reasoning_tokens"]) if details.get("reasoning_tokens") is not None else None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _Retry("the body is no chat completion") from None
    if not choices or any(reason in ("abort", "error") for _, reason in choices):
        raise _Retry("the answer is empty or broken off")
    if any(reason == "content_filter" for _, reason in choices):
        raise RowFailed("the endpoint's content filter withheld the answer")
    share, rest = divmod(total, len(choices))
    # Reported for the whole request: a share of it would be a guess.
    counted = thinking if len(choices) == 1 else None
    return [
        Completion(
            text,
            prompt_tokens,
            share + (i < rest),
            "length" if reason == "length" else "stop",
            thought_tokens=0 if thoughts.split(text).thought is None else counted,
        )
        for i, (text, (_, reason)) in enumerate(zip(texts, choices, strict=True))
    ]


def _text(message: dict) -> str:
    """The new text; null counts as empty, and the text of a separate refusal field counts as text.

    A thought that the server has split off is put back before the answer (see `thoughts.split`).
    """
    content = message.get("content")
    text = content if content is not None else message.get("refusal") or ""
    thought = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thought, str) and thought.strip():
        text = thoughts.written(thought, text, ended=bool(text.strip()))
    else:
        text = thoughts.guessed(text)
    return text.encode(
        "utf-8", "replace"
    ).decode()  # JSON can spell half a surrogate pair, which Parquet cannot hold


def _refusal(response: httpx.Response) -> str:
    """Why a request is refused: the status and the server's error code, never the server's message."""
    status = response.status_code
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
    return f"endpoint refused the request: HTTP {status}{told}" + (
        f"; {_MENDS[status]}" if status in _MENDS else ""
    )


def _backoff(retry: int) -> float:
    """Exponential back-off; the upper half is random, so that clients do not retry in step."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2**retry) * random.uniform(0.5, 1.0)


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for (a number or a date); 0 if it cannot be parsed."""
    if value.strip().isdecimal():
        seconds = float(value)
    else:
        try:
            date = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(
            UTC
        ).timestamp()
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
