"""A stage's log file: what goes into it, and how it is moved aside when it has overgrown."""

import logging
import os
import re
import sys

import pytest

from pipeline.runtime import session


@pytest.fixture
def loggers(monkeypatch):
    """Loggers as they were, afterwards."""
    before = {
        name: (list(log.handlers), log.propagate, log.level)
        for name in session.NOISY
        if (log := logging.getLogger(name))
    }
    yield
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_each_stage_has_its_file_for_warnings_and_for_descriptor_2(tmp_path, loggers, capfd):
    logger = logging.getLogger("setbacks.noise")
    with session.stage_logs(str(tmp_path), "generate") as log_to:
        logger.warning("a warning")
        os.write(2, b"from C++\n")
        print("for the person", file=sys.stderr)
        log_to("mix")
        logger.warning("another")
    os.write(2, b"afterwards\n")
    assert re.fullmatch(
        r"\S+ \S+ WARNING setbacks.noise: a warning\nfrom C\+\+\n",
        (tmp_path / "logs/generate.log").read_text(),
    )
    assert (tmp_path / "logs/mix.log").read_text().endswith("another\n")
    assert capfd.readouterr().err == "for the person\nafterwards\n"


def test_an_overgrown_file_is_moved_aside_at_a_stages_start_and_in_its_midst(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LOG_BYTES", 100)
    for number in range(4):
        with session.stage_logs(str(tmp_path), "train"):
            os.write(2, f"stage {number} ".encode() * 20)
    names = ["train.log", "train.log.1", "train.log.2"]
    assert sorted(os.listdir(tmp_path / "logs")) == names
    assert [(tmp_path / "logs" / name).read_text()[:7] for name in names] == ["stage 3", "stage 2", "stage 1"]
    with session.stage_logs(str(tmp_path), "mix"):
        for number in range(30):
            logging.getLogger("setbacks.noise").warning("line %d", number)
    assert [len(list((tmp_path / "logs").glob(f"{stage}.log*"))) for stage in ("mix", "train")] == [3, 3]
    assert all(f.stat().st_size < 250 for f in (tmp_path / "logs").glob("mix.log*"))


def test_requests_of_http_clients_are_not_logged(tmp_path, loggers):
    with session.stage_logs(str(tmp_path), "generate"):
        session._quiet_loggers()
        logging.getLogger("httpx").info("HTTP Request: POST https://server/v1")
        logging.getLogger("httpx").warning("a real warning")
    log = (tmp_path / "logs/generate.log").read_text()
    assert "a real warning" in log and "HTTP Request" not in log


def test_without_a_local_directory_there_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with session.stage_logs("s3://bucket/run", "generate") as log_to:
        log_to("mix")
        os.write(2, b"nowhere\n")
    assert not list(tmp_path.iterdir())
