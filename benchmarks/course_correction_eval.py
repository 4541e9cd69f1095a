"""C²-Eval's paths per second: one request with n samples per (entry, k), against one request per path, on the
same engine.

    python benchmarks/course_correction_eval.py [--entries 40] [--paths 20] [--tokens 32] [--rounds 3]

Both sample entries × 8 prefills × paths continuations of the toy model with the same number of sequences in
the engine's batch, the same sampling and a seed per path; they take turns, round by round, on prefills of
other entries so that neither finds the other's prompts in the prefix cache. Prints both speeds (medians) and
their ratio. One request per path is what most harnesses send; the engine's prefix cache is on for both.
"""

import argparse
import asyncio
import os
import statistics
import time
from importlib.metadata import version

from pipeline import prompts
from pipeline.chat import Message, Sampling, assistant, user
from pipeline.inference.base import ROWS_PER_REQUEST
from pipeline.inference.row_chat import seed_of
from pipeline.inference.vllm import VLLM
from pipeline.runtime.machine import cpu_has_bf16
from pipeline.settings.base import Model, Source
from pipeline.sources.instructions import read

LENGTHS = range(10, 81, 10)
IN_FLIGHT = 256
DTYPE = "bfloat16" if cpu_has_bf16() else "float32"


def conversations(entries: int, rounds: int) -> list[list[list[Message]]]:
    """For each of 2 × rounds turns, the prefilled conversations of entries of its own."""
    opener = prompts.load("methods/course_correction/prompts.yaml").lines("openers")[0]
    rows = [row for row in read(Source(path="toy:detailed-train")) if row["unsafe_response"]]
    turns = []
    for turn in range(2 * rounds):
        # Another first word makes another prefix: where rows come up again, the cache cannot help.
        chosen = [(f"({turn}) ", rows[(turn * entries + i) % len(rows)]) for i in range(entries)]
        turns.append(
            [
                [
                    user(mark + row["instruction"]),
                    assistant(f"{opener} {' '.join(row['unsafe_response'].split()[:k])}"),
                ]
                for mark, row in chosen
                for k in LENGTHS
            ]
        )
    return turns


async def n_samples(model, asked: list[list[Message]], paths: int, sampling: dict) -> int:
    slots = asyncio.Semaphore(round(ROWS_PER_REQUEST * IN_FLIGHT))

    async def one(number: int, messages: list[Message]) -> int:
        async with slots:
            found = await model.complete(
                messages,
                Sampling(n=paths, **sampling),
                seed=seed_of(0, str(number), "continue"),
                adapter=None,
            )
            return sum(c.completion_tokens for c in found)

    return sum(await asyncio.gather(*(one(i, messages) for i, messages in enumerate(asked))))


async def a_request_per_path(model, asked: list[list[Message]], paths: int, sampling: dict) -> int:
    slots = asyncio.Semaphore(round(ROWS_PER_REQUEST * IN_FLIGHT))

    async def one(number: int, path: int, messages: list[Message]) -> int:
        async with slots:
            seed = seed_of(0, str(number), "continue") + path
            [found] = await model.complete(messages, Sampling(**sampling), seed=seed, adapter=None)
            return found.completion_tokens

    return sum(
        await asyncio.gather(
            *(one(i, path, messages) for i, messages in enumerate(asked) for path in range(paths))
        )
    )


WAYS = {"one request, n samples": n_samples, "one request per path": a_request_per_path}


async def measure(args: argparse.Namespace) -> dict[str, list[tuple[float, int]]]:
    """(seconds, sampled tokens) of every round, by way."""
    from pipeline.inference.vllm_model import VllmModel
    from pipeline.toy.model import WEIGHTS

    directory = str(WEIGHTS)
    model = VllmModel(Model(path=directory, dtype=DTYPE), directory, VLLM(max_num_seqs=IN_FLIGHT))
    sampling = {"max_tokens": args.tokens, "temperature": 0.8, "top_p": 0.7}
    turns = conversations(args.entries, args.rounds)
    await n_samples(model, turns[0][:8], 4, sampling)  # the first batch of all warms up
    seen: dict[str, list[tuple[float, int]]] = {name: [] for name in WAYS}
    for number in range(args.rounds):
        for place, name in enumerate(list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]):
            started = time.monotonic()
            tokens = await WAYS[name](model, turns[2 * number + place], args.paths, sampling)
            seen[name].append((time.monotonic() - started, tokens))
    model.close()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--entries", type=int, default=40)
    parser.add_argument("--paths", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    seen = asyncio.run(measure(args))
    paths = args.entries * len(LENGTHS) * args.paths
    print(
        f"{args.entries} entries × {len(LENGTHS)} prefills × {args.paths} paths = {paths} paths of at most"
        f" {args.tokens} tokens, {DTYPE}",
        end="",
    )
    print(
        f" on {os.cpu_count()} CPUs; {args.rounds} rounds; torch {version('torch')}, transformers"
        f" {version('transformers')}"
    )
    speed = {
        name: statistics.median(paths / seconds for seconds, _ in rounds) for name, rounds in seen.items()
    }
    for name, rounds in seen.items():
        tokens = statistics.median(tokens / seconds for seconds, tokens in rounds)
        print(f"{name:24} {speed[name]:8.0f} paths/s {tokens:9.0f} tokens/s")
    ours, peer = WAYS
    print(f"{ours} / {peer}: {speed[ours] / speed[peer]:.2f} x")


if __name__ == "__main__":
    main()
