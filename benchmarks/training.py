"""Training throughput: tokens/s of our trainer against plain TRL `SFTTrainer` with packing, side by side in
one process.

    python benchmarks/training.py [--model toy|small|135m|7b|DIR] [--threads 1] [--steps 8] [--rounds 3]
    [--gpu] [--workers 2]

Both train the same LoRA adapter on the same labeled examples with the same sequence length, batch, precision
and number of steps; TRL packs them and attends its own way (best-fit-decreasing, padding-free batches,
transformers' SDPA), we ours. Rounds alternate the order.
Reported: median tokens/s of each and their ratio; then CPU seconds, which other work on the machine disturbs
          less.

With --gpu, both are on a GPU. TRL runs as its documentation shows it to those who have no flash-attn package:
without `attn_implementation`, so with SDPA. transformers reads the beginnings of documents off the
positions, and gives SDPA a mask of the whole row: documents do not see each other, but SDPA's flash kernel
takes no mask.
Reported: tokens/s, the model FLOPs by gpu.py as a share of the GPU's peak, and the peak memory beside our
          estimate.

With --workers, it is ours against ours: each of so many processes (gloo, on this machine) with all weights of
the base model (DDP), or with its part of them (FSDP2).
"""

import argparse
import importlib.metadata
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from functools import partial

import datasets
import gpu
import torch
import transformers
from models import NAMES, SHAPES, model_dir  # the modules beside this one
from torch.multiprocessing import spawn
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import SFTConfig, SFTTrainer

from pipeline.config import Config
from pipeline.templates import ChatTemplate
from pipeline.training import examples, sft
from pipeline.training.adapter import lora_config
from pipeline.training.job import Job, Run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy", help=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4, help="packed sequences per step")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--workers", type=int, default=1, help="more than 1: FSDP2 against DDP, without TRL")
    parser.add_argument("--load-in-4bit", action="store_true", help="ours only")
    gpu.add_arguments(parser)
    args = parser.parse_args()
    if args.gpu and args.workers > 1:
        parser.error("--gpu takes one worker")
    if args.load_in_4bit and args.sides != ["ours"]:
        parser.error("--load-in-4bit takes --sides ours")
    if args.gpu:
        gpu.begin()
    with tempfile.TemporaryDirectory() as scratch:
        # Made here: in a process group, only the first process would save it.
        directory = model_dir(args.model, args.model_dir or scratch)
        if args.workers == 1:
            compare(args, scratch, directory)
        else:
            spawn(worker, (args, scratch, directory), args.workers)


def compare(args: argparse.Namespace, scratch: str, model_dir: str) -> None:
    """All rounds, in this process, which may be one of several."""
    if not args.gpu:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)

    config = Config.model_validate(
        {
            "run_dir": scratch,
            "model": {"path": model_dir, "dtype": "bfloat16"},
            "methods": {"mistakes": {"name": "mistake_analysis", "instructions": {"path": "unused"}}},
            "train": {
                "batch_size": args.batch_size,
                "max_length": args.max_length,
                "bf16": not args.float32,
                "workers": args.workers,
                "use_gpu": args.gpu,
                "gradient_checkpointing": args.gradient_checkpointing,
                "load_in_4bit": args.load_in_4bit,
            },
        }
    )
    conversations = workload(args.model, args.max_length)
    template = ChatTemplate(AutoTokenizer.from_pretrained(model_dir))
    encoded = [
        e
        for e in examples.encode(template, conversations)
        if not isinstance(e, str) and len(e.tokens) <= args.max_length
    ]
    sides = {
        "TRL": lambda: plain(config, model_dir, encoded, args.steps),
        "ours": lambda: ours(config, model_dir, encoded, args.steps),
    }
    if args.workers > 1:
        sides = {
            "DDP": lambda: ours(config, model_dir, encoded, args.steps),
            "FSDP2": lambda: ours(config, model_dir, encoded, args.steps, fsdp=True),
        }
    else:
        sides = {name: side for name, side in sides.items() if name in args.sides}
    first = args.workers == 1 or torch.distributed.get_rank() == 0
    runs = {name: [] for name in sides}
    for i in range(args.rounds):
        for name in sorted(sides, reverse=bool(i % 2)):
            run = partial(lambda side: measure(side()), sides[name])
            runs[name].append(gpu.with_memory(run) if args.gpu else run())
            if first and (speed := runs[name][-1].get("tokens_per_s")):
                print(f"round {i + 1}: {name:5} {speed:9,.0f} tokens/s", flush=True)
    if first:
        report(args, config, model_dir, encoded, runs)


def worker(rank: int, args: argparse.Namespace, scratch: str, model_dir: str) -> None:
    """A process of several."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.workers)}
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # otherwise accelerate sets one thread for each CPU
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1",
    }  # accelerate asks, although the group is there
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{scratch}/store", rank=rank, world_size=args.workers
    )
    own = f"{scratch}/{rank}"
    os.mkdir(own)
    try:
        compare(args, own, model_dir)
    finally:
        torch.distributed.destroy_process_group()


def workload(model: str, max_length: int) -> list[list[dict]]:
    """Conversations to train a model on."""
    from pipeline.toy.corpus import Corpus

    corpus = Corpus(1)
    if model not in SHAPES:
        return [corpus.draw() for _ in range(2000)]
    # Lengths of a real mixture: prompts that hold instruction and response, analyses about half as long. In
    # longer sequences they are longer, so that as many are in one.
    r, longer = random.Random(0), max(1, max_length // 1024)
    words = " ".join(m["content"] for _ in range(200) for m in corpus.draw()).split()
    lengths = [(r.randint(60, 300) * longer, r.randint(30, 150) * longer) for _ in range(400)]
    return [
        [
            {"role": role, "content": " ".join(r.choices(words, k=k))}
            for role, k in zip(("user", "assistant"), n, strict=True)
        ]
        for n in lengths
    ]


def ours(config: Config, model_dir: str, encoded: list, steps: int, fsdp: bool = False) -> SFTTrainer:
    t, scratch = config.arms["sft"].train.model_copy(update={"fsdp": fsdp}), tempfile.mkdtemp()
    bins = examples.pack([len(e.tokens) for e in encoded], t.max_length)
    sequences = datasets.Dataset(examples.table([[encoded[i] for i in b] for b in bins]))
    order = examples.schedule(len(bins), 1e3, t.batch_size, config.seed)[: steps * t.batch_size]
    return sft.trainer(
        Job("sft", t, config.model, model_dir, config.seed, scratch, 1, Run(len(bins)), "benchmark"),
        sequences.select(order),
        scratch,
        world=t.workers,
    )


def plain(config: Config, model_dir: str, encoded: list, steps: int) -> SFTTrainer:
    """TRL as its documentation shows it, on tokenised examples with their completion mask; gradient
    checkpointing as in ours."""
    t = config.arms["sft"].train
    rows = [
        {"input_ids": e.tokens, "completion_mask": [int(i >= e.prompt) for i in range(len(e.tokens))]}
        for e in encoded
    ]
    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        packing=True,
        max_length=t.max_length,
        completion_only_loss=True,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=t.batch_size,
        learning_rate=t.learning_rate,
        bf16=t.bf16,
        gradient_checkpointing=t.gradient_checkpointing,
        logging_steps=t.log_steps,
        save_strategy="no",
        use_cpu=not t.use_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=config.model.dtype if t.bf16 else "float32"
        ),
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=lora_config(t, None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def measure(trainer: SFTTrainer) -> dict:
    """Train, and count from the end of the first step: tokens/s by the clock, and CPU seconds per million
    tokens."""
    marks = []

    class Mark(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            marks.append((gpu.clock(), time.process_time()))

    tokens = [0]
    collate = trainer.data_collator

    def counted(rows):
        batch = collate(rows)
        tokens.append(batch["input_ids"].numel())
        return batch

    trainer.data_collator = counted
    trainer.add_callback(Mark())
    trainer.args.save_strategy = transformers.trainer_utils.SaveStrategy.NO
    trainer.train()
    trained = sum(tokens[1 + trainer.args.gradient_accumulation_steps :]) * trainer.args.world_size
    (wall0, cpu0), (wall1, cpu1) = marks[0], marks[-1]
    return {
        "tokens_per_s": trained / (wall1 - wall0),
        "cpu_s_per_mtoken": (cpu1 - cpu0) / trained * 1e6,
        "precision": gpu.precision(trainer),
    }


def report(
    args: argparse.Namespace, config: Config, model_dir: str, encoded: list, runs: dict[str, list[dict]]
) -> None:
    flops = gpu.Flops.of(model_dir, [len(e.tokens) for e in encoded])
    prompt = sum(e.prompt for e in encoded) / sum(len(e.tokens) for e in encoded)
    mean = statistics.mean(len(e.tokens) for e in encoded)
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "trl", "peft")
    )
    t = config.arms["sft"].train
    precision = "bf16" if t.bf16 else "float32"
    shape = f"sequences of {args.max_length}, {args.batch_size} a step"
    print(
        f"model {args.model}, {flops.shape.parameters / 1e6:.1f}M parameters, LoRA rank {t.lora.rank},"
        f" {precision}; {shape}"
    )
    print(f"{len(encoded)} examples of {mean:.0f} tokens on average, {prompt:.0%} of them prompt")
    print(
        f"{args.rounds} rounds of {args.steps} steps, the first not counted; {args.threads} threads of"
        f" {os.cpu_count()} CPUs; {versions}"
    )
    median = gpu.medians(runs)
    for name, m in median.items():
        print(f"{name:5} {m['tokens_per_s']:9,.0f} tokens/s", end=" ")
        if args.gpu:
            print(
                f"{m['tokens_per_s'] * flops.trained / args.peak_tflops / 1e12:.1%} of the GPU's FLOPs;",
                end=" ",
            )
            print(runs[name][-1]["precision"])
        else:
            print(f"{m['cpu_s_per_mtoken']:9.1f} CPU seconds per million tokens")
    if args.gpu:
        gpu.report_memory(runs)
        print(f"our estimate {gpu.estimate(config)}")
        print(f"{flops.trained / 1e9:.2f} GFLOP a token")
    one, other = ("FSDP2", "DDP") if args.workers > 1 else ("ours", "TRL")
    if {one, other} <= median.keys():
        faster = median[one]["tokens_per_s"] / median[other]["tokens_per_s"]
        saved = median[other]["cpu_s_per_mtoken"] / median[one]["cpu_s_per_mtoken"]
        less = "" if args.gpu else f", {saved:.2f} x tokens per CPU second"
        print(f"{one} / {other}: {faster:.2f} x tokens/s{less}")


if __name__ == "__main__":
    main()
