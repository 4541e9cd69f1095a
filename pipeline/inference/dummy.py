"""A dummy engine: the real engine's calls, with text made from the seed. For tests of scale and faults.

Its output cannot be mistaken for a model's: every text, the card, the report and the progress line say
"dummy".
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.chat import Completion, Message, Sampling
from pipeline.errors import RowFailed
from pipeline.inference.base import Engine
from pipeline.settings.base import Count, Fraction, Model
from pipeline.settings.shown import plural

_WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "jetty",
    "knoll",
    "ledge",
    "maple",
    "north",
    "ocean",
    "plain",
    "quay",
    "ridge",
    "shore",
    "tidal",
]
_POOL = random.Random(0).choices(_WORDS, k=4096)


class Dummy(Engine):
    """No model: words made from the seed, to rehearse generate and mix. `model` may be anything and is not
    read. The same request always gets the same text, delay and failure."""

    takes_adapters: ClassVar = True  # and ignores them: a run with adapters can be rehearsed
    reads_model: ClassVar = False
    is_model: ClassVar = False

    kind: Literal["dummy"] = Field("dummy", description="selects this engine")
    latency_s: float = Field(0, ge=0, description="mean seconds until a request is answered")
    failures: Fraction = Field(0, description="share of requests that fail")
    tokens: tuple[Count, Count] = Field(
        (16, 48),
        description="words of a completion, [min, max], cut at max_tokens",
    )
    max_num_seqs: Count = Field(256, description="requests answered at a time, as in a batch of vLLM")

    @property
    def requests(self) -> int:
        return self.max_num_seqs

    def open(self, model: Model, model_dir: str, adapters: Sequence[str]) -> "DummyModel":
        return DummyModel(self)

    def determines(self) -> dict:
        return {"dummy": {"failures": self.failures, "tokens": list(self.tokens)}}

    def author(self, model: Model) -> str:
        return "`dummy`, which is no model: its texts are made of random words and mean nothing"

    def described(self) -> str:
        return f"{plural(self.actors_told, 'dummy engine')}: random words, no model"

    @model_validator(mode="after")
    def _shortest_first(self) -> "Dummy":
        if self.tokens[0] > self.tokens[1]:
            raise ValueError(f"tokens must be [min, max] with min <= max, not {list(self.tokens)}")
        return self


class DummyModel:
    """The same calls as `vllm.VllmModel`. Text, length, delay and failure depend only on the seed."""

    def __init__(self, settings: Dummy):
        self._settings = settings
        self._places = asyncio.Semaphore(settings.max_num_seqs)

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` texts; the i-th depends on seed + i. A share `failures` raises RowFailed."""
        settings = self._settings
        if settings.latency_s:
            async with self._places:
                await asyncio.sleep(settings.latency_s * (0.5 + _unit(seed, 1)))
        if settings.failures and _unit(seed, 2) < settings.failures:
            raise RowFailed("the dummy model was told to fail")
        texts = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
        prompt_tokens = sum(text.count(" ") + 1 for text in texts)
        drawn = [self._text(seed + i, prompt_tokens, sampling.max_tokens) for i in range(sampling.n)]
        return [_ended(completion, sampling.stop) for completion in drawn]

    def _text(self, seed: int, prompt_tokens: int, max_tokens: int) -> Completion:
        least, most = self._settings.tokens
        wanted = least + int(_unit(seed, 3) * (most - least + 1))
        start = int(_unit(seed, 4) * (len(_POOL) - most)) if most < len(_POOL) else 0
        words = [f"dummy-{seed:016x}", *_POOL[start : start + wanted - 1]][:max_tokens]
        return Completion(
            " ".join(words), prompt_tokens, len(words), "length" if wanted > max_tokens else "stop"
        )


def _ended(completion: Completion, stop: Sequence[str]) -> Completion:
    """The completion up to the first of the stop texts; as it is without one."""
    ends = [place for text in stop if (place := completion.text.find(text)) >= 0]
    if not ends:
        return completion
    text = completion.text[: min(ends)]
    return replace(completion, text=text, completion_tokens=len(text.split()), finish_reason="stop")


def _unit(seed: int, purpose: int) -> float:
    """A pseudo-random number in [0, 1): splitmix64 of the seed, different for every purpose."""
    z = (seed + purpose * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (z ^ (z >> 31)) / 2**64
