"""What the engine's front end costs the actor's event loop: rendering and encoding, and decoding.

    python -m benchmarks.frontend [MODEL_DIR]

Per request: a chat of a few hundred tokens, encoded in the loop (as before) and in the engine's thread; the
loop's worst stall while 150 such requests arrive. Per token: text decoded as it comes (as vLLM does for
streaming) and once at the end. The model's tokenizer is used, its weights are not; by default the toy's.
"""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline import models
from pipeline.chat import user
from pipeline.inference.decoding import decode
from pipeline.settings.base import Model
from pipeline.toy.model import WEIGHTS

REQUESTS, WORDS = 150, 300


def main(directory: str) -> None:
    from tokenizers.decoders import DecodeStream

    template = models.load_template(Model(path=directory), directory)
    prompts = [
        [user(f"Question {n}: " + "how can i repair the old bicycle " * (WORDS // 7))]
        for n in range(REQUESTS)
    ]
    tokens = template.opened_prompt(prompts[0])[0]
    started = time.perf_counter()
    for prompt in prompts:
        template.opened_prompt(prompt)
    each = (time.perf_counter() - started) / REQUESTS
    micro = 1e6 * each
    print(f"encode: {micro:.0f} µs a request of {len(tokens)} tokens, {micro / len(tokens):.2f} µs a token")
    for name, workers in (("in the loop", 0), ("in a thread", 1)):
        worst = 1e3 * asyncio.run(stall(template, prompts, workers))
        print(f"worst stall of the loop, {REQUESTS} requests at once, {name}: {worst:.0f} ms")

    raw, sampled = template.tokenizer.backend_tokenizer, tokens[-256:]

    def as_it_comes() -> str:
        stream = DecodeStream(ids=tokens, skip_special_tokens=True)
        return "".join(stream.step(raw, token) or "" for token in sampled)

    def at_the_end() -> str:
        return decode(template.tokenizer, tokens, sampled, skip_special=True)

    assert as_it_comes() == at_the_end()
    for name, work in (("as it comes", as_it_comes), ("at the end", at_the_end)):
        started = time.perf_counter()
        for _ in range(200):
            work()
        print(f"decode {name}: {1e6 * (time.perf_counter() - started) / 200 / len(sampled):.2f} µs a token")


async def stall(template, prompts: list, workers: int) -> float:
    """The longest time, in seconds, for which the loop ran nothing else while the prompts were encoded."""
    worst, done = 0.0, False

    async def look() -> None:
        nonlocal worst
        while not done:
            before = time.perf_counter()
            await asyncio.sleep(0)
            worst = max(worst, time.perf_counter() - before)

    thread = ThreadPoolExecutor(1)

    async def encode(prompt: list) -> None:
        if workers:
            await asyncio.get_running_loop().run_in_executor(thread, template.opened_prompt, prompt)
        else:
            template.opened_prompt(prompt)

    looking = asyncio.ensure_future(look())
    await asyncio.sleep(0.01)
    await asyncio.gather(*(encode(prompt) for prompt in prompts))
    done = True
    await looking
    return worst


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(WEIGHTS))
