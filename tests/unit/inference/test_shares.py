"""How many tasks an actor gets: enough to fill its engine, never more than its share, and Ray can add actors."""

import pytest

from pipeline.inference.pool import in_flight


@pytest.mark.parametrize("tasks", [1, 7, 8, 9, 31, 40, 1000])
@pytest.mark.parametrize("fitting", [1, 2, 3, 7])
def test_the_first_actor_leaves_the_others_their_shares(fitting, tasks):
    running, given = in_flight(fitting, tasks, 8, 8)
    share = max(1, tasks // 8)
    assert 1 <= running <= min(fitting, share)
    assert running <= given <= max(running, share // 4, 1)  # one that waits here could run elsewhere
    assert given <= running + 1


@pytest.mark.parametrize("tasks", [1, 7, 8, 9, 31, 40, 1000])
@pytest.mark.parametrize("fitting", [1, 2, 3, 7])
def test_ray_can_scale_a_pool_up_however_few_tasks_there_are(fitting, tasks):
    from ray.data.context import DEFAULT_ACTOR_POOL_UTIL_UPSCALING_THRESHOLD

    running, given = in_flight(fitting, tasks, 1, 8)
    assert running <= fitting
    assert given / running >= DEFAULT_ACTOR_POOL_UTIL_UPSCALING_THRESHOLD
    assert given <= max(2, tasks // 8)


def test_with_many_tasks_an_engine_is_full_and_has_one_waiting():
    assert in_flight(3, 1000, 8, 8) == (3, 4)
    assert in_flight(3, 1000, 1, 8) == (3, 6)
