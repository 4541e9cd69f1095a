"""An evaluation of a suite by the main path, with a scripted chat in place of engines."""

import asyncio
from contextlib import nullcontext

from pipeline import experiment, preflight, pretrained
from pipeline.config import Config
from pipeline.errors import RowFailed
from pipeline.run import Machinery
from tests import scripted
from tests.scripted import ScriptedChat


def config(tmp_path, suites: dict, **changes) -> Config:
    """A run that only evaluates `suites`, on the base model and the adapter `tuned`.

    Phrases judge harm unless a suite says otherwise.
    """
    suites = {
        name: {"harmless": {"kind": "refusal"}, **suite} if name in ("safety", "jailbreak") else suite
        for name, suite in suites.items()
    }
    settings = {"model": {"path": "org/model"}, "instructions": None, "adapters": {"tuned": str(tmp_path)}}
    return scripted.config(tmp_path / "run", **{**settings, "suites": suites, **changes})


def evaluate(monkeypatch, tmp_path, config: Config, chat: ScriptedChat) -> list[str]:
    """Run `evaluate` and `report`; returns the lines told. All texts come from `chat`."""

    def run_recipes(jobs, spec, *, seed, label):
        for job in jobs:
            yield job, {"seconds": 1.0, "rows": sum(map(run_block, unfinished(job)))}

    def unfinished(job):
        return [(job, job.store.block(job.work, number)) for number in job.undone()]

    def run_block(unfinished) -> int:
        job, block = unfinished
        todo, _ = block.read()
        results = []
        for row in todo:
            found = {name: row[name] for name in job.store.schema.names if name in row}
            try:
                results.append(found | asyncio.run(job.recipe(row, chat)))
            except RowFailed as e:
                results.append(found | {"status": "failed", "error": str(e)})
        block.commit(results)
        return len(results)

    (tmp_path / "adapter_model.safetensors").write_text("matrices")
    monkeypatch.setattr(experiment, "check_adapter", lambda *_arguments: None)
    monkeypatch.setattr(preflight, "check_models", lambda *_arguments: [])
    monkeypatch.setattr(pretrained, "generation_settings", lambda *_arguments: {})
    told: list[str] = []
    machinery = Machinery(
        lambda _run_dir: nullcontext(), lambda *_arguments: None, run_recipes, lambda *_arguments: None
    )
    experiment.run(config, ["evaluate", "report"], log=told.append, machinery=machinery)
    return told
