"""An OpenAI-compatible server as engine, and its client: concurrency limit, retries, n samples, prefill.

Servers accept different parameters. If a server refuses one, the request is sent again without it or under
its other name; the client remembers this and reports it once.

The key is read from the environment, kept only in the request header, and never part of a message. A server's
error text is never part of a message either, because it may repeat the prompt or the key.

`openai_answers.py` reads the completions of an answer, `openai_refusals.py` what a server says otherwise.
"""

import asyncio
import os
import random
import re
import ssl
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.request import getproxies

from pydantic import Field

from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed, UserError
from pipeline.inference import notices
from pipeline.inference.base import Engine
from pipeline.inference.openai_answers import completions_of
from pipeline.inference.openai_refusals import (
    PREFILL,
    REFUSABLE,
    RETRIED,
    USED_UP,
    Retry,
    Unsupported,
    asked_to_wait,
    complained_of,
    refusal,
    refused_parameters,
    status_of,
    without,
)
from pipeline.settings.base import Endpoint, Model

if TYPE_CHECKING:
    import httpx

FIRST_DELAY_S = 0.5  # before the first retry; doubled for each further one
MAX_DELAY_S = 60.0
_OF_VLLM = ("top_k", "min_p", "repetition_penalty")  # no parameters of OpenAI's; SGLang has them too
_SAME_SAMPLES = 40  # characters of equal samples from which on they are no coincidence


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
            verify=_certificates(),
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
        if sampling.first_rank is not None:
            raise RowFailed("an endpoint cannot be told the first token: leave first_ranks out")
        if prefilled and not self._endpoint.prefill:
            raise RowFailed(
                "the endpoint may not continue an assistant turn: set its prefill: true if the server can"
            )
        body = {
            "model": self._endpoint.model,
            **({"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}),
            "max_tokens": sampling.max_tokens,
            **_set(sampling),
        }
        if self._arguments and not isinstance(prompt, str):  # vLLM's and SGLang's name
            body["chat_template_kwargs"] = self._arguments
        if prefilled:
            body |= PREFILL
        elif answered:
            body |= {"add_generation_prompt": True}
        completions: list[Completion] = []
        while (missing := sampling.n - len(completions)) > 0:
            completions += await self._request(body | {"n": missing, "seed": seed + len(completions)})
        texts = {completion.text for completion in completions}
        drawn = sampling.n > 1 and sampling.temperature != 0
        if drawn and len(texts) == 1 and len(texts.pop()) > _SAME_SAMPLES:
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
                    found = completions_of(await self._post(without(body, refused)), body["max_tokens"])
                    self._remember(refused)
                    return found
                except Unsupported as e:  # at most once per parameter
                    refused |= e.parameters
                    continue
                except Retry as e:
                    problem = e
                if retry == self._endpoint.retries:
                    break
                await asyncio.sleep(max(_backoff(retry), problem.after_s))
                retry += 1
        raise RowFailed(f"endpoint gave no usable answer in {retry + 1} tries, last: {problem}")

    def _remember(self, refused: frozenset[str]) -> None:
        """Leave out these parameters from now on, because the server answered without them; report that."""
        for name in sorted(refused - self._refused):
            instead = REFUSABLE[name].instead
            done = (
                f"{instead} is sent instead" if instead else "it is left out, so the server's default applies"
            )
            if name == "stream":
                name, done = "requests without stream", "they are sent with it, and the parts joined"
            notices.tell(f"the server {self._endpoint.url} does not accept {name}: {done}")
        self._refused |= refused

    async def _post(self, body: dict) -> "httpx.Response":
        """Raises Retry if there is no answer or a retryable status, RowFailed if the server refuses.

        Raises Unsupported if it refuses parameters that can be left out.
        """
        import httpx

        path = "completions" if "prompt" in body else "chat/completions"
        try:
            async with asyncio.timeout(self._endpoint.timeout_s):
                response = await self._client.post(path, json=body)
        except TimeoutError:
            raise Retry(f"no answer in {self._endpoint.timeout_s:g} s") from None
        except httpx.HTTPError as e:
            raise Retry(type(e).__name__) from None
        status = status_of(response)
        if 200 <= status < 300:
            return response
        if (status in RETRIED or status >= 500) and not any(name in response.text for name in USED_UP):
            raise Retry(f"HTTP {status}", asked_to_wait(response.headers))
        if status in (400, 422) and (odd := refused_parameters(response, body)):
            raise Unsupported(odd)
        if status in (400, 422) and (named := complained_of(response, body, ("stop", *_OF_VLLM))):
            raise RowFailed(
                f"endpoint refused {' and '.join(sorted(named))}: leave it out, or use a server that takes it"
                " (vLLM does)"
            )
        raise RowFailed(refusal(response))


@cache
def _certificates() -> ssl.SSLContext:
    """The certificates that servers are checked against. Loading them takes longer than a request, so all
    clients of a process share them."""
    import httpx

    return httpx.create_ssl_context()


def _set(sampling: Sampling) -> dict[str, Any]:
    """The settings that are sent: those that are set. For the others, the server's own defaults apply."""
    names = ("temperature", "top_p", *_OF_VLLM)
    found = {name: value for name in names if (value := getattr(sampling, name)) is not None}
    return {**found, "stop": list(sampling.stop)} if sampling.stop else found


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


def _backoff(retry: int) -> float:
    """Exponential back-off; the upper half is random, so that clients do not retry in step."""
    return min(MAX_DELAY_S, FIRST_DELAY_S * 2**retry) * random.uniform(0.5, 1.0)
