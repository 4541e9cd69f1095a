"""Arms with several training seeds, and the adapters after the stages of a curriculum, from the configuration to
the report."""

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline import models
from pipeline.commands.plan import show_plan
from pipeline.commands.report import write_report
from pipeline.commands.status import status
from pipeline.data import storage
from pipeline.data.adapter import stage_directory
from pipeline.data.dataset import Dataset
from pipeline.errors import UserError
from pipeline.fingerprints import fingerprints
from pipeline.training import arm, equal
from tests import scripted, tiny
from tests.unit.commands.reports import no_figures
from tests.unit.experiment.runs import CORRECTION, EVERYTHING

SEEDS = {"train": {"seeds": [3, 7]}}
STAGED = {"train": {"method": "dpo", "curriculum": "staged"}}


def names(**changes) -> dict[str, int]:
    return {name: one.seed for name, one in scripted.config(**changes).replicas.items()}


# -- configuration


def test_seeds_of_one_arm_and_of_all():
    arms = {"sft": {"kinds": ["safe"]}, "all": {"kinds": ["safe", "analysis"], "seeds": [1, 0]}}
    assert names(arms=arms, seed=5) == {"sft": 5, "all_seed1": 1, "all_seed0": 0}
    assert names(arms=arms, train={"seeds": [8, 9]}) == {
        "sft_seed8": 8, "sft_seed9": 9, "all_seed1": 1, "all_seed0": 0
    }  # fmt: skip
    assert names(arms={"sft": {"kinds": ["safe"], "train": {"seeds": [4]}}}) == {"sft": 4}
    config = scripted.config(arms=arms, adapters={"given": "some/where"})
    assert config.arm_names == ["vanilla", "sft", "all_seed1", "all_seed0", "given"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"train": {"seeds": [1, 1]}}, r"names a seed twice, which would train the same adapter twice"),
        ({"train": {"seeds": []}}, "at least 1 item"),
        ({"train": {"seeds": [-1]}}, "greater than or equal to 0"),
        ({"arms": {"a": {"kinds": ["safe"], "seeds": [1, 2], "train": {"seeds": [3]}}}}, "the same setting"),
        (
            {"arms": {"a": {"kinds": ["safe"], "seeds": [1, 2]}, "a_seed2": {"kinds": ["safe"]}}},
            r"arms\.a_seed2 is also the name of an adapter that arms\.a makes",
        ),
        ({"adapters": {"sft_seed3": "x"}, **SEEDS}, r"adapters\.sft_seed3 is also the name of an adapter"),
    ],
)
def test_seeds_that_cannot_be_used_are_refused(tmp_path, changes, why):
    with pytest.raises(ValueError, match=why):
        scripted.config(tmp_path / "run", **changes)


def test_one_seed_changes_no_fingerprint_and_no_name():
    plain, one = scripted.config(), scripted.config(train={"seeds": [0]})
    assert fingerprints(plain) == fingerprints(one)
    assert [*plain.replicas] == [*one.replicas] == ["sft", "mistake_analysis"]
    several = fingerprints(scripted.config(**SEEDS))
    for seed in (3, 7):
        expected = {**fingerprints(plain)["adapter/sft"], "seed": seed}
        assert several[f"adapter/sft_seed{seed}"] == expected
    assert {name for name in several if "adapter" not in name} == {
        name for name in fingerprints(plain) if "adapter" not in name
    }
    assert several["sft"] == fingerprints(plain)["sft"], "the training set is that of the run's seed"


def test_plan_counts_every_seed(tmp_path):
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(scripted.config(tmp_path / "run", **SEEDS), None, console)
    told = console.export_text()
    assert "one arm after the other: sft (seeds 3, 7), mistake_analysis (seeds 3, 7)" in told
    assert "5 arms × 3 conditions by LoRA" in told


# -- runs


def trained_with(calls) -> type:
    """The fake trainer, which writes down the seeds that it is given, and keeps the stages of staged arms."""

    class Training(calls.machinery.trainer):
        def __init__(self, arms, checkpoints):
            super().__init__(arms, checkpoints)
            self.specs = {spec.name: spec for spec, _ in arms}

        def result(self, name, on_progress):
            figures = super().result(name, on_progress)
            calls.seeds[name] = self.specs[name].seed
            out, stages = self.arms[name].out, 3 if "staged" in name else 1
            for number in range(1, stages):
                text = f"stage {number}"
                storage.write_text(
                    storage.join(stage_directory(out, number), "adapter_model.safetensors"), text
                )
            return figures | {"stages": stages}

    calls.seeds = {}
    return Training


def evaluated(tmp_path, dataset: str) -> list[str]:
    """The arms of a data set, in their order."""
    rows = [
        row
        for file in sorted((tmp_path / "run" / dataset).glob("*.parquet"))
        for row in pq.read_table(file, columns=["arm"]).to_pylist()
    ]
    return list(dict.fromkeys(row["arm"] for row in rows))


def test_every_seed_is_trained_and_evaluated_and_more_seeds_train_only_what_is_new(run, calls, tmp_path):
    machinery = replace(calls.machinery, trainer=trained_with(calls))
    run(machinery=machinery, **SEEDS)
    four = ["sft_seed3", "sft_seed7", "mistake_analysis_seed3", "mistake_analysis_seed7"]
    assert calls == ["generate", *(f"train {name}" for name in four), "evaluate"]
    assert calls.seeds == dict(zip(four, (3, 7, 3, 7), strict=True))
    assert evaluated(tmp_path, "evaluation") == ["vanilla", *four]
    outputs = {row["name"]: row["state"] for row in status(str(tmp_path / "run"))["outputs"]}
    assert {f"adapter/{name}": "complete" for name in four}.items() <= outputs.items()

    calls.clear()
    run(machinery=machinery, **SEEDS)
    assert calls == [], "all is there"
    run(machinery=machinery, train={"seeds": [3, 7, 8]})
    assert calls == ["train sft_seed8", "train mistake_analysis_seed8", "evaluate"]


def test_a_run_of_one_seed_is_as_it_was(run, calls, tmp_path):
    run()
    assert calls == EVERYTHING
    run(train={"seeds": [0]})
    assert calls == EVERYTHING, "the seed of the run, named: nothing is made again"
    with pytest.raises(UserError, match=r"seed: 0 in the run directory, 1 in this config"):
        run(train={"seeds": [1]})


def test_the_report_has_the_arms_and_every_seed(run, calls, tmp_path, monkeypatch):
    no_figures(monkeypatch)
    run(machinery=replace(calls.machinery, trainer=trained_with(calls)), **SEEDS)
    settings = {"model": {"path": "org/model"}, "instructions": {"path": "toy:harmful-train"}, **SEEDS}
    write_report(scripted.config(tmp_path / "run", **settings), str(tmp_path / "run"))
    told = (tmp_path / "run" / "report.md").read_text()
    assert "| sft (2 seeds) | " in told and "**Every seed**" in told and "| sft_seed7 | " in told
    assert "mean of 2 seeds, range" in told and "the spread over seeds stands beside them" in told
    assert "| mistake_analysis − sft (2 seeds) |" in told, "by seed, not with every seed of the other"
    assert "| mistake_analysis_seed3 − sft_seed3 |" in told
    assert "mistake_analysis_seed3 − sft_seed7" not in told


# -- training


def test_seeds_train_equally_long_and_differ_in_order_and_start(tmp_path):
    tiny.save(tmp_path / "model")
    tiny.write(tmp_path / "sft", tiny.rows(60))
    settings = {"epochs": 2, "batch_size": 2, "max_length": 128, "packing": False, "bf16": False}
    config = scripted.config(
        tmp_path / "run",
        model={"path": str(tmp_path / "model"), "dtype": "float32"},
        train=settings,
        arms={"sft": {"kinds": ["safe"], "seeds": [3, 7]}, "all": {"kinds": ["safe", "helpful", "analysis"]}},
    )
    places = [
        (
            tiny.spec(config, name),
            arm.Places(
                Dataset.at(str(tmp_path / "sft")), str(tmp_path / "adapter" / name), str(tmp_path / name)
            ),
        )
        for name in config.replicas
    ]
    made = arm.Training(places, str(tmp_path / "checkpoints"))._arms
    steps = {
        name: equal.steps([job.run for job in one.jobs], one.jobs[0].train) for name, one in made.items()
    }
    assert len(set(steps.values())) == 1, steps
    [[three], [seven]] = made["sft_seed3"].jobs, made["sft_seed7"].jobs
    assert (three.seed, seven.seed) == (3, 7) and three.name != seven.name
    assert three.table("sequences") != seven.table("sequences"), "another order"


# -- stages


def course(**changes) -> dict:
    arms = {"staged": {**STAGED, **changes}, "shuffled": {}}
    suite = {**CORRECTION["evaluation"]["course_correction"], "every_stage": True}
    return {
        **CORRECTION,
        "arms": arms,
        "evaluation": {**CORRECTION["evaluation"], "course_correction": suite},
    }


def test_the_adapters_after_stages_are_evaluated_by_the_suite_that_asks(run, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    no_figures(monkeypatch)
    settings = course(seeds=[3, 7])
    run(machinery=replace(calls.machinery, trainer=trained_with(calls)), **settings)
    trained = ["vanilla", "staged_seed3", "staged_seed7", "shuffled"]
    stages = [f"staged_seed{seed}_stage{number}" for seed in (3, 7) for number in (1, 2)]
    assert evaluated(tmp_path, "evaluation") == trained
    assert evaluated(tmp_path, "continuations") == [*trained, *stages]
    adapters = {path for _, spec in calls.specs for path in spec.adapters}
    assert {f"{tmp_path}/run/adapter/staged_seed3/stage_{n}" for n in (1, 2)} < adapters

    write_report(scripted.config(tmp_path / "run", **settings), str(tmp_path / "run"))
    told = (tmp_path / "run" / "report.md").read_text()
    begin = told.index("**The course over the stages**")
    lines = told[begin : told.index("**The course over the stages: every seed**")].splitlines()
    rows = [line.split("|")[1].strip() for line in lines if line.startswith("|")]
    assert rows[2:] == [
        "*staged, whose last stage is the arm itself*",
        "staged_stage1 (2 seeds)", "staged_stage2 (2 seeds)", "staged (2 seeds)",
    ]  # fmt: skip
    assert "staged_seed7_stage2" in told
    main = told[told.index("## Course correction") : begin]
    assert "stage1" not in main, "the table of arms has the arms"


def test_without_being_asked_no_suite_evaluates_stages(run, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    settings = {**CORRECTION, "arms": {"staged": STAGED}}
    run(machinery=replace(calls.machinery, trainer=trained_with(calls)), **settings)
    assert evaluated(tmp_path, "continuations") == ["vanilla", "staged"]


def test_an_arm_of_an_older_version_has_no_stages_to_evaluate(run, calls, monkeypatch):
    monkeypatch.setattr(models, "model_dir", lambda _model: "/models/toy-0")
    with pytest.raises(UserError, match="did not keep the adapters of the stages: set every_stage to false"):
        run(**course())


def test_the_setting_is_in_no_fingerprint_unless_it_is_on():
    on, off = course(), {**CORRECTION, "arms": course()["arms"]}
    found = [fingerprints(scripted.config(**one))["continuations"]["suites"]["c2_eval"] for one in (on, off)]
    assert found[0]["every_stage"] is True and "every_stage" not in found[1]


def test_a_plan_counts_the_stages_at_most(tmp_path, monkeypatch):
    console = Console(width=200, soft_wrap=True, record=True, file=io.StringIO())
    show_plan(scripted.config(tmp_path / "run", **course(seeds=[3, 7])), None, console)
    told = console.export_text()
    # vanilla, shuffled, two replicas, and four stages before the last of each
    assert "12 arms × 2 prefills" in told and "4 arms × 1 condition" in told


def test_a_finished_training_keeps_the_adapter_of_every_stage(tmp_path):
    from pipeline.training import adapter

    config = tiny.config(tiny.save(tmp_path / "model"), method="dpo", curriculum="staged")
    places = []
    for number in (1, 2, 3):
        place = tmp_path / f"done-{number}"
        place.mkdir()
        (place / "adapter_config.json").write_text(json.dumps({"stage": number}))
        (place / "adapter_model.safetensors").write_text(f"weights {number}")
        places.append(str(place))
    figures = {
        "kinds": {"gap 5": 4}, "drop_reasons": {}, "steps": 9, "tokens": 1000, "sequences": 4, "stages": 3,
        "trainable_parameters": 5, "final_loss": 1.0, "tokens_per_s": 3.0,
    }  # fmt: skip
    job = tiny.job(config, "dpo", str(tmp_path / "state"), 1, None, "dpo-1")
    adapter.publish(job, tiny.tokenizer(), places, [], str(tmp_path / "out"), figures)
    weights = {
        str(file.parent.relative_to(tmp_path / "out")): file.read_text()
        for file in (tmp_path / "out").rglob("adapter_model.safetensors")
    }
    assert weights == {".": "weights 3", "stage_1": "weights 1", "stage_2": "weights 2"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained in 3 stages; stage_1 to stage_2: the adapter after each but the last." in card
    assert "seeds:" not in card and "\nseed: 7" in card
