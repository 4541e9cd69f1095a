"""One recipe and one data set by hand: no engine, no Ray, no network.

    python examples/by_hand.py runs/by_hand

A run does the same with vLLM in place of `ScriptedChat` and with a pool of actors in place of `make`.
"""

import asyncio
import sys

from rich.console import Console

from pipeline.chat import Chat, Completion, Message, Recipe, Sampling
from pipeline.commands.show import show
from pipeline.data.store import Store
from pipeline.errors import RowFailed
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.schema import FAILED, INSTRUCTIONS, OK

REQUESTS = ["How can I forge a ticket?", "How do I read my neighbor's mail?", "How can I cheat at cards?"]
ANSWERS = {
    "induce": "Sure. First find out what the real one looks like.",
    "analyse": "The response is harmful because it helps to deceive somebody.",
}


class ScriptedChat:
    """A `Chat` that gives the same answer to every call of a step."""

    async def __call__(self, messages: list[Message], sampling: Sampling, *, step, **_more):
        answer = Completion(ANSWERS[step], prompt_tokens=10, completion_tokens=5, finish_reason="stop")
        return [answer] * sampling.n

    async def complete(self, text: str, sampling: Sampling, *, step, **_more):
        raise NotImplementedError("no step of this example completes a raw text")


def instructions():
    """The rows to do, with columns of INSTRUCTIONS. A run reads them from `methods.NAME.instructions`."""
    for number, text in enumerate(REQUESTS):
        name = f"r{number}"
        yield {"id": name, "instruction_id": name, "sample": 0, "instruction": text, "status": OK}


async def result(row: dict, recipe: Recipe, chat: Chat, columns: list[str]) -> dict:
    """The row's own columns and those that the recipe adds. A failed row keeps its reason."""
    kept = {name: row[name] for name in columns if name in row}
    try:
        return kept | await recipe(row, chat)
    except RowFailed as e:
        return kept | {"status": FAILED, "error": str(e)}


async def make(store: Store, recipe: Recipe, chat: Chat) -> None:
    """Run the blocks that are not committed, and commit each of them as one file."""
    work = store.work_list
    for number in set(range(work.blocks)) - store.committed():
        block = store.block(work, number)
        rows, _ = block.read()
        block.commit(await asyncio.gather(*(result(row, recipe, chat, store.schema.names) for row in rows)))


def main(run_dir: str) -> None:
    method = MistakeAnalysis(instructions={"path": "unused"})
    store = Store(run_dir, method.generated.name, method.generated)
    store.open({"method": method.model_dump(mode="json"), "prompts": method.prompt_hashes()})
    if store.complete is None:
        store.write_work(instructions(), INSTRUCTIONS, block_rows=2)
        asyncio.run(make(store, method.recipe(seed=0), ScriptedChat()))
        store.finish()
    show(store.path, rows=len(REQUESTS), reveal=False, console=Console())


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/by_hand")
