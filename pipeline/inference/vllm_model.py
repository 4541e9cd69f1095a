"""vLLM behind one call: continuous batching over all requests, n samples, prefill, LoRA adapters, seeds."""

import asyncio
import gc
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from pipeline import models, pretrained, thoughts
from pipeline.chat import Completion, Message, Sampling, user
from pipeline.data import adapter as adapter_files
from pipeline.data import node_copy
from pipeline.errors import RowFailed, RunFailed
from pipeline.inference import cpu_lora, notices, spread, vllm_start
from pipeline.inference.base import EngineDead
from pipeline.inference.decoding import can_decode, decode
from pipeline.inference.stall import Watch
from pipeline.runtime import imports
from pipeline.runtime.session import in_actor
from pipeline.settings.base import Draw, Model

if TYPE_CHECKING:
    from pipeline.inference.vllm import VLLM

_PROBE_TOKENS = 15  # fewer than a block of the prefix cache holds, so the cache is not used


class VllmModel:
    """One vLLM engine in this process and its children.

    adapters: directories of the LoRA adapters that calls may name, on any storage; without any, LoRA is off,
    which is faster.
    """

    def __init__(self, model: Model, model_dir: str, engine: "VLLM", adapters: Sequence[str] = ()):
        pretrained.check(model_dir, model.revision)
        if engine.num_nodes == 1:  # the copy of one node is not on the others
            model_dir = node_copy.read_from(model_dir, notices.tell)
        vllm_start.set_environment(engine.num_gpus, engine.kv_cache_gib, nodes=engine.num_nodes)
        if engine.num_nodes > 1 and in_actor():
            spread.join(engine.num_nodes, notices.tell)
        with imports.quick():
            from vllm.v1.engine.async_llm import AsyncLLM

        # vLLM calls `register` in every process of the engine. Call it in this process first, so that the
        # user sees the message of `register`.
        cpu_lora.register()
        from vllm.usage.usage_lib import UsageContext

        self._template = models.load_template(model, model_dir)
        self._marks = _thinking_tokens(self._template.tokenizer)
        self._scratch = tempfile.TemporaryDirectory(prefix="setbacks-adapters-")  # for object stores
        local = [adapter_files.fetch(path, self._scratch.name) for path in adapters]
        self._adapters = {
            path: (number, place)
            for number, (path, place) in enumerate(zip(adapters, local, strict=True), start=1)
        }
        self._requests, self._probed = itertools.count(), asyncio.Lock()
        self._can_decode = can_decode(self._template.tokenizer)
        # One thread makes a few thousand prompts a second, most of the time without Python's lock.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._watch = Watch(60.0 * engine.stall_minutes)
        self._unprobed = list(adapters)
        try:
            self._engine = AsyncLLM.from_engine_args(
                vllm_start.arguments(
                    model,
                    model_dir,
                    local,
                    gpus=engine.num_gpus,
                    options=engine.given(),
                    nodes=engine.num_nodes,
                ),
                usage_context=UsageContext.LLM_CLASS,  # vLLM's defaults for throughput
                stat_loggers=vllm_start.stat_loggers(engine.num_gpus),
            )
        except Exception as e:
            raise RunFailed(
                f"the vLLM engine for {model.path} did not start ({vllm_start.cause(e, model)})"
            ) from e
        self.max_length = self._engine.model_config.max_model_len
        self._watchdog = vllm_start.end_with_this_process(vllm_start.children())

    async def complete(
        self,
        prompt: list[Message] | str,
        sampling: Sampling,
        *,
        seed: int,
        adapter: str | None,
        prefill: bool = True,
    ) -> list[Completion]:
        """Sample `sampling.n` continuations; the i-th uses seed + i.

        Raises RowFailed if prompt + max_tokens exceed the model's length, EngineDead if the engine has died.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        tokens, begun = await self._in_thread(self._encoded, prompt, prefill)
        if len(tokens) + sampling.max_tokens > self.max_length:
            raise RowFailed(
                f"prompt too long: {len(tokens)} tokens + {sampling.max_tokens} new ones exceed the model's"
                f" {self.max_length}"
            )
        await self._probe()
        lora, forced = self._lora(adapter), list[int]()
        if sampling.first_rank is not None:
            forced = [await self._ranked(tokens, sampling.first_rank, lora)]
            if (ended := forced[0] in self._template.stops) or sampling.max_tokens == 1:
                text = "" if ended else self._text(tokens, forced)
                only = Completion(text, len(tokens), 1, "stop" if ended else "length")
                return [only] * sampling.n
        decodes = self._can_decode and not sampling.stop
        params = SamplingParams(
            n=sampling.n,
            max_tokens=sampling.max_tokens - len(forced),
            **{name: _or(getattr(sampling, name), value) for name, value in Draw.NEUTRAL.items()},
            stop=list(sampling.stop),
            seed=seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_special_tokens=self._marks is None,
            detokenize=not decodes,
            skip_clone=True,  # nobody else has it
        )
        # With FINAL_ONLY the n samples arrive one by one as they finish, not in one output: collect them.
        samples: dict[int, Completion] = {}
        outputs = self._engine.generate(
            {"type": "token", "prompt_token_ids": tokens + forced},
            params,
            str(next(self._requests)),
            lora_request=lora,
        )
        try:
            async for output in self._watch.outputs(outputs):
                for o in output.outputs:
                    if forced:  # beside its neighbor, a token can be other text than alone
                        said = _before(self._decoded(tokens, o, forced), sampling.stop)
                    else:
                        said = self._decoded(tokens, o) if decodes else o.text
                    text = thoughts.continued(self._without_special(said), begun)
                    samples[o.index] = Completion(
                        text,
                        len(tokens),
                        len(forced) + len(o.token_ids),
                        o.finish_reason,
                        thought_tokens=self._thought_tokens(text),
                    )
        except EngineDeadError as e:
            raise EngineDead from e
        if len(samples) != sampling.n:
            raise RowFailed(f"engine returned {len(samples)} of {sampling.n} samples")
        return [samples[i] for i in range(sampling.n)]

    async def _ranked(self, tokens: list[int], rank: int, lora: Any) -> int:
        """The token of a rank, from 1, among the likeliest after these. Raises RowFailed, EngineDead."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(
            max_tokens=1, temperature=0, logprobs=rank, output_kind=RequestOutputKind.FINAL_ONLY
        )
        outputs = self._engine.generate(
            {"type": "token", "prompt_token_ids": tokens},
            params,
            str(next(self._requests)),
            lora_request=lora,
        )
        try:
            async with aclosing(self._watch.outputs(outputs)) as watched:
                async for output in watched:
                    for token, logprob in (output.outputs[0].logprobs or [{}])[0].items():
                        if logprob.rank == rank:
                            return token
        except EngineDeadError as e:
            raise EngineDead from e
        raise RowFailed(f"engine named no token of rank {rank}")

    def _decoded(self, prompt: list[int], output: Any, forced: Sequence[int] = ()) -> str:
        """The text of one sample. Its last token is no text if it ended the answer. forced: tokens of the
        answer that the engine got with the prompt."""
        ids = [*forced, *output.token_ids]
        # A stop string ends within text, and is cut off by who asked for it.
        ended = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
        return self._text(prompt, ids[:-1] if ended else ids)

    def _text(self, prompt: list[int], ids: list[int]) -> str:
        tokenizer, skip_special = self._template.tokenizer, self._marks is None
        if not self._can_decode:
            return tokenizer.decode(ids, skip_special_tokens=skip_special)
        return decode(tokenizer, prompt, ids, skip_special=skip_special)

    async def _in_thread(self, work: Callable, *arguments: Any) -> Any:
        """Work beside the event loop, so that requests are sent and answered meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _probe(self) -> None:
        """Before the first request, report adapters that do not change the model's answers.

        vLLM ignores matrices of modules that it does not find. Each adapter samples one token, one request
        at a time, so that equal models give equal numbers. Requests of rows are not changed.
        """
        if not self._unprobed:
            return
        async with self._probed:
            if not self._unprobed:
                return
            base = await self._first_token(None)
            for adapter in self._unprobed:
                if await self._first_token(adapter) == base:
                    notices.tell(
                        f"the adapter {adapter} changes nothing in the engine: the model answers a prompt"
                        " alike with and without it; check that it was trained on this model"
                    )
            self._unprobed = []

    async def _first_token(self, adapter: str | None) -> dict[int, float]:
        """The log-probabilities of the likeliest tokens after a short prompt, by token."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        prompt = self.encode([user("How are you?")])[-_PROBE_TOKENS:]
        params = SamplingParams(
            max_tokens=1, temperature=0, logprobs=20, output_kind=RequestOutputKind.FINAL_ONLY
        )
        found: dict[int, float] = {}
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": prompt}, params, f"probe-{adapter}", lora_request=self._lora(adapter)
            ):
                for token, logprob in (output.outputs[0].logprobs or [{}])[0].items():
                    found[token] = logprob.logprob
        except EngineDeadError as e:
            raise EngineDead from e
        return found

    def _lora(self, adapter: str | None) -> Any:
        """vLLM's request for an adapter. vLLM tells adapters apart by this name: it must be unique."""
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number, place = self._adapters[adapter]
        return LoRARequest(f"{number}-{os.path.basename(adapter)}", number, place)

    def encode(self, prompt: list[Message] | str, *, prefill: bool = True) -> list[int]:
        """Token ids up to the model's next token.

        A conversation goes through the template. If it ends in an assistant's turn, that turn stays open, or
        is closed and followed by the generation prompt if `prefill` is false. A text is tokenized as it
        stands, with the token that begins a text, if the model has one, once.
        """
        return self._encoded(prompt, prefill)[0]

    def _encoded(self, prompt: list[Message] | str, prefill: bool) -> tuple[list[int], thoughts.Marks | None]:
        """Token ids, and the marks of the thought in which the prompt ends, if it does."""
        if not isinstance(prompt, str):
            return self._template.opened_prompt(prompt, prefill=prefill)
        first = self._template.tokenizer.bos_token
        begun = first is not None and prompt.startswith(first)
        [tokens] = self._template.tokenize([prompt], special=not begun)
        return tokens, None

    def _without_special(self, text: str) -> str:
        """The text without special tokens, except those that mark thoughts."""
        return text if self._marks is None else self._marks.sub("", text)

    def _thought_tokens(self, text: str) -> int:
        thought = thoughts.split(text).thought
        return len(self._template.tokenizer.encode(thought, add_special_tokens=False)) if thought else 0

    def close(self) -> None:
        """End the engine's processes. Collect it now: its finalizer fails during interpreter shutdown."""
        self._thread.shutdown()
        engine, self._engine = self._engine, None
        engine.shutdown()
        del engine
        gc.collect()


def _before(text: str, stop: Sequence[str]) -> str:
    """The text up to the first of the stop texts."""
    return text[: min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))]


def _or(value: float | None, neutral: float) -> float:
    return neutral if value is None else value


def _thinking_tokens(tokenizer: Any) -> re.Pattern | None:
    """The special tokens that mark no thought, if others do; null if vLLM may leave all of them out."""
    special = set(tokenizer.all_special_tokens)
    special |= {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    if not any(name in marks.opens for name in special for marks in thoughts.MARKS):
        return None
    kept = {name for name in special if any(name in mark for marks in thoughts.MARKS for mark in marks)}
    kept |= {"<|start|>"}  # before gpt-oss's answer
    left_out = sorted(special - kept, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, left_out))) if left_out else re.compile(r"(?!)")
