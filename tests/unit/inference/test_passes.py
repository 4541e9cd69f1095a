"""Several models in one run: they take turns in passes over the same rows, and the rows are as if they stood
side by side. The real actor, store and main path, but no Ray and no engine."""

import asyncio
import json
from contextlib import nullcontext
from types import SimpleNamespace
from zlib import crc32

import pyarrow as pa
import pytest

from pipeline import experiment, preflight, pretrained
from pipeline.chat import Completion, Sampling, user
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.inference import pool, progress
from pipeline.inference.beside import NotOpen
from pipeline.inference.pool import ModelSpec, run_recipes
from pipeline.inference.row_chat import OpenModels, RowChat
from pipeline.run import Machinery, Run
from tests import scripted

pytestmark = pytest.mark.usefixtures("no_figures")

BASE, GUARD = "org/base", "org/guard"


class Killed(BaseException):
    """What stands here for SIGKILL of the driver."""


class Fake:
    """A model: what it answers to a prompt. `asked`: every request. `dies_after`: requests until the kill."""

    def __init__(self, answer):
        self.answer, self.asked, self.dies_after = answer, [], None

    async def complete(self, prompt, sampling, *, seed, adapter, prefill=True):
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            raise Killed
        text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        self.asked.append((text, seed, adapter))
        await asyncio.sleep(0)
        answer = self.answer(text)
        if isinstance(answer, Exception):
            raise answer
        return [Completion(answer, 10, 3, "stop")] * sampling.n


class Local:
    """A Ray actor that is none: what is called remotely is done here and now."""

    def __init__(self, cls):
        self.it = cls()

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.it, name))


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """The fakes by model, and the models whose engines were started, in order."""
    found = SimpleNamespace(
        base=Fake(lambda text: f"Sure: {text[:40]}"),
        guard=Fake(lambda text: "unsafe\nS2" if "Sure" in text else "safe"),
        starts=[],
        labels=[],
    )
    fakes = {BASE: found.base, GUARD: found.guard}

    def opened(spec):
        found.starts.append(spec.model.path or spec.engine.kind)
        return fakes.get(spec.model.path, found.guard)

    def run_tasks(tasks, jobs, spec, seed, reporter):
        found.labels.append(reporter._label)
        actor = pool.RecipeActor(spec, jobs, seed, reporter)

        async def one(task):
            return [table async for table in actor(pa.Table.from_pylist([task]))]

        with asyncio.Runner() as loop:
            for task in tasks:
                loop.run(one(task))
                yield task["job"]

    monkeypatch.setattr(ModelSpec, "open", opened)
    monkeypatch.setattr(pool, "_run_tasks", run_tasks)
    monkeypatch.setattr(progress, "actor_on_driver_node", Local)
    monkeypatch.setattr(progress, "EngineMetrics", lambda _label: SimpleNamespace(record=lambda *_: None))
    monkeypatch.setattr("ray.get", lambda value: value)
    for place in (experiment, preflight):
        monkeypatch.setattr(place, "check_adapter", lambda *_arguments: [])
    monkeypatch.setattr(preflight, "check_models", lambda *_arguments: [])
    monkeypatch.setattr(pretrained, "generation_settings", lambda *_arguments: {})
    found.machinery = Machinery(
        lambda _run_dir: nullcontext(),
        lambda *_arguments: None,
        run_recipes,
        beside=lambda _specs: nullcontext({}),
    )
    return found


LOCAL = {"guard": {"path": GUARD, "engine": {"rows_per_commit": 2}}}
SERVER = {"guard": {"engine": {"kind": "openai", "url": "http://h/v1", "model": "g", "api_key_env": None}}}


def settings(tmp_path, named=LOCAL, **changes):
    safety = {
        "harmful": {"path": "toy:harmful-heldout", "limit": 5},
        "conditions": ["plain"],
        "harmless": {"kind": "llama_guard", "model": "guard"},
        "help": None,
        **changes.pop("safety", {}),
    }
    return scripted.config(
        tmp_path,
        model={"path": BASE},
        engine={"rows_per_commit": 2},
        models=named,
        instructions=None,
        suites={"safety": safety},
        **changes,
    )


def run(cluster, config, *stages, **options) -> list[str]:
    told = []
    experiment.run(config, stages or None, log=told.append, machinery=cluster.machinery, **options)
    return told


def rows(config, name="evaluation") -> list[dict]:
    one = Run(config)
    stores = [*one.generated.values(), *one.suites.values(), *one.verdicts.values()]
    return list(next(store for store in stores if store.name == name).dataset.rows())


@pytest.fixture
def evaluated(cluster, tmp_path):
    config = settings(tmp_path / "run")
    run(cluster, config, "evaluate")
    return config


def test_a_local_judge_has_a_pass_of_its_own_after_all_answers(cluster, evaluated):
    assert cluster.starts == [BASE, GUARD]
    assert cluster.labels == ["evaluate", "evaluate by guard"]
    assert len(cluster.base.asked) == len(cluster.guard.asked) == 5
    assert {(row["harmful"], *row["harm_categories"]) for row in rows(evaluated)} == {(True, "S2")}
    assert all(adapter is None for _, _, adapter in cluster.guard.asked)


def test_the_rows_are_those_of_a_server_that_stands_beside(cluster, evaluated, tmp_path):
    side_by_side = settings(tmp_path / "beside", SERVER)
    run(cluster, side_by_side, "evaluate")
    assert cluster.starts[2:] == [BASE, "openai"], "one pass; the client is opened beside the engine"
    assert rows(side_by_side) == rows(evaluated)
    assert all(row["completion_tokens"] == 3 for row in rows(evaluated)), (
        "the judge's tokens are not the row's"
    )


@pytest.mark.parametrize("answered", [0, 1, 3, 5])
def test_a_run_that_is_killed_among_verdicts_is_resumed_without_the_answers(
    cluster, evaluated, tmp_path, answered
):
    config = settings(tmp_path / "killed")
    before = len(cluster.base.asked), len(cluster.guard.asked)
    cluster.guard.dies_after = before[1] + answered
    if answered < 5:
        with pytest.raises(Killed):
            run(cluster, config, "evaluate")
        cluster.guard.dies_after, cluster.starts[:] = None, []
        run(cluster, config, "evaluate")
        assert cluster.starts == [GUARD], "the base model is not started again"
    else:
        run(cluster, config, "evaluate")
    assert len(cluster.base.asked) - before[0] == 5, "no answer was asked for twice"
    assert len(cluster.guard.asked) - before[1] <= 5 + 1, "at most the block in flight"
    assert rows(config) == rows(evaluated)


def test_a_run_that_is_killed_among_answers_is_resumed_too(cluster, evaluated, tmp_path):
    config = settings(tmp_path / "killed")
    cluster.base.dies_after = len(cluster.base.asked) + 3
    with pytest.raises(Killed):
        run(cluster, config, "evaluate")
    cluster.base.dies_after, cluster.starts[:] = None, []
    run(cluster, config, "evaluate")
    assert cluster.starts == [BASE, GUARD]
    assert rows(config) == rows(evaluated)


def test_a_corrupt_file_of_waiting_rows_costs_work_and_no_row(cluster, evaluated, tmp_path):
    config = settings(tmp_path / "corrupt")
    cluster.guard.dies_after = len(cluster.guard.asked)
    with pytest.raises(Killed):
        run(cluster, config, "evaluate")
    waiting = sorted((tmp_path / "corrupt" / ".state" / "evaluation").glob("calls-*/guard/*"))
    assert len(waiting) == 3, "one file per block"
    waiting[1].write_bytes(waiting[1].read_bytes()[:20])
    cluster.guard.dies_after = None
    run(cluster, config, "evaluate")
    assert rows(config) == rows(evaluated)
    assert not list((tmp_path / "corrupt" / ".state" / "evaluation").glob("calls-*")), "forgotten at the end"


def test_an_answer_or_a_verdict_that_fails_fails_its_row(cluster, tmp_path):
    more = {"harmful": {"path": "toy:harmful-heldout", "limit": 12}}
    config = settings(tmp_path / "run", safety=more)
    odd = lambda text: crc32(text.encode()) % 2  # noqa: E731
    cluster.base.answer = lambda text: RowFailed("prompt too long") if odd(text) else "Sure, do it."
    cluster.guard.answer = lambda text: RowFailed("no answer") if odd(text) else "safe"
    run(cluster, config, "evaluate")
    local = rows(config)
    assert {row["error"] for row in local} == {"prompt too long", "no answer", None}
    beside = settings(tmp_path / "beside", SERVER, safety=more)
    run(cluster, beside, "evaluate")
    assert rows(beside) == local


def test_a_judge_without_a_name_asks_the_base_model_in_the_same_pass(cluster, tmp_path):
    config = settings(tmp_path / "run", safety={"harmless": {"kind": "yes_no_harmful"}})
    run(cluster, config, "evaluate")
    assert cluster.starts == [BASE] and len(cluster.base.asked) == 10 and not cluster.guard.asked


# -- methods whose models alternate


def test_models_alternate_as_often_as_a_method_asks_them(cluster, tmp_path):
    """Mistake analysis: the model makes a mistake, the guard verifies it, the model explains it."""

    def generated(place, named):
        config = scripted.config(
            tmp_path / place,
            model={"path": BASE},
            engine={"rows_per_commit": 2},
            models=named,
            instructions={"path": "toy:harmful-train", "limit": 5},
            recipe={"verify": {"kind": "llama_guard", "model": "guard"}, "gates": None},
        )
        run(cluster, config, "generate")
        return rows(config, "mistakes")

    local = generated("local", LOCAL)
    assert cluster.starts == [BASE, GUARD, BASE]
    assert len(cluster.base.asked) == 10 and len(cluster.guard.asked) == 5
    assert {row["status"] for row in local} == {"ok"}
    assert local == generated("beside", SERVER)


def test_the_aligned_model_generates_with_its_own_engine(cluster, tmp_path):
    config = scripted.config(
        tmp_path / "run",
        model={"path": BASE},
        models={"good": {"path": GUARD, "engine": {"actors": 3}}},
        instructions={"path": "toy:detailed-train", "limit": 3},
        recipe={"name": "course_correction", "aligned": {"model": "good"}, "min_words": 5, "keywords": []},
        train={"method": "dpo"},
    )
    cluster.guard.answer = lambda _text: " it is illegal, and I cannot help you with crime."
    run(cluster, config, "generate")
    assert cluster.starts == [GUARD] and not cluster.base.asked
    [making] = [config.generator("corrections")]
    assert (making.engine.actors, making.engine_field) == (3, "models.good.engine")


def test_calls_that_run_beside_each_other_are_kept_although_one_has_to_wait():
    """A recipe gathers calls: the one to a closed model ends the recipe, the other's answer is not lost."""

    class Slow:
        async def complete(self, *_arguments, **_more):
            await asyncio.sleep(0.02)
            return [Completion("slow", 1, 1, "stop")]

    async def both(chat):
        calls = (
            chat([user("a")], Sampling(8), step="a"),
            chat([user("b")], Sampling(8), step="b", model="x"),
        )
        try:
            await asyncio.gather(*calls)
        except NotOpen:
            await chat.settled()

    chat = RowChat(Slow(), 0, "r", SimpleNamespace(get=lambda _name: None))
    asyncio.run(both(chat))
    assert chat.awaited == {"x"} and list(chat.calls) == ["a"]


# -- more judges


MORE = {
    "phrases": {"kind": "refusal"},
    "rated": {"kind": "rating", "model": "guard"},
    "own": {"kind": "yes_no_harmful"},
}


def test_more_judges_judge_the_stored_answers_and_generate_none(cluster, evaluated, tmp_path):
    before, digest = len(cluster.base.asked), (tmp_path / "run/.state/evaluation/complete.json").read_bytes()
    config = settings(tmp_path / "run", safety={"more_judges": {"rated": MORE["rated"]}})
    cluster.starts[:] = []
    cluster.guard.answer = lambda _text: "It is rude. Rating: [[3]]"
    told = run(cluster, config)
    assert cluster.starts == [GUARD] and len(cluster.base.asked) == before
    assert (tmp_path / "run/.state/evaluation/complete.json").read_bytes() == digest
    assert [line for line in told if line.startswith("rejudge: 5 rows (5 ok)")]
    verdicts = rows(config, "verdicts_rated")
    assert {(row["judge"], row["harmful"], row["rating"], row["raw"]) for row in verdicts} == {
        ("rated", True, 3.0, "It is rude. Rating: [[3]]")
    }
    assert [row["answer_id"] for row in verdicts] == [row["id"] for row in rows(config)]
    # another one, later: the first judge's verdicts stay as they are
    asked = len(cluster.guard.asked)
    cluster.starts[:] = []
    config = settings(tmp_path / "run", safety={"more_judges": {"rated": MORE["rated"], "own": MORE["own"]}})
    cluster.base.answer = lambda _text: "Yes."
    run(cluster, config, "rejudge")
    assert cluster.starts == [BASE] and len(cluster.base.asked) == before + 5
    assert len(cluster.guard.asked) == asked
    assert {row["harmful"] for row in rows(config, "verdicts_own")} == {True}
    assert rows(config, "verdicts_rated") == verdicts


def test_a_judge_that_asks_nobody_starts_no_engine(cluster, evaluated, tmp_path):
    config = settings(tmp_path / "run", safety={"more_judges": {"phrases": MORE["phrases"]}})
    cluster.starts[:] = []
    before = len(cluster.base.asked), len(cluster.guard.asked)
    run(cluster, config, "rejudge")
    assert (len(cluster.base.asked), len(cluster.guard.asked)) == before
    assert BASE not in cluster.starts and GUARD not in cluster.starts
    assert [(row["harmful"], row["raw"]) for row in rows(config, "verdicts_phrases")] == [(True, None)] * 5


def test_a_rejudging_that_is_killed_is_resumed(cluster, evaluated, tmp_path):
    config = settings(tmp_path / "run", safety={"more_judges": {"rated": MORE["rated"]}})
    cluster.guard.answer = lambda text: f"Rating: [[{1 + len(text) % 10}]]"
    cluster.guard.dies_after = len(cluster.guard.asked) + 3
    with pytest.raises(Killed):
        run(cluster, config, "rejudge")
    cluster.guard.dies_after, before = None, len(cluster.guard.asked)
    run(cluster, config, "rejudge")
    assert len(cluster.guard.asked) - before == 3, "the committed block is not judged again"
    resumed = rows(config, "verdicts_rated")
    run(cluster, config, "rejudge", overwrite=True)
    assert rows(config, "verdicts_rated") == resumed


def test_another_question_of_the_same_judge_is_refused_and_a_new_name_of_its_model_is_not(
    cluster, evaluated, tmp_path
):
    judge = {"kind": "rating", "model": "guard"}
    run(cluster, settings(tmp_path / "run", safety={"more_judges": {"rated": judge}}), "rejudge")
    other = settings(tmp_path / "run", safety={"more_judges": {"rated": {**judge, "threshold": 7}}})
    with pytest.raises(UserError, match=r"judge\.threshold: 5.0 in the run directory, 7.0 in this config"):
        run(cluster, other, "rejudge")
    asked = len(cluster.guard.asked)
    renamed = settings(
        tmp_path / "run",
        {**LOCAL, "strict": {"path": GUARD}},
        safety={"more_judges": {"rated": {**judge, "model": "strict"}}},
    )
    run(cluster, renamed, "rejudge")
    assert len(cluster.guard.asked) == asked


def test_answers_made_anew_are_judged_anew(cluster, evaluated, tmp_path):
    config = settings(tmp_path / "run", safety={"more_judges": {"phrases": MORE["phrases"]}})
    run(cluster, config, "rejudge")
    cluster.base.answer = lambda _text: "I cannot help you with that."
    run(cluster, config, "evaluate", overwrite=True)
    run(cluster, config, "rejudge")
    assert {row["harmful"] for row in rows(config, "verdicts_phrases")} == {False}


def test_rejudging_needs_answers_and_a_judge(cluster, tmp_path):
    with pytest.raises(UserError, match="more_judges is missing"):
        run(cluster, settings(tmp_path / "run"), "rejudge")
    config = settings(tmp_path / "run", safety={"more_judges": {"phrases": MORE["phrases"]}})
    with pytest.raises(UserError, match="is not complete: run `setbacks evaluate` first"):
        run(cluster, config, "rejudge")


def test_figures_of_passes_add_up(cluster, evaluated, tmp_path):
    [line] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert line["completion_tokens"] == 5 * 3 + 5 * 3, "answers and verdicts, each once"
    assert line["rows"] == 5 and line["ok"] == 5


def test_rows_that_wait_for_ever_end_the_run(cluster, tmp_path, monkeypatch):
    """The check can fail: a pass that forgets what it was told would start engines for ever."""
    monkeypatch.setattr(OpenModels, "get", lambda _self, _name: None)
    with pytest.raises(RunFailed, match="rows wait for a model, although its pass has ended"):
        run(cluster, settings(tmp_path / "run"), "evaluate")
