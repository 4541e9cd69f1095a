"""Preparing training sets at the papers' size: `mix`, tokenizing, and a resume that reads the finished set.

    python benchmarks/preparation.py --requests 50000            # 15 preference pairs each
    python benchmarks/preparation.py --requests 50000 --sft      # conversations, with 52 000 helpful ones

No engine: the generated data set is written here, of made-up words in C²-Syn's shape (a safe response, four
that turn away after ever longer cuts of one text of 80 to 150 words, the whole text), or in that of mistake
analysis. The tokenizer is the toy model's. `mix` runs as a command, the preparation as `train` does it, in a
process of its own; it stops before the workers would start. Peer: the figures of an older version, in
RESULTS.md.

Seconds are wall time; CPU seconds are those of all processes, Ray's own included. MiB are the peak private
memory of the largest process of a kind.
"""

import argparse
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from scale import watch  # the benchmark beside this one

from pipeline.toy.corpus import Corpus

CONFIG = """
run_dir: {directory}/run
model: {{path: toy}}
engine: {{kind: dummy}}
methods: {{{methods}}}
train: {{{train}, max_length: 1024}}
"""
PAIRS = "corrections: {name: course_correction, instructions: {path: unused.jsonl}}"
CONVERSATIONS = """mistakes: {{name: mistake_analysis, instructions: {{path: unused.jsonl}},
  mix: {{helpful: {{path: {directory}/helpful.jsonl}}, helpful_ratio: 2}}}}"""
HELPFUL = 52_000


class Texts:
    """Made-up texts in the toy's words."""

    def __init__(self):
        self.random, corpus = random.Random(0), Corpus(1)
        self.words = " ".join(m["content"] for _ in range(200) for m in corpus.draw()).split()

    def some(self, least: int, most: int) -> str:
        return " ".join(self.random.choices(self.words, k=self.random.randint(least, most)))


def corrections(requests: int):
    """Rows of a finished `generate` of course correction."""
    texts = Texts()
    for number in range(requests):
        opener, harmful = "Sure, here is how:", texts.some(80, 150)
        words = harmful.split()
        cuts = [" ".join(words[: len(words) * part // 5]) for part in (1, 2, 3, 4)]
        made = [
            ("safe", texts.some(40, 90)),
            *(("syn", f"{opener} {cut}, However, {texts.some(40, 90)}") for cut in cuts),
            ("harmful", f"{opener} {harmful}"),
        ]
        responses = [
            {"rank": rank, "kind": kind, "text": text} for rank, (kind, text) in enumerate(made, start=1)
        ]
        yield _about(number, texts) | {
            "unsafe_response": harmful,
            "opener": opener,
            "responses": responses,
            "lost": [],
        }


def mistakes(requests: int):
    """Rows of a finished `generate` of mistake analysis."""
    texts = Texts()
    for number in range(requests):
        yield _about(number, texts) | {
            "safe_response": texts.some(40, 90),
            "response": texts.some(80, 150),
            "response_source": "induced",
            "harmful": True,
            "analysis": texts.some(40, 90),
            "analysis_verdict": True,
        }


def _about(number: int, texts: Texts) -> dict:
    id = texts.random.randbytes(16).hex()
    request = f"how {texts.some(8, 24)} {number}"
    return {
        "id": id,
        "instruction_id": id,
        "sample": 0,
        "instruction": request,
        "category": "c",
        "status": "ok",
    }


def write(directory: Path, requests: int, sft: bool) -> None:
    from pipeline.config import load
    from pipeline.data.store import Store

    if sft:
        texts = Texts()
        with open(directory / "helpful.jsonl", "w") as f:
            for number in range(HELPFUL):
                line = {"instruction": f"{texts.some(8, 24)} {number}", "response": texts.some(20, 150)}
                f.write(json.dumps(line) + "\n")
    methods = CONVERSATIONS.format(directory=directory) if sft else PAIRS
    train = "method: sft" if sft else "method: dpo"
    (directory / "config.yaml").write_text(CONFIG.format(directory=directory, methods=methods, train=train))
    config = load(directory / "config.yaml")
    [method] = config.methods.values()
    store = Store(config.run_dir, method.generated.name, method.generated)
    store.open({})
    store.write_rows((mistakes if sft else corrections)(requests))


def prepare(directory: Path) -> None:
    """What `train` does before its workers start."""
    import pyarrow as pa

    from pipeline import models, preflight
    from pipeline.config import load
    from pipeline.data.dataset import Dataset
    from pipeline.runtime.session import ray_session
    from pipeline.training.arm import Places, Training

    config = load(directory / "config.yaml")
    specs = preflight.arm_specs(config, models.model_dir(config.model))
    spec = list(specs.values())[-1]
    dataset = Dataset.at(f"{config.run_dir}/{spec.train.accepts.name}")
    with ray_session(config.run_dir):
        started, used = time.monotonic(), time.process_time()
        places = Places(dataset, f"{config.run_dir}/adapter", f"{config.run_dir}/.state/adapter")
        training = Training([(spec, places)], f"{config.run_dir}/.state/train")
        seconds, cpu = time.monotonic() - started, time.process_time() - used
    [job] = training._arms[spec.name].jobs
    figures = {
        "seconds": seconds,
        "driver_cpu_s": cpu,
        "driver_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "driver_arrow_mib": pa.default_memory_pool().max_memory() / 2**20,
        "items": job.run.items,
        "name": job.name,
        "examples": training._arms[spec.name].counts.kinds.total(),
        "tables": job.tables,
    }
    (directory / "figures.json").write_text(json.dumps(figures))


def _tokens(tables: str) -> int:
    """The tokens of a training set: the elements of its first column of lists."""
    import pyarrow.parquet as pq

    [file] = [path for path in Path(tables).glob("*.parquet") if path.stem in ("responses", "sequences")]
    groups = pq.read_metadata(file)
    return sum(groups.row_group(number).column(0).num_values for number in range(groups.num_row_groups))


def told(what: str, m: dict, items: int) -> None:
    peaks = ", ".join(f"{kind} {mib:.0f}" for kind, mib in sorted(m["peaks"].items()))
    own = m.get("inner", m["seconds"])
    print(
        f"{what:10} {m['seconds']:7.1f} s with start, {own:7.1f} s without, {m['cpu_s']:7.1f} CPU s,"
        f" {own / items * 1e6:6.1f} µs each; MiB: {peaks}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--sft", action="store_true")
    parser.add_argument("--scratch", help="directory for the run; a temporary one by default")
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        return prepare(args.prepare)
    print(
        f"{os.cpu_count()} CPUs ({platform.machine()}), Python {platform.python_version()}, ray"
        f" {version('ray')}, pyarrow {version('pyarrow')}, tokenizers {version('tokenizers')}"
    )
    with tempfile.TemporaryDirectory(dir=args.scratch) as name:
        directory = Path(name)
        write(directory, args.requests, args.sft)
        mixed = watch([sys.executable, "-m", "pipeline.cli", "mix", str(directory / "config.yaml")])
        made = [_prepared(directory) for _ in range(2)]
        rows, figures = made[0]["figures"]["examples"], made[0]["figures"]
        print(
            f"{rows:,} rows are trained on, {_tokens(figures['tables']):,} tokens are kept, {figures['name']}"
        )
        told("mix", mixed, rows)
        told("prepare", made[0], rows)
        told("resume", made[1], rows)
        for one in made:
            print(
                f"driver: peak resident {one['figures']['driver_rss_mib']:.0f} MiB, of Arrow"
                f" {one['figures']['driver_arrow_mib']:.0f} MiB, {one['figures']['driver_cpu_s']:.1f} CPU s"
            )
        if made[0]["figures"]["name"] != made[1]["figures"]["name"]:
            sys.exit("the resumed training has another fingerprint")


def _prepared(directory: Path) -> dict:
    measured = watch([sys.executable, __file__, "--prepare", str(directory)])
    figures = json.loads((directory / "figures.json").read_text())
    return {**measured, "figures": figures, "inner": figures["seconds"]}


if __name__ == "__main__":
    main()
