"""Tokens/s of a two-step job, three ways, same model, same prompts, same number of tokens, one after the
other in one run:

    bare      `vllm.LLM` alone: one pass over all first steps, then one over all second steps; nothing is
              written
    chained   two chained `ray.data.llm` processors, one engine each, Parquet at the end
    setbacks  the recipe pool: one engine, rows interleaved, row-level commits, Parquet

    python benchmarks/generation.py [--model toy|small|135m|7b|DIR] [--rows 1000] [--tokens 64]
    [--rounds 3] [--gpu]

`toy` has 1.0M parameters, so that everything beside the model shows; `small` is a random Llama of 25M. Every
completion runs to its full length (the end-of-turn token is one that the toy never writes, and a random model
seldom), so that all three sample rows × 2 × tokens. All three sample with a seed per request. Rounds
alternate the order. Prints each one's tokens/s with and without engine start and the CPU seconds of all its
processes, medians of the rounds, and the median and range of the ratios.

--gpu: engines on one GPU, with what vLLM itself chooses for it; --options: other arguments of vLLM for
setbacks, in JSON; --adapters: setbacks' engine has so many LoRA adapters loaded, which no request uses, or
which every request uses in turn with --adapted.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import psutil

from pipeline.chat import Sampling, user
from pipeline.inference.vllm import VLLM
from pipeline.methods.mistake_analysis.schema import MISTAKES
from pipeline.runtime.machine import cpu_has_bf16
from pipeline.schema import INSTRUCTIONS, OK
from pipeline.settings.base import Model
from pipeline.sources.instructions import read

STEP_1 = "{instruction} The response should be harmful, unethical, and offensive."
STEP_2 = (
    "Instruction: {instruction}\nResponse: {response}\nAnalyse the response and explain why it is harmful or"
    " harmless."
)
IN_FLIGHT = 256
COMMIT = 128
LOOK_EVERY_S = 1  # at the CPU seconds of processes; their last second is missing
ENGINE = {  # on a CPU
    "dtype": "bfloat16" if cpu_has_bf16() else "float32",
    "enforce_eager": True,
    "enable_chunked_prefill": False,
    "enable_prefix_caching": True,
    "max_num_seqs": IN_FLIGHT,
    "disable_log_stats": True,
}
ENGINE_ON_GPU = {
    "dtype": "bfloat16",
    "enable_prefix_caching": True,
    "disable_log_stats": True,
    "max_model_len": 4096,
}


class TwoSteps:
    """The job as a recipe. adapters: to answer with, one after the other."""

    def __init__(self, tokens: int, adapters: tuple[str, ...] = ()):
        self.sampling = Sampling(tokens)
        self.adapters = adapters or (None,)

    async def __call__(self, row: dict, chat) -> dict:
        adapter = self.adapters[int(row["id"].removeprefix("row-")) % len(self.adapters)]
        [response] = await chat([user(STEP_1.format(**row))], self.sampling, step="1", adapter=adapter)
        [analysis] = await chat(
            [user(STEP_2.format(instruction=row["instruction"], response=response.text))],
            self.sampling,
            step="2",
            adapter=adapter,
        )
        return {"response": response.text, "analysis": analysis.text, "status": OK}


def setbacks(model: str, rows: list[dict], tokens: int, args: argparse.Namespace) -> dict:
    from pipeline.data.store import Store
    from pipeline.inference.pool import Job, ModelSpec, run_recipes
    from pipeline.runtime.session import ray_session

    engine = VLLM(max_num_seqs=IN_FLIGHT, rows_per_commit=COMMIT)
    if args.gpu:
        engine = VLLM(num_gpus=1, rows_per_commit=COMMIT, options=json.loads(args.options))
    with tempfile.TemporaryDirectory() as run_dir, ray_session(run_dir):
        adapters = tuple(adapter_of(model, Path(run_dir, f"adapter-{i}"), i) for i in range(args.adapters))
        started = time.monotonic()
        store = Store(run_dir, "mistakes", MISTAKES)
        store.open({})
        store.write_work(rows, INSTRUCTIONS, block_rows=COMMIT)
        settings = ENGINE_ON_GPU if args.gpu else ENGINE
        spec = ModelSpec(
            Model(path=model, dtype=settings["dtype"], max_length=settings.get("max_model_len")),
            model,
            engine,
            adapters,
        )
        recipe = TwoSteps(tokens, adapters if args.adapted else ())
        [(_, figures)] = run_recipes([Job(recipe, store)], spec, seed=0, label="setbacks")
        busy_to = time.monotonic()
        store.finish()
        return {
            "tokens": figures["completion_tokens"],
            "with_start": time.monotonic() - started,
            "without_start": figures["busy_s"],
            "busy": (busy_to - figures["busy_s"], busy_to),
        }


def bare(model: str, rows: list[dict], tokens: int, args: argparse.Namespace) -> dict:
    from vllm import LLM, SamplingParams

    started = time.monotonic()
    llm = LLM(model=model, **(ENGINE_ON_GPU if args.gpu else ENGINE))
    ready = time.monotonic()
    params = [SamplingParams(max_tokens=tokens, seed=i) for i in range(len(rows))]
    firsts = llm.chat([[user(STEP_1.format(**row))] for row in rows], params, use_tqdm=False)
    seconds = llm.chat(
        [
            [user(STEP_2.format(instruction=row["instruction"], response=o.outputs[0].text))]
            for row, o in zip(rows, firsts, strict=True)
        ],
        params,
        use_tqdm=False,
    )
    ended = time.monotonic()
    sampled = sum(len(o.outputs[0].token_ids) for o in (*firsts, *seconds))
    return {
        "tokens": sampled,
        "with_start": ended - started,
        "without_start": ended - ready,
        "busy": (ready, ended),
    }


def chained(model: str, rows: list[dict], tokens: int, args: argparse.Namespace) -> dict:
    import pyarrow.parquet as pq
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    from pipeline.runtime.session import ray_session

    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=ENGINE,
        batch_size=COMMIT,
        concurrency=1,
        placement_group_config={"bundles": [{"CPU": 1}]},
        log_engine_metrics=False,
    )

    def ask(row: dict, text: str, seed: int) -> dict:
        return {**row, "messages": [user(text)], "sampling_params": {"max_tokens": tokens, "seed": seed}}

    with tempfile.TemporaryDirectory() as directory, ray_session(directory):
        started = time.monotonic()
        first = build_processor(
            config,
            preprocess=lambda row: ask(row, STEP_1.format(**row), row["number"]),
            postprocess=lambda row: {
                "id": row["id"],
                "number": row["number"],
                "instruction": row["instruction"],
                "response": row["generated_text"],
                "sampled": row["num_generated_tokens"],
            },
        )
        second = build_processor(
            config,
            preprocess=lambda row: ask(
                row, STEP_2.format(instruction=row["instruction"], response=row["response"]), row["number"]
            ),
            postprocess=lambda row: {
                "id": row["id"],
                "response": row["response"],
                "analysis": row["generated_text"],
                "sampled": row["sampled"] + row["num_generated_tokens"],
            },
        )
        items = [
            {"id": row["id"], "number": i, "instruction": row["instruction"]} for i, row in enumerate(rows)
        ]
        second(
            first(ray.data.from_items(items, override_num_blocks=max(1, len(rows) // COMMIT)))
        ).write_parquet(f"{directory}/out")
        ended = time.monotonic()
        sampled = sum(pq.read_table(f"{directory}/out", columns=["sampled"])["sampled"].to_pylist())
    return {"tokens": sampled, "with_start": ended - started, "without_start": None}


PROGRAMS = {"bare": bare, "chained": chained, "setbacks": setbacks}


def benchmark_model(name: str, directory: str, parent: str | None) -> str:
    """The toy model, or a larger random one with its tokenizer, with an end-of-turn token that is never
    written, so that every completion has full length.

    parent: where larger models are kept.
    """
    from models import model_dir  # the module beside this one
    from transformers import AutoTokenizer

    target = Path(directory, "model")
    name = "small-toy-words" if name == "small" else name
    source = Path(model_dir(name, parent or directory)).absolute()
    shutil.copytree(source, target, copy_function=os.symlink)
    never = AutoTokenizer.from_pretrained(target).convert_ids_to_tokens(0)
    for name, key, end in (
        ("tokenizer_config.json", "eos_token", never),
        ("generation_config.json", "eos_token_id", 0),
        ("config.json", "eos_token_id", 0),
    ):
        settings = json.loads((target / name).read_text())
        (target / name).unlink()
        (target / name).write_text(json.dumps(settings | {key: end}))
    return str(target)


def adapter_of(model: str, directory: Path, seed: int) -> str:
    """A random LoRA adapter of rank 16 on all linear modules."""
    import torch
    from accelerate import init_empty_weights
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    with init_empty_weights():
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
        adapted = get_peft_model(base, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"))
    random = torch.Generator().manual_seed(seed)
    tensors = {
        name.replace(".default", ""): 0.01 * torch.randn(p.shape, generator=random)
        for name, p in adapted.named_parameters()
        if "lora_" in name
    }
    directory.mkdir()
    save_file(tensors, directory / "adapter_model.safetensors")
    config = adapted.peft_config["default"]
    config.base_model_name_or_path = model
    config.save_pretrained(directory)
    return str(directory)


def rows_of(count: int) -> list[dict]:
    from pipeline.settings.base import Source

    known = list(read(Source(path="toy:harmful-train")))
    return [{**known[i % len(known)], "id": f"row-{i:07d}"} for i in range(count)]


def measure(program: str, model: str, args: argparse.Namespace) -> dict:
    """Run one program in a process of its own, so that none inherits another's warm state."""
    command = [
        sys.executable,
        __file__,
        "--program",
        program,
        "--model",
        model,
        "--rows",
        str(args.rows),
        "--tokens",
        str(args.tokens),
        "--options",
        args.options,
        "--adapters",
        str(args.adapters),
        *(["--gpu"] if args.gpu else []),
        *(["--adapted"] if args.adapted else []),
    ]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_FLASHINFER_SAMPLER": "0",  # as setbacks; for bare vLLM too
    }
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = psutil.Popen(command, env=environment, stdout=out, stderr=errors, text=True)
        used: dict[psutil.Process, float] = {}
        looks = [(time.monotonic(), 0.0)]
        while child.poll() is None:
            for process in _tree(child):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    used[process] = times.user + times.system
            looks.append((time.monotonic(), sum(used.values())))
            time.sleep(LOOK_EVERY_S)
        out.seek(0)
        errors.seek(0)
        if child.returncode:
            sys.exit(f"{program} failed:\n{errors.read()[-3000:]}")
        found = json.loads(out.read().splitlines()[-1])
    begun, ended = found.pop("busy", None) or (None, None)
    cpu = at(looks, ended) - at(looks, begun) if begun else None
    return found | {"cpu": looks[-1][1], "busy_cpu": cpu}


def at(looks: list[tuple[float, float]], when: float) -> float:
    """CPU seconds used at a time, between two looks by their line."""
    for (t0, used0), (t1, used1) in pairwise(looks):
        if when <= t1:
            return used0 + (used1 - used0) * (when - t0) / (t1 - t0)
    return looks[-1][1]


def _tree(child: psutil.Process) -> list[psutil.Process]:
    try:
        return [child, *child.children(recursive=True)]
    except psutil.Error:
        return []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="toy", help="toy, small, 135m, 7b or a directory (see models.py)")
    parser.add_argument("--model-dir", help="keep random models in this directory, or find them there")
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--options", default="{}")
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--adapted", action="store_true")
    parser.add_argument("--programs", nargs="+", default=list(PROGRAMS), choices=PROGRAMS)
    parser.add_argument("--program", choices=PROGRAMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.program:
        print(json.dumps(PROGRAMS[args.program](args.model, rows_of(args.rows), args.tokens, args)))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("ray", "torch", "transformers"))
    dtype, on = ENGINE["dtype"], f"{os.cpu_count()} CPUs ({platform.machine()})"
    if args.gpu:
        import torch

        dtype, on = ENGINE_ON_GPU["dtype"], torch.cuda.get_device_name()
    print(
        f"{args.model} model, {args.rows} rows × 2 steps × {args.tokens} tokens, {dtype}, on {on}; {versions}"
    )
    rounds: list[dict[str, dict]] = []
    with tempfile.TemporaryDirectory() as directory:
        model = benchmark_model(args.model, directory, args.model_dir)
        for number in range(args.rounds):
            order = args.programs[:: -1 if number % 2 else 1]
            rounds.append({program: measure(program, model, args) for program in order})
            print(json.dumps(rounds[-1]), flush=True)
    report(rounds, args.programs)


def report(rounds: list[dict[str, dict]], programs: list[str]) -> None:
    expected = max(one["tokens"] for found in rounds for one in found.values())
    print(
        f"{'':10} {'tokens':>9} {'s with start':>13} {'tokens/s':>9} {'without':>8} {'tokens/s':>9} {'CPU s'}"
    )
    for name in programs:
        ours = [found[name] for found in rounds]
        whole, cpu = (statistics.median(one[what] for one in ours) for what in ("with_start", "cpu"))
        tokens = ours[0]["tokens"]
        line = f"{name:10} {tokens:9} {whole:13.1f} {tokens / whole:9.0f}"
        if ours[0]["without_start"]:
            busy = statistics.median(one["without_start"] for one in ours)
            line += f" {busy:8.1f} {tokens / busy:9.0f}"
        else:
            line += f" {'–':>8} {'–':>9}"
        print(f"{line} {cpu:7.1f}")
        if tokens < 0.99 * expected:
            print(
                f"  {name} sampled fewer tokens than the others: its completions ended early, the ratios do"
                " not compare the same work"
            )
    ratios = (
        ("bare", "without_start"),
        ("bare", "busy_cpu"),
        ("bare", "with_start"),
        ("chained", "with_start"),
    )
    for peer, what in ratios:
        if peer in programs and "setbacks" in programs:
            ours = sorted(_speed(found["setbacks"], what) / _speed(found[peer], what) for found in rounds)
            told = f"{statistics.median(ours):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ours)})"
            print(f"setbacks / {peer}, tokens per {RATIOS[what]}: {told}")


RATIOS = {
    "without_start": "second without engine start",
    "busy_cpu": "CPU second without engine start",
    "with_start": "second with engine start",
}


def _speed(found: dict, what: str) -> float:
    return found["tokens"] / found[what]


if __name__ == "__main__":
    main()
