"""Utility: what every arm can still do, by tasks of lm-evaluation-harness (Gao et al., EleutherAI).

The harness runs in processes of its own, one for each arm. Nothing here imports it in the driver.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from pipeline.data import records, storage
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.inference.base import Engine
from pipeline.report.examples import Example
from pipeline.report.headline import Headline
from pipeline.report.numbers import Rows
from pipeline.report.outcomes import Outcome
from pipeline.report.sections import Section
from pipeline.schema import Schema
from pipeline.settings.base import FOR_FINGERPRINT, Count, Model, Name, Natural
from pipeline.settings.shown import plural
from pipeline.suites.base import Apart, Judgements, Suite
from pipeline.suites.utility.schema import HARNESS, UTILITY


class Utility(Suite):
    """What arms can still do: tasks of lm-evaluation-harness, on the engine's devices."""

    data_schema: ClassVar[Schema] = UTILITY
    title: ClassVar = "utility"
    method: ClassVar = ""
    runs_apart: ClassVar = True

    tasks: list[Name] = Field(
        ["mmlu", "gsm8k", "ifeval", "hellaswag", "arc_challenge", "truthfulqa_mc2"],
        min_length=1,
        description="the harness's tasks, groups or tags; the default needs the hub",
    )
    limit: Count | None = Field(
        None,
        description="only the first documents of each task, for a trial: not comparable with other numbers",
    )
    fewshot: Natural | None = Field(None, description="examples in each prompt; null = the task's own number")
    include_path: Name | None = Field(
        None, description="directory with tasks of your own; Python that they name is run"
    )
    apply_chat_template: bool = Field(
        True, description="ask through the model's chat template; false = plain text, as for a base model"
    )
    backend: Literal["auto", "vllm", "hf"] = Field(
        "auto",
        description="what answers: auto = vllm if the engine has GPUs, else hf (transformers, with PEFT)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Utility":
        if self.exclude_seen:
            raise ValueError("exclude_seen: the documents are the harness's own, so leave it out")
        if repeated := [task for i, task in enumerate(self.tasks) if task in self.tasks[:i]]:
            raise ValueError(f"tasks: {repeated[0]} is named twice; leave one out")
        return self

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        given = dump(self)
        if info.context == FOR_FINGERPRINT:
            given = {**given, "harness": HARNESS}
            given.pop("exclude_seen", None)
        return given

    # -- checks

    def check(self, field: str, model: Model) -> None:
        """Raises UserError if the harness is missing, or has no such task, or a task cannot be run here."""
        from pipeline.suites.utility import tasks

        tasks.check_installed(field)
        if self.include_path is not None and not os.path.isdir(os.path.expanduser(self.include_path)):
            raise UserError(
                f"{field}.include_path = {self.include_path}: no such directory; give one with tasks, or"
                " leave it out"
            )
        tasks.check(field, self.tasks, self._include)

    def check_reach(self, field: str) -> None:
        """Raises OutOfReach if a data set of a task is neither on this disk nor on a hub that answers."""
        from pipeline.suites.utility import tasks

        tasks.check_reach(field, self.tasks, self._include)

    def check_engine(self, field: str, engine: Engine) -> None:
        """Raises UserError if the harness cannot load what the engine serves."""
        if not engine.reads_model:
            raise UserError(
                f"{field}: the harness loads the model's files itself, and engine.kind = {engine.kind} has"
                " none; use an engine that reads the model, or leave the suite out"
            )
        if engine.nodes > 1 and self.backend != "hf":
            raise UserError(
                f"{field}: the harness runs a model on one node, and engine.num_nodes = {engine.nodes}; leave"
                " the suite out"
            )
        if self.backend == "vllm" and not engine.gpus:
            raise UserError(
                f"{field}.backend = vllm: the harness runs vLLM on GPUs only; set engine.num_gpus, or"
                " backend: hf"
            )

    @property
    def _include(self) -> str | None:
        return self.include_path and os.path.abspath(os.path.expanduser(self.include_path))

    # -- work

    def apart(
        self, arm: str, adapter: str | None, model: Model, model_dir: str, engine: Engine, directory: str
    ) -> Apart | None:
        from pipeline.suites.utility import harness

        left = {task: self._result(directory, arm, task) for task in self.tasks}
        left = {task: path for task, path in left.items() if not storage.exists(path)}
        if not left:
            return None
        backend = self.backend if self.backend != "auto" else "vllm" if engine.gpus else "hf"
        settings = engine.model_dump(include={"gpu_memory_utilization", "max_num_seqs"})
        job = harness.Job(
            left, arm, adapter, model, model_dir, backend, engine.gpus, settings, self.limit, self.fewshot,
            self._include, self.apply_chat_template, os.getcwd(),
        )  # fmt: skip
        told = f"{arm} on {plural(len(left), 'task')}, {backend}"
        return Apart(partial(harness.run, job), told, gpus=engine.gpus)

    def collected(self, arms: Sequence[str], directory: str) -> tuple[Iterator[dict], list[str]]:
        paths = [self._result(directory, arm, task) for arm in arms for task in self.tasks]

        def read(part: str) -> Iterator[Any]:  # one result in memory at a time
            for path in paths:
                yield from (records.read(path) or {})[part]

        return read("rows"), [*dict.fromkeys(read("told"))]

    def _result(self, directory: str, arm: str, task: str) -> str:
        digest = hashlib.blake2b(task.encode(), digest_size=8).hexdigest()  # a task's name can be a path
        return storage.join(directory, f"{arm}-{digest}.json")

    def size(self) -> str:
        return plural(len(self.tasks), "task") + " of the harness, in processes of its own"

    # -- report

    def headlines(self, numbers: Rows, arms: Sequence[str], seed: int) -> list[Headline]:
        from pipeline.suites.utility import report

        return report.headlines(numbers, arms, seed)

    def report(
        self, numbers: Rows | None, arms: Sequence[str], seed: int, judgements: Judgements
    ) -> list[Section]:
        from pipeline.suites.utility import report

        return report.sections(self, numbers, arms, seed)

    @property
    def outcomes(self) -> list[Outcome]:
        """The numbers that stand for the tasks, and refusals, document by document."""
        place = {"by": "task", "row": ("subtask", "doc_id", "doc_hash"), "asked": ("subtask", "doc_hash")}
        return [
            Outcome("utility", "value", float, {"primary": True}, unit=None, **place),  # type: ignore[arg-type]
            Outcome("refused", "refused", float, {"primary": True}, **place),  # type: ignore[arg-type]
        ]

    def examples_shown(self, dataset: Dataset, arms: Sequence[str], count: int) -> tuple[str, list[Example]]:
        return "", []

    def settings(self) -> dict[str, str]:
        shots = "each task's own number of" if self.fewshot is None else str(self.fewshot)
        asked = "chat template" if self.apply_chat_template else "plain text, without the chat template"
        limit = f"; the first {self.limit} documents only" if self.limit else ""
        return {
            "Utility": ", ".join(self.tasks),
            "Utility is measured by": (
                f"lm-evaluation-harness {HARNESS}; {shots} examples in a prompt; {asked}{limit}"
            ),
        }

    def prompt_hashes(self) -> dict[str, str]:
        """A digest of the tasks in `include_path`."""
        if self._include is None or not os.path.isdir(self._include):
            return {}
        digest = hashlib.sha256()
        for folder, folders, files in os.walk(self._include):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            for name in sorted(files):
                path = os.path.join(folder, name)
                digest.update(os.path.relpath(path, self._include).encode())
                with open(path, "rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return {"tasks": digest.hexdigest()[:16]}
