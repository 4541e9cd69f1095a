"""Arms that are compared take equally many optimizer steps."""

from dataclasses import replace

import pytest

from pipeline.data import storage
from pipeline.data.dataset import Dataset
from pipeline.fingerprints import fingerprints
from pipeline.training import adapter, arm, equal, examples
from pipeline.training.config import DPO, SFT
from pipeline.training.job import Run
from tests import scripted, tiny

ARMS = {"sft": {"kinds": ["safe"]}, "all": {"kinds": ["safe", "helpful", "analysis"]}}


def target(*arms: tuple[SFT | DPO, int], finished: int = 0) -> list[int]:
    given = [equal.Arm(train, steps) for train, steps in arms]
    return [equal.target(own, given, finished) for own in given]


def test_the_shorter_arm_takes_the_longer_ones_steps():
    assert target((SFT(), 35), (SFT(), 71)) == [71, 71]
    for sequences in (181, 187):  # 35 steps of 16 in 3 epochs
        assert equal.steps([Run(sequences)], SFT()) in (34, 35, 36)
        assert equal.steps([Run(sequences)], equal.lengthened(SFT(), [Run(sequences)], 71)) == 71


def test_arms_that_differ_on_purpose_keep_their_own_steps():
    assert target((SFT(), 35), (SFT(epochs=6), 71)) == [35, 71]
    assert target((SFT(), 35), (SFT(batch_size=8), 71)) == [35, 71]
    assert target((SFT(), 35), (DPO(epochs=3, batch_size=16), 71)) == [35, 71]
    assert target((SFT(equal_steps=False), 35), (SFT(), 71)) == [35, 71]
    assert target((SFT(), 35), (SFT(equal_steps=False), 71)) == [35, 71]


def test_a_difference_of_rounding_is_left_alone():
    assert target((SFT(), 70), (SFT(), 71)) == [70, 71]
    assert target((SFT(), 69), (SFT(), 71)) == [71, 71]


def test_finished_arms_count():
    assert target((SFT(), 35), finished=71) == [71]
    assert target((SFT(equal_steps=False), 35), finished=71) == [35]


def test_a_staged_arm_comes_within_a_step_for_each_run():
    runs, train = [Run(100, 3), Run(37, 2), Run(211, 1)], DPO(curriculum="staged", batch_size=16)
    own = equal.steps(runs, train)
    for wanted in (own + 2, own + 7, 3 * own):
        found = equal.steps(runs, equal.lengthened(train, runs, wanted))
        assert wanted <= found < wanted + len(runs)


def test_the_first_steps_are_those_of_the_arms_own_epochs():
    train = SFT(epochs=2, batch_size=4)
    longer = equal.lengthened(train, [Run(11)], 20)
    own, more = (examples.schedule(11, one.epochs, one.batch_size, seed=3) for one in (train, longer))
    assert len(more) == 80 and more[: len(own)] == own
    assert sorted(more[22:33]) == list(range(11))  # a third epoch, whole and in an order of its own
    assert more[22:33] not in (more[:11], more[11:22])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("equal")
    tiny.save(place / "model")
    tiny.write(place / "sft", tiny.rows(60))
    return place


def prepared(place, **train) -> dict:
    """The arms' trainings, ready to run: by arm, (steps, epochs, name of the first run)."""
    settings = {"epochs": 2, "batch_size": 2, "max_length": 128, "packing": False, "bf16": False, **train}
    config = scripted.config(
        place / "run", model={"path": str(place / "model"), "dtype": "float32"}, train=settings, arms=ARMS
    )
    places = [
        (
            tiny.spec(config, name),
            arm.Places(
                Dataset.at(str(place / "sft")), str(place / "adapter" / name), str(place / "state" / name)
            ),
        )
        for name in ARMS
    ]
    storage.remove(str(place / "state"))
    training = arm.Training(places, str(place / "checkpoints"))
    return {
        name: (equal.steps([job.run for job in one.jobs], one.jobs[0].train), one)
        for name, one in training._arms.items()
    }


def test_the_arms_of_a_run_are_prepared_with_equal_steps(place):
    alike, own = prepared(place), prepared(place, equal_steps=False)
    assert alike["sft"][0] == alike["all"][0] == own["all"][0] > own["sft"][0] + 1
    assert alike["sft"][1].own_steps == own["sft"][0] and alike["sft"][1].own_epochs == 2
    # The longest arm is trained as without the setting, also by its fingerprint; the other one is another one.
    assert alike["all"][1].jobs[0].name == own["all"][1].jobs[0].name
    assert alike["sft"][1].jobs[0].name != own["sft"][1].jobs[0].name


def test_the_card_says_that_an_arm_was_trained_longer(place):
    [job] = prepared(place)["sft"][1].jobs
    figures = {
        "kinds": {"safe": 20}, "drop_reasons": {}, "steps": 60, "tokens": 1000, "sequences": 20,
        "trainable_parameters": 5, "final_loss": 1.0, "tokens_per_s": 3.0, "own_steps": 20, "own_epochs": 2,
    }  # fmt: skip
    told = ", 20 steps in 2 epochs, made as many as the longest arm's"
    assert told in adapter.card(job, figures)
    assert told not in adapter.card(job, {**figures, "own_steps": 60})


def test_fingerprints_hold_the_setting_only_if_it_is_off():
    for on in (True, False):
        config = scripted.config(train={"equal_steps": on})
        found = fingerprints(config)["adapter/sft"]["train"]
        assert found.get("equal_steps", True) is on


def test_unequal_arms_are_told_and_equal_ones_are_not(run, calls):
    steps = {"sft": 35, "mistake_analysis": 71}

    class Training(calls.machinery.trainer):
        def result(self, name, on_progress):
            return super().result(name, on_progress) | {
                "steps": steps[name], "own_steps": 35 if name == "sft" else 71, "own_epochs": 3.0
            }  # fmt: skip

    told = run(machinery=replace(calls.machinery, trainer=Training))
    [warning] = [line for line in told if "different numbers of steps" in line]
    assert warning.startswith("WARNING: train: arms are trained for different numbers of steps (")
    assert "sft 35" in warning and "mistake_analysis 71" in warning
    assert any("different numbers of steps" in line for line in run("train"))  # also if all are finished
    steps["sft"] = 71
    told = run(overwrite=True, machinery=replace(calls.machinery, trainer=Training))
    assert not [line for line in told if "different numbers of steps" in line]
    assert [line for line in told if "71 steps (35 in 3 epochs, made equal), final loss" in line]
