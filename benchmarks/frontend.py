"""What an engine's front end costs the actor's event loop, in CPU time: everything but the model.

    python benchmarks/frontend.py [--model MODEL_DIR] [--before CHECKOUT] [--requests 1000] [--rounds 3]

`VllmModel` with vLLM's own front end, `AsyncLLM`, and in the place of the engine's process a stub that
"samples" fixed tokens at once, 256 requests at a time. Requests and outputs go through vLLM's message
encoding; the stub's own time is not counted. `--before` names a checkout of an earlier commit, whose figures
are taken in the same run, alternating. Texts of both must be equal.

Prints, for prompts of several lengths: µs a request (of one token) and µs a token of the event loop's thread
and of the whole process, medians of the rounds; and what share of a core the loop takes at 30 000 tokens/s.
"""

import argparse
import asyncio
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

AT_A_TIME = 256
RATE = 30_000  # tokens/s of a small model on a GPU: an assumption
CASES = {"84": 84, "400": 400}  # tokens of a prompt
SHORT, LONG = 1, 129  # tokens of an answer
ANSWERS = (32, 64, 256)  # tokens of an answer, for the shares


class Core:
    """In the place of `AsyncMPClient`: answers every request with the first of these tokens."""

    def __init__(self, tokens: list[int]):
        from vllm.v1.engine import EngineCoreOutputs
        from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

        self._tokens, self._live, self._came = tokens, dict[str, list[int]](), asyncio.Event()
        self._out, self._in, self._theirs = (
            MsgpackEncoder(),
            MsgpackDecoder(EngineCoreOutputs),
            MsgpackEncoder(),
        )
        self.resources, self.own_s = SimpleNamespace(engine_dead=False), 0.0
        self.engine_ranks_managed = [0]

    async def get_supported_tasks_async(self):
        return ("generate",)

    async def add_request_async(self, request) -> None:
        self._out.encode(request)
        self._live[request.request_id] = [0, request.sampling_params.max_tokens]
        self._came.set()

    async def abort_requests_async(self, ids) -> None:
        pass

    async def get_output_async(self):
        while not self._live:
            self._came.clear()
            await self._came.wait()
        await asyncio.sleep(0)
        message = self._step()
        return self._in.decode(message)

    def _step(self):
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        started, outputs = time.thread_time(), []
        for name in list(self._live)[:AT_A_TIME]:
            done, wanted = self._live[name]
            self._live[name][0] = done + 1
            ended = done + 1 == wanted
            token = self._tokens[done % len(self._tokens)]
            outputs.append(
                EngineCoreOutput(name, [token], finish_reason=FinishReason.LENGTH if ended else None)
            )
            if ended:
                del self._live[name]
        message = self._theirs.encode(EngineCoreOutputs(outputs=outputs))
        message = [bytes(part) for part in message]
        self.own_s += time.thread_time() - started
        return message

    def shutdown(self, timeout=None) -> None:
        pass


def prompts_of(template, length: int, count: int) -> list[list[dict]]:
    """Different conversations of about `length` tokens."""
    from pipeline.chat import user

    words = ["how", "can", "i", "repair", "the", "old", "bicycle", "before", "the", "long", "journey"]
    size = 1
    while len(template.prompt([user(" ".join((words * size)[:size]))])) < length:
        size += 1
    return [
        [user(" ".join(words[(n + i) % len(words)] for i in range(size)) + f" {n}")] for n in range(count)
    ]


def measure(directory: str, requests: int) -> dict:
    """µs of the loop's thread and of the process, by case and length of the answer; a digest of the texts."""
    from vllm.v1.engine import core_client

    from pipeline.chat import Sampling
    from pipeline.inference.vllm import VLLM
    from pipeline.inference.vllm_model import VllmModel
    from pipeline.settings.base import Model

    core: list[Core] = []
    core_client.EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: core[0])
    core.append(Core([]))
    model = VllmModel(Model(path=directory, dtype="float32"), directory, VLLM())
    core[0]._tokens = model._template.tokenizer(
        "we repair the old bicycle , and the long journey begins . " * 20, add_special_tokens=False
    )["input_ids"][:LONG]
    digest, found = hashlib.sha256(), {}

    async def ask(conversations: list, tokens: int) -> dict:
        gate = asyncio.Semaphore(AT_A_TIME * 3 // 2)

        async def one(number: int, conversation: list) -> str:
            async with gate:
                sampling = Sampling(tokens, temperature=1.0)
                [answer] = await model.complete(conversation, sampling, seed=number, adapter=None)
                return answer.text

        core[0].own_s = 0.0
        loop, process = time.thread_time(), time.process_time()
        texts = await asyncio.gather(*(one(n, c) for n, c in enumerate(conversations)))
        loop, process = time.thread_time() - loop, time.process_time() - process
        digest.update("\n".join(texts).encode())
        return {"loop": loop - core[0].own_s, "process": process - core[0].own_s}

    async def all_of_them() -> None:
        await ask(prompts_of(model._template, 20, 50), 2)  # warm
        for name, length in CASES.items():
            conversations = prompts_of(model._template, length, requests)
            for tokens in (SHORT, LONG):
                found[f"{name} {tokens}"] = await ask(conversations, tokens)

    asyncio.run(all_of_them())
    return {"found": found, "texts": digest.hexdigest()}


def told(rounds: list[dict], requests: int) -> None:
    for kind in ("loop", "process"):
        for name in CASES:
            short, long = (
                statistics.median(1e6 * one["found"][f"{name} {tokens}"][kind] / requests for one in rounds)
                for tokens in (SHORT, LONG)
            )
            token = (long - short) / (LONG - SHORT)
            line = f"  {kind:7}  prompts of {name} tokens: {short:6.0f} µs a request, {token:.2f} µs a token"
            shares = (
                f"{RATE * (token + (short - token) / answer) / 1e6:.2f} ({answer})" for answer in ANSWERS
            )
            print(f"{line}; cores at {RATE:,} tokens/s, by tokens of an answer: {', '.join(shares)}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="directory of a model; default: the toy")
    parser.add_argument("--before", help="a checkout of an earlier commit")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.model, given.requests)))
        return
    here = str(Path(__file__).parents[1])
    model = given.model or f"{here}/pipeline/toy/weights"
    places = {"before": given.before, "now": here} if given.before else {"now": here}
    rounds: dict[str, list[dict]] = {name: [] for name in places}
    for number in range(given.rounds):
        for name in list(places)[:: -1 if number % 2 else 1]:
            command = [sys.executable, __file__, "--measure", "--model", model]
            done = subprocess.run(
                [*command, "--requests", str(given.requests)],
                env={**os.environ, "PYTHONPATH": places[name]},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    texts = {one["texts"] for found in rounds.values() for one in found}
    told_equal = "equal" if len(texts) == 1 else "DIFFER"
    print(f"{given.requests} requests, {given.rounds} rounds, texts {told_equal}")
    for name, found in rounds.items():
        print(name)
        told(found, given.requests)


if __name__ == "__main__":
    main()
