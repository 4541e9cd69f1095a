"""One arm through lm-evaluation-harness, in a process of its own. Imports the harness inside functions."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import models, thoughts
from pipeline.chat import Message
from pipeline.data import adapter as adapter_files
from pipeline.data import records
from pipeline.errors import RunFailed, UserError
from pipeline.judges.refusal import is_refusal
from pipeline.schema import OK
from pipeline.settings.base import Model
from pipeline.settings.shown import first_line
from pipeline.suites.utility.schema import HARNESS

_ON_CPU = 8  # requests in a forward pass
_NEW_TOKENS = 256  # the harness's default for a task that does not say


@dataclass(frozen=True)
class Job:
    """One arm's tasks.

    results: task → file of its result, on storage that every node sees
    adapter: directory of the arm's adapter; None = the base model
    engine:  settings of the run's engine that vLLM takes by the same names
    cwd:     what relative paths of tasks are relative to
    """

    results: Mapping[str, str]
    arm: str
    adapter: str | None
    model: Model
    model_dir: str
    backend: str
    gpus: int
    engine: Mapping[str, Any]
    limit: int | None
    fewshot: int | None
    include: str | None
    apply_chat_template: bool
    cwd: str


def run(job: Job) -> None:
    """Measure the tasks one after the other, and write each one's result. Raises RunFailed."""
    if os.path.isdir(job.cwd):
        os.chdir(job.cwd)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    task = next(iter(job.results))
    with tempfile.TemporaryDirectory(prefix="setbacks-utility-") as scratch:
        try:
            model, manager = _opened(job, scratch), _tasks(job)
            for task, path in job.results.items():
                records.write(path, measured(job, task, model, manager))
        except ModuleNotFoundError as e:
            raise RunFailed(
                f"suites.utility: {e.name} is not installed on a node; install setbacks[utility] on every"
                " node"
            ) from None
        except (RunFailed, UserError):
            raise
        except Exception as e:  # the harness, the data sets and the model each have kinds of their own
            raise RunFailed(
                f"suites.utility: {task} failed for arm {job.arm} ({type(e).__name__}: {first_line(e)[:200]})"
            ) from e


def measured(job: Job, task: str, model: Any, manager: Any) -> dict:
    """The result of one task: `rows` of UTILITY, and `told`, sentences for the card."""
    import lm_eval

    found = lm_eval.simple_evaluate(
        model=model,
        tasks=[task],
        num_fewshot=job.fewshot,
        limit=job.limit,
        apply_chat_template=job.apply_chat_template,
        task_manager=manager,
        log_samples=True,
        bootstrap_iters=1000,
    )
    if found is None:
        raise RunFailed(f"suites.utility: the harness gave no result of {task} for arm {job.arm}")
    rows = list(rows_of(job, task, found, _lengths(model)))
    if not rows:
        raise RunFailed(f"suites.utility: the harness found no document of {task}")
    counts = found["n-samples"]
    told = [
        f"lm-evaluation-harness {HARNESS}, {name} version {found['versions'].get(name)}:"
        f" {counts[name]['effective']:,} of {counts[name]['original']:,} documents,"
        f" {found['n-shot'].get(name, 0)} examples in a prompt"
        for name in found["samples"]
    ]
    return {"told": told, "rows": rows}


def rows_of(job: Job, task: str, found: Mapping[str, Any], lengths: Any = None) -> Iterator[dict]:
    """The harness's results of one task or group as rows of UTILITY.

    lengths: tokens of (context, continuation), and the most that the model takes; None = not looked at.
    """
    for name, samples in found["samples"].items():
        results, config = found["results"][name], found["configs"][name]
        first = _first_metric(config, samples)
        directions = found["higher_is_better"].get(name) or {}
        for sample in samples:
            texts = _texts(sample) if config.get("output_type") == "generate_until" else []
            cut = _is_cut(sample, lengths) if lengths else None
            for metric in sample["metrics"]:
                key = f"{metric},{sample['filter']}"
                primary = (metric, sample["filter"]) == first
                yield {
                    "id": f"{job.arm}-{task}-{name}-{sample['doc_id']}-{key}",
                    "arm": job.arm,
                    "task": task,
                    "subtask": name,
                    "doc_id": sample["doc_id"],
                    "doc_hash": sample["doc_hash"],
                    "metric": metric,
                    "filter": sample["filter"],
                    "primary": primary,
                    "higher_is_better": directions.get(metric),
                    "value": _number(sample[metric]),
                    "written": "\n\n".join(texts) if texts and primary else None,
                    "refused": any(map(is_refusal, texts)) if texts else None,
                    "cut": cut,
                    "score": _number(results.get(key)),
                    "score_stderr": _number(results.get(f"{metric}_stderr,{sample['filter']}")),
                    "documents": found["n-samples"][name]["original"],
                    "task_version": str(found["versions"].get(name)),
                    "fewshot": found["n-shot"].get(name, 0),
                    "limit": job.limit,
                    "harness": f"lm-evaluation-harness {HARNESS}",
                    "status": OK,
                }


def _first_metric(config: Mapping[str, Any], samples: list[dict]) -> tuple[str, str]:
    """The metric that stands for the task: the first of its list, with the first filter."""
    has = samples[0]["metrics"]
    listed = [str(one.get("metric")) for one in config.get("metric_list") or ()]
    return next((metric for metric in listed if metric in has), has[0]), samples[0]["filter"]


def _number(value: Any) -> float | None:
    """A metric's value as a number; None for a list, a text or no finite number."""
    import numpy as np

    if isinstance(value, bool | int | float | np.number | np.bool_):
        return float(value) if np.isfinite(value) else None
    return None


def _texts(sample: Mapping[str, Any]) -> list[str]:
    """What the arm wrote for a document, without thoughts; all samples of all requests."""
    return [
        (thoughts.split(text).answer or "").strip()
        for of_request in sample["resps"]
        for text in of_request
        if isinstance(text, str)
    ]


def _is_cut(sample: Mapping[str, Any], lengths: Any) -> bool:
    """Whether the harness cut the beginning of a prompt of the document."""
    count, most = lengths
    for context, second, *_ in sample["arguments"]:
        if isinstance(second, str):  # a continuation: its last token is predicted, not read
            if count(context + second) > most + 1:
                return True
        else:
            new = (second or {}).get("max_gen_toks", _NEW_TOKENS) if isinstance(second, dict) else _NEW_TOKENS
            if count(context) > most - new:
                return True
    return False


def _lengths(model: Any) -> Any:
    return (lambda text: len(model.tok_encode(text))), model.max_length


def _opened(job: Job, scratch: str) -> Any:
    """The harness's model, which renders conversations as everything else here does."""
    template = models.load_template(job.model, job.model_dir)
    adapter = adapter_files.fetch(job.adapter, scratch) if job.adapter else None
    common = {"pretrained": job.model_dir, "dtype": job.model.dtype, "max_length": job.model.max_length}
    if job.model.revision:
        common["revision"] = job.model.revision
    model = _with_vllm(job, common, adapter) if job.backend == "vllm" else _with_hf(job, common, adapter)

    def render(history: list[Message], add_generation_prompt: bool = True) -> str:
        asks = {"begins": add_generation_prompt, "continues": not add_generation_prompt}
        try:
            return template.render(history, **asks)
        except UserError:  # a template without system turns: the task's description goes to the user
            return template.render(_without_system(history), **asks)

    model.apply_chat_template = render
    return model


def _without_system(history: list[Message]) -> list[Message]:
    """The conversation with the text of its system turn before that of the first user's turn."""
    if len(history) < 2 or history[0]["role"] != "system":
        return history
    first = history[1]
    return [{**first, "content": f"{history[0]['content']}\n\n{first['content']}"}, *history[2:]]


def _with_hf(job: Job, common: dict[str, Any], adapter: str | None) -> Any:
    if not job.gpus:  # Ray gives a process with one CPU one thread
        import torch

        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    from lm_eval.api.registry import get_model

    device = "cuda" if job.gpus else "cpu"
    size = "auto" if job.gpus else _ON_CPU
    return get_model("hf")(**common, peft=adapter, device=device, batch_size=size)


def _with_vllm(job: Job, common: dict[str, Any], adapter: str | None) -> Any:
    from lm_eval.api.registry import get_model

    lora = {}
    if adapter:
        lora = {"lora_local_path": adapter, "max_lora_rank": _engine_rank(adapter)}
    vllm = get_model("vllm")
    return vllm(**common, **lora, **job.engine, tensor_parallel_size=job.gpus, batch_size="auto")


def _engine_rank(adapter: str) -> int:
    """The smallest rank of an engine that the adapter fits."""
    from typing import get_args

    from vllm.config.lora import MaxLoRARanks

    own = adapter_files.rank(adapter_files.settings(adapter))
    return min(rank for rank in get_args(MaxLoRARanks) if rank >= own)


def _tasks(job: Job) -> Any:
    from lm_eval.tasks import TaskManager

    if job.include:
        own = TaskManager(include_path=job.include, include_defaults=False)
        if all(name in own.task_index for name in job.results):
            return own
    return TaskManager(include_path=job.include)
