"""A function in a process of its own, on some node of the connected Ray."""

from collections.abc import Callable

from pipeline.errors import RunFailed, UserError
from pipeline.settings.shown import first_line


def call(function: Callable[[], None], *, gpus: int = 0) -> None:
    """Call a function once, in a process that ends with it, and wait.

    gpus: that the process has for itself. Raises what the function raises as RunFailed, and RunFailed if the
    process dies.
    """
    import ray

    task = ray.remote(num_cpus=1, num_gpus=gpus, max_calls=1, max_retries=0)(_called)
    try:
        error = ray.get(task.remote(function))
    except ray.exceptions.RayError as e:
        raise RunFailed(
            f"a process of its own has died ({first_line(e)[:200]}); run the command again"
        ) from None
    if error is not None:
        raise RunFailed(error)


def _called(function: Callable[[], None]) -> str | None:
    """Runs on a node. Returns the error's sentence, since not every exception can be sent."""
    try:
        function()
    except (RunFailed, UserError) as e:
        import traceback

        traceback.print_exc()  # into Ray's log of the process: the sentence has no details
        return str(e)
    return None
