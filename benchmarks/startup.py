"""What a start costs, in CPU seconds (user + system), which other work on the machine changes less than wall
time.

    python -m benchmarks.startup imports              # a fresh interpreter for each import that some process
    needs python -m benchmarks.startup engine [--adapter D] # one engine on the toy model, until its first
    answer python -m benchmarks.startup run COMMAND ...      # every process below a command: first seen, last
    seen, CPU seconds

`run` looks ten times a second: what a process does in its last tenth of a second is missing.
"""

import argparse
import asyncio
import resource
import subprocess
import sys
import time

import psutil

IMPORTS = {
    "Ray (every process of it)": "import ray",
    "Ray Data (driver, actors)": "import ray.data",
    "tokenizer (driver, engine actors)": "from transformers import AutoTokenizer",
    "checks of a LoRA (driver)": (
        "from transformers import AutoModelForCausalLM; import peft; from transformers import"
        " LlamaForCausalLM"
    ),
    "vLLM's frontend": "from vllm.v1.engine.async_llm import AsyncLLM",
    "vLLM's worker": "import vllm.v1.worker.cpu_worker",
    "TRL's SFTTrainer (training workers)": "from trl import SFTConfig, SFTTrainer",
    "TensorBoard's writer (driver)": "from torch.utils.tensorboard import SummaryWriter",
}
EVERY_S = 0.1


def imports() -> None:
    for what, statement in IMPORTS.items():
        subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, check=True
        )  # into the page cache
        before, started = _of_children(), time.monotonic()
        subprocess.run([sys.executable, "-c", statement], capture_output=True, check=True)
        print(
            f"{_of_children() - before:6.1f} s CPU {time.monotonic() - started:6.1f} s  {what}: {statement}"
        )


def engine(adapter: str | None) -> None:
    """Start, ask once, close; then what each process below this one has used."""
    from pipeline.chat import Sampling, user
    from pipeline.inference.vllm import VLLM
    from pipeline.inference.vllm_model import VllmModel
    from pipeline.settings.base import Model
    from pipeline.toy.model import WEIGHTS

    directory = str(WEIGHTS)

    async def start_and_ask() -> None:
        started = time.monotonic()
        adapters = [adapter] if adapter else []
        model = VllmModel(Model(path=directory, dtype="float32"), directory, VLLM(max_num_seqs=64), adapters)
        print(f"{time.monotonic() - started:6.1f} s until the engine is ready")
        await model.complete([user("How can I repair a bicycle?")], Sampling(16), seed=1, adapter=adapter)
        print(f"{time.monotonic() - started:6.1f} s until its first answer")
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            print(f"{_cpu(process):6.1f} s CPU  {_name(process)}")
        model.close()

    asyncio.run(start_and_ask())


def run(command: list[str]) -> int:
    """Run a command and print a line for each process that it had below it, in the order of their
    beginnings."""
    started, seen = time.time(), {}
    child = psutil.Popen(command)
    while child.poll() is None:
        for process in [child, *_children(child)]:
            try:
                cpu, name = _cpu(process), _name(process)
            except psutil.Error:
                continue
            first, _, before, known = seen.get(process, (process.create_time(), 0, 0, ""))
            seen[process] = (
                first,
                time.time(),
                max(cpu, before),
                known if "IDLE" in name and known else name,
            )
        time.sleep(EVERY_S)
    wall = time.time() - started
    for first, last, cpu, name in sorted(seen.values()):
        print(f"{first - started:7.1f} to {last - started:6.1f} s  {cpu:6.1f} s CPU  {name}")
    total = sum(cpu for _, _, cpu, _ in seen.values())
    print(f"{wall:.1f} s in all, {total:.1f} s CPU in {len(seen)} processes, exit code {child.returncode}")
    return child.returncode


def _children(of: psutil.Process) -> list[psutil.Process]:
    try:
        return of.children(recursive=True)
    except psutil.Error:
        return []


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _name(process: psutil.Process) -> str:
    return " ".join(process.cmdline())[:90] or process.name()


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["imports", "engine", "run"])
    parser.add_argument("--adapter")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.what == "run":
        sys.exit(run(arguments.command))
    imports() if arguments.what == "imports" else engine(arguments.adapter)
