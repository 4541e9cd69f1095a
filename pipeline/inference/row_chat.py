"""The chat of one row: what it asks which model, what was answered before, and what it costs.

A row that asks a model which its pass does not serve waits: it is run again in a pass of that model, and gets
its earlier answers (see `pool`).
"""

import asyncio
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline import thoughts
from pipeline.chat import Completion, Message, Sampling, with_system
from pipeline.errors import NoAnswer, RowFailed
from pipeline.inference.base import LanguageModel
from pipeline.inference.beside import NotOpen

if TYPE_CHECKING:
    from pipeline.inference.pool import ModelSpec

OWN = "-"  # the name of a row's own model; no entry of `models` is called that


class Clients:
    """Clients of servers, each opened once per process, at its first request."""

    def __init__(self):
        self._open: list[tuple[ModelSpec, LanguageModel]] = []

    def open(self, spec: "ModelSpec") -> LanguageModel:
        for known, model in self._open:
            if known == spec:
                return model
        self._open.append((spec, spec.open()))
        return self._open[-1][1]


class OpenModels:
    """The models that a pass serves to the rows of one job, by name.

    engine: the pool's own, open engine, and its `ModelSpec`. Servers are opened beside it.
    beside: open engines of other models.
    """

    def __init__(
        self,
        models: Mapping[str, "ModelSpec"],
        spec: "ModelSpec",
        engine: LanguageModel,
        clients: Clients,
        beside: Mapping["ModelSpec", LanguageModel] | None = None,
    ):
        self._models, self._spec, self._engine, self._clients = models, spec, engine, clients
        self._beside = beside or {}
        self._found: dict[str, LanguageModel | None] = {} if OWN in models else {OWN: engine}

    def get(self, name: str) -> LanguageModel | None:
        """The model, or None if this pass does not serve it."""
        if name not in self._found:
            spec = self._models[name]
            served = self._engine if spec == self._spec else self._beside.get(spec)
            if served is None and spec.engine.is_client:
                served = self._clients.open(spec)
            self._found[name] = served
        return self._found[name]

    def is_beside(self, name: str) -> bool:
        """Whether the model is a server beside the pool's own engine: no engine of the run samples for it."""
        return self.get(name) not in (None, self._engine) and self._models[name].engine.is_client

    def serves(self, names: Iterable[str]) -> bool:
        """Whether the pass serves one of these models."""
        return any(self.get(name) is not None for name in names)


class RowChat:
    """The `Chat` of one row: adds the seed to every call, counts tokens, and keeps the answered calls.

    model:  answers calls without a name; None if this pass does not serve it.
    models: answer calls with a name.
    calls:  the calls that earlier passes have answered, by step: they are not made again.

    If a row calls a model that this pass does not serve, the call raises NotOpen, and `awaited` has its name.
    The row is then run again in a pass that serves that model, and `calls` answers what was asked before.
    `failed` has the steps whose calls had no answer, with the names of their models.
    """

    def __init__(
        self,
        model: LanguageModel | None,
        run_seed: int,
        row_id: str,
        models: "OpenModels | None" = None,
        calls: Mapping[str, dict] | None = None,
    ):
        self._model, self._run_seed, self._row_id, self._models = model, run_seed, row_id, models
        self.calls: dict[str, dict] = dict(calls or {})
        self.awaited: set[str] = set()
        self.failed: dict[str, str] = {}
        self.prompt_tokens = self.completion_tokens = 0
        self.thought_tokens: int | None = 0
        self.sampled = (0, 0)  # prompt and completion tokens of this pass
        # One list per call, in the order in which calls started.
        self._finish_reasons: list[list[str]] = []
        self._thoughts: list[list[dict]] = []
        self._in_flight = 0

    async def __call__(
        self,
        messages: list[Message],
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
        prefill: bool = True,
    ) -> list[Completion]:
        asked = with_system(messages, sampling.system)
        return await self._ask(asked, sampling, step, adapter, model, prefill)

    async def complete(
        self,
        text: str,
        sampling: Sampling,
        *,
        step: str,
        adapter: str | None = None,
        model: str | None = None,
    ) -> list[Completion]:
        return await self._ask(text, sampling, step, adapter, model)

    async def settled(self) -> None:
        """Wait until the calls that a recipe has left behind are answered, so that they are not lost."""
        while self._in_flight:
            await asyncio.sleep(0.01)

    async def _ask(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        step: str,
        adapter: str | None,
        name: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        kept: list[dict] = []
        self._thoughts.append(kept)
        try:
            return await self._counted(prompt, sampling, step, adapter, name, prefill, kept)
        except RowFailed:
            self.failed[step] = name or OWN
            raise

    async def _counted(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        step: str,
        adapter: str | None,
        name: str | None,
        prefill: bool,
        kept: list[dict],
    ) -> list[Completion]:
        """The answers of a call, without their thoughts, which are appended to `kept`; counts tokens."""
        if name is not None:  # do not count another model's tokens as the row's
            return _answers(step, await self._answered(prompt, sampling, step, None, name, prefill), kept)
        self._finish_reasons.append(reasons := [])
        completions = await self._answered(prompt, sampling, step, adapter, name, prefill)
        self.prompt_tokens += completions[0].prompt_tokens
        self.completion_tokens += sum(c.completion_tokens for c in completions)
        reasons += [c.finish_reason for c in completions]
        for completion in completions:
            before, more = self.thought_tokens, completion.thought_tokens
            self.thought_tokens = None if before is None or more is None else before + more
        return _answers(step, completions, kept)

    async def _answered(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        step: str,
        adapter: str | None,
        name: str | None,
        prefill: bool,
    ) -> list[Completion]:
        """The completions of a call: of an earlier pass, or sampled now. Raises NotOpen."""
        if (call := self.calls.get(step)) is not None:
            if "error" in call:
                raise (NoAnswer if call["no_answer"] else RowFailed)(call["error"])
            return [Completion(**completion) for completion in call["completions"]]
        model = self._model if name is None else self._models.get(name) if self._models else None
        if model is None:
            self.awaited.add(name or OWN)
            raise NotOpen
        seed = seed_of(self._run_seed, self._row_id, step)
        self._in_flight += 1
        try:
            completions = await model.complete(prompt, sampling, seed=seed, adapter=adapter, prefill=prefill)
        except RowFailed as e:
            self.calls[step] = {"error": str(e), "no_answer": isinstance(e, NoAnswer)}
            raise
        except NotOpen:  # its engine stood beside the pool and died
            self.awaited.add(name or OWN)
            raise
        finally:
            self._in_flight -= 1
        self.calls[step] = {"completions": [vars(completion) for completion in completions]}
        if name is None or not (self._models and self._models.is_beside(name)):
            prompts, sampled = self.sampled
            sampled += sum(c.completion_tokens for c in completions)
            self.sampled = prompts + completions[0].prompt_tokens, sampled
        return completions

    @property
    def thoughts(self) -> list[dict]:
        """The thoughts of all calls, those of other models included (see `schema.THOUGHT`)."""
        return [thought for call in self._thoughts for thought in call]

    @property
    def finish_reasons(self) -> list[str]:
        return [reason for call in self._finish_reasons for reason in call]


def _answers(step: str, completions: list[Completion], kept: list[dict]) -> list[Completion]:
    """The completions without their thoughts, which are appended to `kept`.

    Raises NoAnswer if every completion ends in its thought.
    """
    answers = []
    for completion in completions:
        thought, answer = thoughts.split(completion.text)
        answers.append(replace(completion, text=answer or "", thought=thought, answered=answer is not None))
        if thought is not None:
            kept.append({"step": step, "text": thought, "ended": answer is not None})
    if not any(answer.answered for answer in answers):
        raise NoAnswer(
            "thought without an end: raise max_tokens, or turn thinking off with model.chat_template_kwargs"
        )
    return answers


def seed_of(run_seed: int, row_id: str, step: str) -> int:
    """The seed of a step's first sample, 62 bits; sample i adds i."""
    digest = hashlib.blake2b(f"{run_seed}/{row_id}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 2
