"""Whole runs with a scripted model in place of engine, cluster and trainer."""

import asyncio
from contextlib import nullcontext

import pyarrow.parquet as pq
import pytest

from pipeline import experiment, models, preflight, pretrained
from pipeline.data import storage
from pipeline.errors import RowFailed
from pipeline.run import Machinery
from pipeline.schema import STAGES
from tests import scripted
from tests.scripted import ScriptedChat
from tests.unit.experiment.runs import CORRECTION, Calls


@pytest.fixture
def calls(monkeypatch):
    """Everything that takes an engine or a trainer is done here and now; returns the names of the stages that
    really worked."""
    done = Calls()
    done.specs = []

    def read(directory):
        return [
            row for file in storage.files(directory, ".parquet") for row in pq.read_table(file).to_pylist()
        ]

    def run_recipes(jobs, spec, *, seed, label):
        chat = ScriptedChat(
            induce="Sure, do it.",
            analyse="It is harmful.",
            answer="Sure.",
            safe="I cannot help you with such a crime.",
            harmless="Rating: [[2]]",
            help="Rating: [[3]]",
            **{
                f"syn{i}": f" it is illegal, and I cannot help you with crime number {i}."
                for i in range(1, 5)
            },
            **{"continue": [" and then wait."] * 20},
        )
        done.append(label)
        done.specs.append((label, spec))
        for job in jobs:
            yield job, {"seconds": 1.0, "rows": scripted_run(job, chat)}

    def scripted_run(job, chat):
        ran, columns = 0, job.store.schema.names
        for block in (job.store.block(job.work, number) for number in job.undone()):
            todo, results = block.read()
            for row in todo:
                if row["id"] in results:
                    continue
                ran += 1
                found = results[row["id"]] = {name: row[name] for name in columns if name in row}
                if row["status"] != "failed":
                    try:
                        found |= asyncio.run(job.recipe(row, chat))
                    except RowFailed as e:
                        found |= {"status": "failed", "error": str(e)}
            block.commit([results[row["id"]] for row in todo])
        return ran

    class Training:
        def __init__(self, arms, checkpoints):
            self.arms = {spec.name: places for spec, places in arms}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def result(self, name, on_progress):
            done.append(f"train {name}")
            arm = self.arms[name]
            storage.write_text(
                storage.join(arm.out, "adapter_model.safetensors"), f"{name} {list(arm.examples.rows())}"
            )
            return {"examples": 3, "steps": 2, "final_loss": 0.5}

    monkeypatch.setattr(experiment, "check_adapter", lambda *_arguments: None)
    monkeypatch.setattr(preflight, "check_models", lambda *_arguments: [])
    monkeypatch.setattr(pretrained, "generation_settings", lambda *_arguments: {})
    done.machinery = Machinery(
        lambda _run_dir: nullcontext(), lambda *_arguments: None, run_recipes, Training
    )
    return done


@pytest.fixture
def specs(calls):
    """Stage and `ModelSpec` of every start of engines."""
    return calls.specs


@pytest.fixture
def run(tmp_path, calls):
    """Run stages under a configuration; returns the lines told."""

    def run(
        *stages: str,
        overwrite: bool = False,
        retry_failed: bool = False,
        machinery: Machinery | None = None,
        **changes,
    ) -> list[str]:
        settings = {
            "model": {"path": "org/model"},
            "instructions": {"path": "toy:harmful-train", "limit": 4},
            "mix": {"helpful": {"path": "toy:helpful-train"}},
            "evaluation": {"harmful": {"path": "toy:harmful-heldout", "limit": 2}},
        }
        told = []
        config = scripted.config(tmp_path / "run", **settings | changes)
        options = {"overwrite": overwrite, "retry_failed": retry_failed, "log": told.append}
        experiment.run(config, stages or STAGES[:-1], machinery=machinery or calls.machinery, **options)
        return told

    return run


@pytest.fixture
def correct(run, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    return lambda *stages, **changes: run(*stages, **{**CORRECTION, **changes})
