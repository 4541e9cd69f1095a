"""Preference training: pairs/s of our trainer against plain TRL `DPOTrainer`, side by side in one process.

    python benchmarks/preference_training.py [--model toy|small|135m|7b|DIR] [--threads 1] [--steps 4]
    [--rounds 3] [--precompute] [--gpu]

Both train the same LoRA adapter on the same pairs with the same number of pairs a step, precision and number
of steps, one epoch in all. Pairs have C²-Syn's shape (request; a safe response, four that turn away from ever
longer cuts of one text, the whole text; all 15 pairs), of made-up words. TRL goes as its documentation shows
it: padded batches of shuffled pairs, the reference computed along by switching the adapter off, or before
with --precompute. Ours computes the reference before; the time of its pass counts, each step its share.
Rounds alternate the order. Tokens are those of both sides of each pair, however often they were computed;
`computed` counts what went through the model.

With --gpu, both are on a GPU: TRL with transformers' SDPA, as without a flash-attn package. Also reported are
the model FLOPs by gpu.py of the tokens that were computed, as a share of the GPU's peak in the seconds of
training (a reference that is computed along counts as a forward pass, one that was computed before does not),
and the peak memory beside our estimate.
"""

import argparse
import importlib.metadata
import logging
import math
import os
import random
import tempfile
import warnings

import datasets
import gpu
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import transformers
from models import NAMES, model_dir  # the modules beside this one
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer

from pipeline.config import Config
from pipeline.data.dataset import Dataset
from pipeline.schema import PREFERENCES
from pipeline.templates import ChatTemplate
from pipeline.toy.corpus import Corpus
from pipeline.training import dpo, reference
from pipeline.training.adapter import lora_config
from pipeline.training.base import TrainingSet
from pipeline.training.job import Job, write_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="toy", help=NAMES)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs per step")
    parser.add_argument("--per-device", type=int, default=16, help="pairs per micro-step")
    parser.add_argument("--precompute", action="store_true", help="TRL with precompute_ref_log_probs")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    parser.add_argument("--trl-per-device", type=int, help="as --per-device, for TRL alone")
    gpu.add_arguments(parser)
    args = parser.parse_args()
    if args.gpu:
        gpu.begin()
    else:
        torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    for name in ("trl", "accelerate"):
        logging.getLogger(name).setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as scratch:
        directory = model_dir(args.model, args.model_dir or scratch)
        config = configuration(args, directory, scratch)
        rows = workload(args.steps * args.batch_size)
        made = prepared(config, directory, rows)
        sides = {
            "TRL": lambda: plain(config, directory, rows, args.precompute, args.trl_per_device),
            "ours": lambda: ours(config, directory, made),
        }
        runs = {name: [] for name in sides if name in args.sides}
        for i in range(args.rounds):
            for name in sorted(runs, reverse=bool(i % 2)):
                runs[name].append(gpu.with_memory(sides[name]) if args.gpu else sides[name]())
                if speed := runs[name][-1].get("pairs_per_s"):
                    print(f"round {i + 1}: {name:4} {speed:8.2f} pairs/s", flush=True)
        report(args, config, directory, made, runs)


def configuration(args: argparse.Namespace, model_dir: str, scratch: str, **train) -> Config:
    """train: fields of the section that differ."""
    return Config.model_validate(
        {
            "run_dir": scratch,
            "model": {"path": model_dir, "dtype": "bfloat16"},
            "methods": {"corrections": {"name": "course_correction", "instructions": {"path": "unused"}}},
            "train": {
                "method": "dpo",
                "batch_size": args.batch_size,
                "pairs_per_device": args.per_device,
                "bf16": not args.float32,
                "use_gpu": args.gpu,
                "gradient_checkpointing": args.gradient_checkpointing,
                **train,
            },
        }
    )


def workload(pairs: int) -> list[dict]:
    """Rows of schema PREFERENCES: groups of 15 pairs, the last one cut short."""
    r, corpus = random.Random(0), Corpus(1)
    words = " ".join(m["content"] for _ in range(200) for m in corpus.draw()).split()

    def some(least: int, most: int) -> str:
        return " ".join(r.choices(words, k=r.randint(least, most)))

    rows = []
    for g in range(-(-pairs // 15)):
        prompt, cuts = [{"role": "user", "content": some(8, 24)}], ["Sure, here is how: " + some(10, 25)]
        for _ in range(4):
            cuts.append(f"{cuts[-1]} {some(10, 25)}")
        ranked = [
            some(20, 60),
            *(f"{cut} However, {some(25, 60)}" for cut in cuts[:4]),
            cuts[4] + " " + some(10, 40),
        ]
        for i, better in enumerate(ranked, 1):
            for j, worse in enumerate(ranked[i:], i + 1):
                answers = {
                    side: [{"role": "assistant", "content": text}]
                    for side, text in (("chosen", better), ("rejected", worse))
                }
                rows.append(
                    {
                        "id": f"{g}-{i}-{j}",
                        "group": str(g),
                        "prompt": prompt,
                        "rank_chosen": i,
                        "rank_rejected": j,
                        **answers,
                    }
                )
    return rows[:pairs]


def prepared(config: Config, model_dir: str, rows: list[dict]) -> TrainingSet:
    """The rows as our trainer takes them."""
    pairs = tempfile.mkdtemp()
    pq.write_table(PREFERENCES.table(rows), f"{pairs}/data.parquet")
    template = ChatTemplate(AutoTokenizer.from_pretrained(model_dir))
    return config.arms["dpo"].train.prepare(template, Dataset.at(pairs), None, config.seed)


def ours(config: Config, model_dir: str, made: TrainingSet) -> dict:
    t, scratch = config.arms["dpo"].train, tempfile.mkdtemp()
    for name, table in made.tables.items():
        write_table(table, f"{scratch}/{name}.parquet")
    spent = timed(reference, "log_probs")
    trainer = dpo.build(
        Job("dpo", t, config.model, model_dir, config.seed, scratch, 1, made.runs[0], "benchmark"), scratch
    )
    return measure(trainer, config, sum(spent), lambda batch: batch["input_ids"].numel())


def plain(
    config: Config, model_dir: str, rows: list[dict], precompute: bool, per_device: int | None = None
) -> dict:
    """TRL as its documentation shows it; gradient checkpointing as in ours."""
    t = config.arms["dpo"].train
    per_device = per_device or t.pairs_per_device
    args = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=len(rows) // t.batch_size,
        max_length=t.max_length,
        beta=t.beta,
        precompute_ref_log_probs=precompute,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=t.batch_size // per_device,
        learning_rate=t.learning_rate,
        bf16=t.bf16,
        gradient_checkpointing=t.gradient_checkpointing,
        logging_steps=t.log_steps,
        save_strategy="no",
        use_cpu=not t.use_gpu,
        disable_tqdm=True,
        report_to="none",
    )
    spent = timed(DPOTrainer, "_precompute_ref_logps")
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            model_dir, dtype=config.model.dtype if t.bf16 else "float32"
        ),
        args=args,
        train_dataset=datasets.Dataset.from_list(
            [{side: row[side] for side in ("prompt", "chosen", "rejected")} for row in rows]
        ),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        peft_config=lora_config(t, None),
    )
    trainer.remove_callback(PrinterCallback)
    return measure(trainer, config, sum(spent), lambda batch: batch["attention_mask"].sum().item())


def timed(owner, name: str) -> list[float]:
    """Have a function of a module or class note the seconds that its calls take."""
    function, spent = getattr(owner, name), []

    def noting(*args, **kwargs):
        started = gpu.clock()
        try:
            return function(*args, **kwargs)
        finally:
            spent.append(gpu.clock() - started)
            setattr(owner, name, function)

    setattr(owner, name, noting)
    return spent


def measure(trainer: DPOTrainer, config: Config, reference_s: float, tokens_of) -> dict:
    """Train, and count from the end of the first step; each step bears its share of the reference's
    seconds."""
    t = config.arms["dpo"].train
    marks, computed, collate = [], [], trainer.data_collator

    class Mark(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            marks.append(gpu.clock())

    def counted(rows):
        batch = collate(rows)
        computed.append(tokens_of(batch))
        return batch

    trainer.data_collator = counted
    trainer.add_callback(Mark())
    trainer.args.save_strategy = transformers.trainer_utils.SaveStrategy.NO
    trainer.train()
    steps = len(marks) - 1
    seconds = marks[-1] - marks[0] + reference_s * steps / len(marks)
    micro_steps = trainer.args.gradient_accumulation_steps
    return {
        "pairs_per_s": steps * t.batch_size / seconds,
        "computed_per_s": sum(computed[micro_steps:]) / seconds,
        "computed_per_pair": sum(computed[micro_steps:]) / (steps * t.batch_size),
        "reference_share": reference_s * steps / len(marks) / seconds,
        "computed_per_training_s": sum(computed[micro_steps:]) / (marks[-1] - marks[0]),
        "most_computed": max(computed),
        "precision": gpu.precision(trainer),
    }


def report(
    args: argparse.Namespace, config: Config, model_dir: str, made: TrainingSet, runs: dict[str, list[dict]]
) -> None:
    t, pairs = config.arms["dpo"].train, made.tables["pairs"]
    lengths = pc.list_value_length(made.tables["responses"]["tokens"]).to_pylist()
    sides = [lengths[response] for side in ("chosen", "rejected") for response in pairs[side].to_pylist()]
    flops = gpu.Flops.of(model_dir, sides)
    versions = ", ".join(
        f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "trl", "peft")
    )
    precision = "bf16" if t.bf16 else "float32"
    median = gpu.medians(runs)
    per_pair = median["TRL"]["computed_per_pair"] if "TRL" in median else sum(sides) / pairs.num_rows
    print(
        f"model {args.model}, {flops.shape.parameters / 1e6:.1f}M parameters, LoRA rank {t.lora.rank},"
        f" {precision}; {pairs.num_rows} pairs of",
        end=" ",
    )
    print(f"{per_pair:.0f} tokens (both sides), {t.batch_size} a step, {t.pairs_per_device} a micro-step")
    print(
        f"{args.rounds} rounds of {args.steps} steps, the first not counted; {args.threads} threads of"
        f" {os.cpu_count()} CPUs; {versions}"
    )
    for name, m in median.items():
        print(
            f"{name:4} {m['pairs_per_s']:8.2f} pairs/s {m['pairs_per_s'] * per_pair:10,.0f} tokens/s", end=" "
        )
        print(
            f"({m['computed_per_pair']:.0f} computed per pair, {m['computed_per_s']:,.0f}/s;"
            f" {m['reference_share']:.0%} for the reference)"
        )
    if args.gpu:
        report_gpu(args, config, model_dir, flops, runs)
    if {"ours", "TRL"} <= median.keys():
        print(f"ours / TRL{' with precomputed reference' if args.precompute else ''}: ", end="")
        print(f"{median['ours']['pairs_per_s'] / median['TRL']['pairs_per_s']:.2f} x pairs/s")


def report_gpu(
    args: argparse.Namespace,
    config: Config,
    model_dir: str,
    flops: gpu.Flops,
    runs: dict[str, list[dict]],
) -> None:
    median = gpu.medians(runs)
    for name, m in median.items():
        along = name == "TRL" and not args.precompute
        per_token = flops.trained + (flops.forward if along else 0)
        used = m["computed_per_training_s"] * per_token / args.peak_tflops / 1e12
        print(
            f"{name:4} {used:.1%} of the GPU's FLOPs in training, {per_token / 1e9:.2f} GFLOP a token"
            f" computed; {runs[name][-1]['precision']}"
        )
    gpu.report_memory(runs)
    print(f"our estimate {gpu.estimate(config)}")
    if "ours" in median:
        t, most = config.arms["dpo"].train, median["ours"]["most_computed"]
        gap = config.methods["corrections"].widest_gap
        sequences = t.micro_batch(gap).tokens / t.max_length
        of_rows = configuration(args, model_dir, config.run_dir, max_length=math.ceil(most / sequences))
        print(f"  for the largest micro-batch, of {most:.0f} tokens: {gpu.estimate(of_rows)}")


if __name__ == "__main__":
    main()
