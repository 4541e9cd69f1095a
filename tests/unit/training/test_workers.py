"""The driver's side of a worker group."""

import threading
from concurrent.futures import Future

import pytest

from pipeline.training.workers import WorkerGroup


@pytest.mark.parametrize("trained", [True, False])
def test_ray_train_ends_before_a_finished_group_is_released(trained):
    group, running = WorkerGroup("runs/.state/train/0001-1"), Future()
    group._running = running
    end = threading.Timer(0.1, running.set_result, [None])
    end.start()
    group.release(trained=trained)
    assert running.done() is trained, "an interrupted driver does not wait"
    end.join()
