"""The main path with a scripted model in place of engine, cluster and trainer: what is made, resumed, refused
and made again."""

import asyncio
import json
from contextlib import nullcontext
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline import experiment, models, preflight
from pipeline.data import storage
from pipeline.errors import RowFailed, RunFailed, UserError
from pipeline.run import Machinery, Run
from pipeline.schema import STAGES
from tests import scripted
from tests.scripted import ScriptedChat


class Calls(list):
    machinery: Machinery
    specs: list  # of every start of engines, after the stage


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

    monkeypatch.setattr(models, "check_adapter", lambda *_arguments: None)
    monkeypatch.setattr(preflight, "check_models", lambda *_arguments: [])
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


EVERYTHING = ["generate", "train sft", "train mistake_analysis", "evaluate"]


def metrics(tmp_path) -> list[str]:
    return [
        json.loads(line)["stage"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]


def test_a_whole_run_is_made_once(run, calls, tmp_path):
    told = run()
    assert calls == EVERYTHING
    assert told[0].startswith("generate: 4 rows (4 ok) → ")
    assert told[1].startswith("mix: 12 rows → ")
    assert told[4].startswith("evaluate: 18 rows (18 ok) → ")
    assert run() == told
    assert calls == EVERYTHING
    assert metrics(tmp_path) == ["generate", "mix", "train", "train", "evaluate"]


def test_stages_run_alone_make_the_same(run, calls):
    for stage in (stage for stage in STAGES[:-1] if stage != "rejudge"):
        run(stage)
    run()
    assert calls == EVERYTHING


def test_an_earlier_stage_made_again_makes_the_later_ones_again(run, calls):
    run()
    run("generate", overwrite=True, seed=0, recipe={"samples": 2})
    del calls[:]
    run(recipe={"samples": 2})
    assert calls == EVERYTHING[1:]


def test_one_stage_is_overwritten_alone(run, calls):
    run()
    del calls[:]
    run("train", overwrite=True)
    assert calls == EVERYTHING[1:3]
    run("train")
    run("evaluate")
    assert calls == EVERYTHING[1:3]  # the same adapters came out: nothing to evaluate anew


CHANGES = {
    "mistake_analysis.samples: 1 in the run directory, 2 in this config": {"recipe": {"samples": 2}},
    "seed: 0 in the run directory, 1 in this config": {"seed": 1},
    "mix.safe: 1.0 in the run directory, 0.5 in this config": {
        "mix": {"safe": 0.5, "helpful": {"path": "toy:helpful-train"}}
    },
    "train.epochs: 3.0 in the run directory, 1.0 in this config": {"train": {"epochs": 1}},
    'model.path: "org/model" in the run directory, "org/other" in this config': {
        "model": {"path": "org/other"}
    },
    "suites.safety.samples: 1 in the run directory, 2 in this config": {
        "evaluation": {"harmful": {"path": "toy:harmful-heldout", "limit": 2}, "samples": 2}
    },
}


@pytest.mark.parametrize(("difference", "change"), CHANGES.items())
def test_another_configuration_is_refused_before_anything_starts(
    run, calls, tmp_path, monkeypatch, difference, change
):
    run()
    before = (tmp_path / "run" / "config.yaml").read_text()
    calls.machinery = replace(calls.machinery, session=lambda _run_dir: pytest.fail("Ray was started"))
    with pytest.raises(UserError) as e:
        run(**change)
    assert difference in str(e.value)
    assert (
        tmp_path / "run" / "config.yaml"
    ).read_text() == before  # it still says what the data was made with
    assert calls == EVERYTHING


def test_a_change_of_the_judge_leaves_generation_and_training_alone(run, calls, tmp_path):
    run()
    (tmp_path / "judge.yaml").write_text("help: 'Rate {{ response }}'")
    evaluation = {"harmful": {"path": "toy:harmful-heldout", "limit": 2}}
    evaluation["help"] = {"kind": "rating", "prompts": str(tmp_path / "judge.yaml")}
    run("generate", "mix", "train", evaluation=evaluation)
    assert calls == EVERYTHING
    run("evaluate", overwrite=True, evaluation=evaluation)
    assert calls == [*EVERYTHING, "evaluate"]


def test_resources_may_change_between_runs(run, calls):
    run()
    run(engine={"actors": 4, "max_num_seqs": 8})
    assert calls == EVERYTHING


def test_another_arm_is_trained_and_evaluated_beside_the_others(run, calls):
    run(arms={"sft": {"kinds": ["safe"]}})
    run(arms={"sft": {"kinds": ["safe"]}, "more": {"kinds": ["analysis"]}})
    assert calls == ["generate", "train sft", "evaluate", "train more", "evaluate"]


def test_failed_rows_are_run_again_when_asked(run, calls, tmp_path):
    """A row without a reference response fails in the recipe; a malformed one has nothing to run again."""
    asks = tmp_path / "asks.jsonl"
    asks.write_text(
        '{"instruction": "a", "unsafe_response": "do"}\n{"instruction": "b"}\n{"instruction": ""}\n'
    )
    settings = {"instructions": {"path": str(asks)}, "recipe": {"mistake": "reference"}}
    told = [run("generate", retry_failed=retry, **settings) for retry in (False, False, True)]
    assert told[0][1:] == told[1] == told[2][2:] and told[2][1] == told[0][0]
    assert (
        "3 rows read, 2 used (1 with an unsafe response), 1 malformed (instruction is empty: 1)" in told[0][0]
    )
    assert told[0][1].startswith("generate: 3 rows (2 failed, 1 ok)")
    assert told[2][0] == "generate: rerunning 1 failed rows"
    assert calls == ["generate", "generate"]


def test_malformed_rows_alone_start_nothing(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a"}\n{"instruction": ""}\n')
    for retry in (False, True):
        run("generate", instructions={"path": str(asks)}, retry_failed=retry)
    assert calls == ["generate"]


def test_where_every_row_failed_no_later_stage_goes_on(run, tmp_path, monkeypatch):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a"}\n{"instruction": "b"}\n')
    settings = {
        "instructions": {"path": str(asks)},
        "recipe": {"filter": True, "verify": {"kind": "refusal"}},
    }
    monkeypatch.setattr(ScriptedChat, "__call__", too_long)
    for _ in range(2):  # the second run finds the data set complete
        with pytest.raises(RunFailed, match="all 2 rows failed, most with: prompt too long"):
            run("generate", **settings)


LOST = "it is harmful " * 9


def faulty(monkeypatch, error: Exception | None = None) -> None:
    """Every analysis is a loop, or a call that fails, but that of the lucky request."""
    say = ScriptedChat.__call__

    async def answer(chat, messages, sampling, *, step, **options):
        if step == "analyse" and "lucky" not in messages[0]["content"]:
            chat = ScriptedChat(analyse=error or LOST)
        return await say(chat, messages, sampling, step=step, **options)

    monkeypatch.setattr(ScriptedChat, "__call__", answer)


def requests(tmp_path) -> dict:
    """Ten requests, one of them lucky."""
    asks = tmp_path / "asks.jsonl"
    rows = [{"instruction": f"forge {i}" if i else "a lucky one", "safe_response": "no"} for i in range(10)]
    asks.write_text("\n".join(map(json.dumps, rows)))
    return {"instructions": {"path": str(asks)}, "mix": {"helpful": None}}


def test_data_of_which_too_little_is_usable_is_told_loudly_and_not_trained_on(
    run, calls, tmp_path, monkeypatch
):
    faulty(monkeypatch)
    settings = requests(tmp_path)
    told = run("generate", **settings)
    few = f"only 1 of 10 rows (10.0%) of {tmp_path}/run/mistakes are usable"
    why = "most others are lost with: analyse: degenerate repetition (9)"
    assert told[-1] == f"WARNING: generate: {few}, {why}"
    with pytest.raises(
        UserError, match=r"methods\.mistakes\.min_usable = 0\.25: only 1 of 10 .*set it lower"
    ):
        run("mix", **settings)
    with pytest.raises(UserError, match=r"min_usable = 0\.25"):
        run(**settings)  # before an engine starts
    lower = {**settings, "recipe": {"min_usable": 0.1}}
    assert run("mix", **lower)[-1].startswith("mix: 11 rows")
    with pytest.raises(UserError, match=r"min_usable = 0\.25"):
        run("train", **settings)
    run(**lower)
    assert calls == EVERYTHING
    run(**settings)  # nothing is left to do


def test_a_whole_run_ends_in_mix_if_too_little_is_usable(run, calls, tmp_path, monkeypatch):
    faulty(monkeypatch)
    with pytest.raises(RunFailed, match=r"mix: methods\.mistakes\.min_usable = 0\.25: only 1 of 10 rows"):
        run(**requests(tmp_path))
    assert calls == ["generate"]


def test_rows_that_failed_can_be_run_again_although_too_few_are_usable(run, calls, tmp_path, monkeypatch):
    settings = requests(tmp_path)
    with monkeypatch.context() as patch:
        faulty(patch, RowFailed("prompt too long: 9 tokens"))
        assert run("generate", **settings)[-1].startswith("WARNING: generate: only 1 of 10 rows")
    run(retry_failed=True, **settings)
    assert calls == ["generate", *EVERYTHING]


def test_a_rehearsal_without_a_model_is_not_gated(run, tmp_path, monkeypatch):
    faulty(monkeypatch)
    settings = requests(tmp_path)
    assert run("generate", engine={"kind": "dummy"}, **settings)[0].startswith("generate: 10 rows (10 ok)")


async def too_long(*_arguments, **_options):
    raise RowFailed("prompt too long: 9 tokens")


def test_a_source_of_malformed_rows_alone_is_refused_before_anything_starts(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": ""}\n{"instruction": null}\n')
    with pytest.raises(UserError, match=r"of its first 2 rows can be used \(instruction is empty: 1, inst"):
        run(instructions={"path": str(asks)})
    assert calls == [] and not (tmp_path / "run").exists()


def test_without_helpful_pairs(run):
    told = run(mix={"helpful": None})
    assert told[1].startswith("mix: 8 rows")


def test_nothing_to_train_on(run, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text('{"instruction": "without a safe response", "help": "Well."}\n')
    changes = {"instructions": {"path": str(bare)}, "mix": {"analysis": 0}}
    with pytest.raises(UserError, match="has a safe response"):
        run(**changes)


def test_a_kind_that_an_arm_is_trained_on_and_no_row_has_ends_the_stage(run, calls, tmp_path):
    """Found before anything starts if a source has no response at all, and in `mix` if the rows read have
    none."""
    helpful = tmp_path / "helpful.jsonl"
    helpful.write_text('{"instruction": "a", "said": "b"}\n' * 3)
    with pytest.raises(UserError, match=r"mix\.helpful: .*first 3 rows .*\(columns not used: said\)"):
        run(mix={"helpful": {"path": str(helpful)}})
    assert calls == []
    rows = [f'{{"instruction": "{i}", "safe_response": null, "said": "b"}}\n' for i in range(40)]
    helpful.write_text("".join(rows) + '{"instruction": "c", "safe_response": "d", "said": ""}\n')
    settings = {"mix": {"helpful": {"path": str(helpful), "limit": 41}, "helpful_ratio": 0.1}}
    with pytest.raises(RunFailed, match=r"no example of kind helpful, on which arms\.sft is trained") as e:
        run(**settings)
    assert "\n" not in str(e.value)
    run(**settings, arms={"only_safe": {"kinds": ["safe"]}})


def test_a_source_without_safe_responses_is_refused_before_generate_and_ends_mix(run, calls, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text('{"instruction": "a", "aid": "b"}\n')
    with pytest.raises(
        UserError, match=r"safe response; .*columns not used: aid\); or leave safe out of arms"
    ):
        run(instructions={"path": str(asks)})
    assert calls == []
    run("generate", instructions={"path": str(asks)})
    with pytest.raises(RunFailed, match=r"kind safe, .*instructions = .*columns not used: aid; name its col"):
        run("mix", instructions={"path": str(asks)})


def test_two_sources_may_be_the_same_file(run, tmp_path):
    asks = tmp_path / "asks.jsonl"
    asks.write_text("".join(f'{{"instruction": "{i}", "safe_response": "no"}}\n' for i in range(3)))
    source = {"path": str(asks)}
    told = run(
        instructions=source, mix={"helpful": source}, evaluation={"harmful": source, "helpful": source}
    )
    assert told[1].startswith("mix: 9 rows")
    assert told[4].startswith("evaluate: 45 rows (45 ok)")  # 3 instructions x 3 arms x (3 + 2) conditions


SERVER = {"kind": "openai", "url": "http://localhost:1/v1", "model": "m", "api_key_env": None}


def test_a_methods_engine_generates_and_the_runs_engine_evaluates(run, specs):
    run(recipe={"engine": SERVER})
    assert [(label, spec.engine.kind) for label, spec in specs] == [
        ("generate", "openai"),
        ("evaluate", "vllm"),
    ]


def test_methods_share_a_start_where_engine_and_model_are_the_same(run, specs):
    source = {"path": "toy:detailed-train", "limit": 3}
    mistakes = {"name": "mistake_analysis", "instructions": source}
    corrections = {"name": "course_correction", "instructions": source}
    server = {"engine": {**SERVER, "prefill": True}}
    for own, other, starts in (
        ({}, {}, 1),
        (server, {}, 2),
        (server, server, 1),
        (server, {"engine": {**SERVER, "prefill": True, "model": "other"}}, 2),
        ({"engine": {"kind": "vllm"}}, {}, 1),
    ):
        specs.clear()
        run(
            "generate",
            overwrite=True,
            instructions=None,
            methods={"a": {**mistakes, **own}, "b": {**corrections, **other}},
        )
        assert len(specs) == starts, (own, other)


def test_data_of_another_engine_is_refused_and_of_another_number_of_clients_is_not(run, specs):
    run("generate", recipe={"engine": SERVER})
    run("generate", recipe={"engine": {**SERVER, "actors": 4, "concurrency": 2, "timeout_s": 9}})
    assert len(specs) == 1
    with pytest.raises(UserError, match=r"model\.endpoint\.model: \"m\" in the run directory"):
        run("generate", recipe={"engine": {**SERVER, "model": "other"}})
    with pytest.raises(UserError, match=r"model\.endpoint"):
        run("generate")
    with pytest.raises(UserError, match=r"model\.dummy"):
        run("generate", engine={"kind": "dummy"})


def test_a_server_evaluates_the_base_model(run, specs):
    run("evaluate", instructions=None, engine=SERVER)
    assert [(label, spec.engine.kind, spec.adapters) for label, spec in specs] == [("evaluate", "openai", ())]
    with pytest.raises(UserError, match=r"model\.endpoint"):
        run("evaluate", instructions=None)


def test_a_rehearsal_generates_mixes_and_reports_without_the_model(run, calls):
    """Adapters are not read either: a machine without them can rehearse."""
    aligned = {"model": "good", "adapter": "/none"}
    good = {"path": "/on/another/machine", "engine": {"kind": "dummy"}}
    source = {"path": "toy:detailed-train", "limit": 3}
    run(
        "generate",
        "mix",
        instructions=None,
        model={"path": "/models/of/another/machine"},
        engine={"kind": "dummy", "actors": 2},
        models={"good": good},
        train={"method": "dpo"},
        methods={"c": {"name": "course_correction", "instructions": source, "aligned": aligned}},
    )
    assert calls == ["generate"]


def test_samples_are_rows_of_their_own(run, tmp_path):
    run("generate", recipe={"samples": 3})
    rows = list(
        Run(scripted.config(tmp_path / "run")).generated["mistakes"].dataset.rows(["id", "instruction_id"])
    )
    assert len({row["id"] for row in rows}) == 12
    assert len({row["instruction_id"] for row in rows}) == 4


def test_a_training_that_was_begun_is_not_begun_again_on_other_data(run, calls, tmp_path):
    class Interrupted(calls.machinery.trainer):
        def result(self, name, on_progress):
            storage.write_text(f"{self.arms[name].state}/0123456789abcdef/done-1", "days of work")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(machinery=replace(calls.machinery, trainer=Interrupted))
    run("mix", overwrite=True)
    [work] = (tmp_path / "run" / ".state").rglob("done-1")
    run("train")  # the same data again
    with pytest.raises(KeyboardInterrupt):
        run("train", overwrite=True, machinery=replace(calls.machinery, trainer=Interrupted))
    changed = {"mix": {"helpful": {"path": "toy:helpful-train"}, "safe": 0.5}}
    run("mix", overwrite=True, **changed)
    with pytest.raises(UserError, match=r"adapter/sft is partly trained on other data \(sft: .*--overwrite"):
        run("train", **changed)
    assert work.read_text() == "days of work"
    run("train", overwrite=True, **changed)


def test_a_deleted_adapter_is_trained_again(run, calls, tmp_path):
    run()
    storage.remove(str(tmp_path / "run" / "adapter" / "sft"))
    with pytest.raises(UserError, match=r"adapter/sft is not complete: run `setbacks train` first"):
        run("evaluate")
    run()
    assert calls == [*EVERYTHING, "train sft"]


CORRECTION = {
    "model": {"path": "toy"},
    "instructions": {"path": "toy:detailed-train", "limit": 3},
    "recipe": {"name": "course_correction", "check": {"kind": "phrases"}},
    "train": {"method": "dpo"},
    "mix": None,
    "evaluation": {
        "course_correction": {
            "entries": {"path": "toy:detailed-heldout", "limit": 2},
            "lengths": [10, 80],
            "judge": {"kind": "toy"},
        },
        "harmful": {"path": "toy:harmful-heldout", "limit": 2},
        "conditions": ["plain"],
    },
}


@pytest.fixture
def correct(run, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    return lambda *stages, **changes: run(*stages, **{**CORRECTION, **changes})


def test_course_correction_goes_the_same_way(correct, calls, tmp_path):
    told = correct()
    assert calls == ["generate", "train dpo", "evaluate"], "both suites in one pool"
    assert told[0].startswith("generate: 3 rows (3 ok) → ") and told[0].endswith("/corrections")
    assert told[1].startswith("mix: 45 rows → ") and told[1].endswith("/preferences")
    assert told[3].startswith("evaluate: 4 rows (4 ok) → ")  # 2 instructions x 2 arms
    assert told[4].startswith("evaluate: 8 rows (8 ok) → ") and told[4].endswith(
        "/continuations"
    )  # 2 entries x 2 arms x 2 lengths
    assert correct() == told and len(calls) == 3
    assert metrics(tmp_path) == ["generate", "mix", "train", "evaluate", "evaluate"]


def suites_recorded(tmp_path) -> list[str]:
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["suite"] for line in lines if line["stage"] == "evaluate"]


def test_each_suite_is_whole_and_recorded_as_soon_as_it_is_done(correct, calls, tmp_path, monkeypatch):
    """The run dies in the second suite; the same command goes on with that one alone."""
    said = []

    def dies(jobs, *arguments, **options):
        running = calls.machinery.engines(jobs, *arguments, **options)
        yield next(running)
        raise RunFailed("the second suite's engine died")

    def making(*outputs):
        said.append(outputs)

    monkeypatch.setattr("pipeline.runtime.attempt.making", making)
    correct("generate", "mix", "train")
    with pytest.raises(RunFailed, match="the second suite's engine died"):
        correct("evaluate", machinery=replace(calls.machinery, engines=dies))
    assert said[-1] == ("evaluation", "continuations"), "both are being made at once"
    run = Run(scripted.config(tmp_path / "run", **CORRECTION))
    assert run.suites["safety"].complete and run.suites["c2_eval"].work(), "both lists come first"
    assert run.suites["c2_eval"].complete is None
    assert (tmp_path / "run/evaluation/README.md").exists() and suites_recorded(tmp_path) == ["safety"]
    told = correct("evaluate")
    assert [line.rsplit("/", 1)[1] for line in told] == ["evaluation", "continuations"]
    assert said[-1] == ("continuations",)
    assert suites_recorded(tmp_path) == ["safety", "c2_eval"]
    assert correct("evaluate") == told and calls[-2:] == ["evaluate", "evaluate"] and len(calls) == 4


def test_a_suite_with_failed_rows_is_run_again_without_the_other(correct, calls, tmp_path, monkeypatch):
    from pipeline.suites.c2_eval.recipe import ContinuationRecipe

    async def fails(self, row, chat):
        raise RowFailed("prompt too long: 9 tokens")

    with monkeypatch.context() as patched:
        patched.setattr(ContinuationRecipe, "__call__", fails)
        with pytest.raises(RunFailed, match="evaluate: all 8 rows failed"):
            correct()
    told = correct("evaluate", retry_failed=True)
    assert told[0] == "evaluate: rerunning 8 failed rows"
    counted = [line.split(" → ")[0] for line in told[1:]]
    assert counted == ["evaluate: 4 rows (4 ok)", "evaluate: 8 rows (8 ok)"]
    assert suites_recorded(tmp_path) == ["safety", "c2_eval", "c2_eval"]


def test_one_suite_is_evaluated_alone(correct, calls, tmp_path):
    correct("generate", "mix", "train")
    config = scripted.config(tmp_path / "run", **CORRECTION)
    experiment.run(
        config, ["evaluate"], suites=["c2_eval"], log=lambda _line: None, machinery=calls.machinery
    )
    assert calls[-1] == "evaluate" and not (tmp_path / "run" / "evaluation").exists()
    with pytest.raises(UserError, match="--suite jailbreak: the configuration has no such suite"):
        experiment.run(config, suites=["jailbreak"])


def test_another_way_of_sampling_paths_is_refused(correct):
    correct()
    suite = {**CORRECTION["evaluation"]["course_correction"], "draw": {"max_tokens": 8}}
    changed = {**CORRECTION["evaluation"], "course_correction": suite}
    with pytest.raises(UserError, match=r"continuations was made with another configuration .*draw"):
        correct(evaluation=changed)


def test_a_configuration_that_only_evaluates(run, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    settings = {
        "instructions": None,
        "evaluation": {"course_correction": CORRECTION["evaluation"]["course_correction"]},
    }
    config = scripted.config(tmp_path / "only", **settings)
    told = []
    experiment.run(config, log=told.append, machinery=calls.machinery)
    assert calls == ["evaluate"] and told[0].startswith("evaluate: 4 rows (4 ok)")
    with pytest.raises(UserError, match="methods is missing: generate needs one"):
        experiment.run(config, ["generate"])


def test_where_every_request_is_dropped_no_later_stage_goes_on(correct, calls):
    with pytest.raises(
        RunFailed,
        match="generate: all 3 rows dropped, most with: no keyword in the request; change the source",
    ):
        correct(recipe={**CORRECTION["recipe"], "keywords": ["xyz"]})
    assert calls == ["generate"]


def test_a_card_that_a_crash_left_out_is_written(run, tmp_path):
    run("generate")
    (tmp_path / "run" / "mistakes" / "README.md").unlink()
    run("generate")
    assert (tmp_path / "run" / "mistakes" / "README.md").exists()
