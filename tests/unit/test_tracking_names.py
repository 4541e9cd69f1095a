"""Numbers of a whole training have names of their own, so that they are in no curve."""

from tests.unit.test_tracking import environment, line, opened, scalars

__all__ = ["environment"]  # a fixture


def test_the_figures_of_a_training_are_no_step_of_its_curves(tmp_path):
    with opened(tmp_path, "tensorboard") as tracked:
        for step in (1, 2):
            tracked.line(line(step, holdout_loss=0.5 / step, tokens=100 * step))
        tracked.conclude({"holdout_loss": 0.25, "tokens": 200, "kinds": {"safe": 3}}, under="training/")
    found = scalars(tmp_path / "tensorboard" / "sft")
    assert found["holdout_loss"] == [(1, 0.5), (2, 0.25)] and found["tokens"] == [(1, 100), (2, 200)]
    assert found["training/holdout_loss"] == [(0, 0.25)] and found["training/tokens"] == [(0, 200)]
