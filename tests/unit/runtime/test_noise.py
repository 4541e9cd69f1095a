"""What libraries say is in the stage's log, whatever handlers they give their loggers, and whenever they speak."""

import logging
import threading

import pytest

from pipeline.runtime import session
from tests.unit.runtime.test_logs import loggers

__all__ = ["loggers"]  # a fixture


def given_a_handler(name: str) -> None:
    """As transformers and datasets do when they are imported."""
    logging.getLogger(name).addHandler(logging.StreamHandler())


def configured_anew(name: str) -> None:
    """As Ray Data and vLLM do, from several threads."""
    logger = logging.getLogger(name)
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
    logger.addHandler(logging.StreamHandler())


def cleared(name: str) -> None:
    """As `ray.init(configure_logging=False)` does; logging then prints warnings itself."""
    logging.getLogger(name).handlers.clear()


@pytest.mark.parametrize("change", [given_a_handler, configured_anew, cleared])
def test_handlers_that_a_library_changes_later_change_nothing(tmp_path, loggers, capfd, change):
    with session.stage_logs(str(tmp_path), "generate"):
        session._quiet_loggers()
        change("datasets")
        for name in ("datasets", "ray", "ray.data"):
            logging.getLogger(name).warning("%s speaks", name)
    assert capfd.readouterr().err == ""
    log = (tmp_path / "logs/generate.log").read_text()
    assert [line.rpartition(": ")[2] for line in log.splitlines()] == [
        "datasets speaks",
        "ray speaks",
        "ray.data speaks",
    ]


def test_a_thread_that_outlives_the_stages_prints_nothing(tmp_path, loggers, capfd):
    ended = threading.Event()

    def speak() -> None:
        ended.wait(10)
        logging.getLogger("ray.data._internal").warning("too late")

    thread = threading.Thread(target=speak)
    with session.stage_logs(str(tmp_path), "generate"):
        session._quiet_loggers()
        thread.start()
    ended.set()
    thread.join()
    assert capfd.readouterr().err == "" and "too late" not in (tmp_path / "logs/generate.log").read_text()
