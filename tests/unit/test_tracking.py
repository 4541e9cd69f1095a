"""Trackers: what arrives, that nothing is sent unasked, and that a broken tracker ends no run."""

import importlib
import importlib.util
import json
import os
import struct
import sys
import time
from pathlib import Path

import pytest

from pipeline import preflight, tracking
from pipeline.errors import UserError
from tests import scripted

VARIABLES = ("WANDB_", "MLFLOW_")
has_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="W&B IS NOT TESTED: pip install wandb"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(VARIABLES)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb_cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "wandb_data"))


def line(step: int, **more) -> dict:
    return {"step": step, "steps": 9, "loss": 1 / step, "rewards/margins": 0.5, "time": 1e9 + step, **more}


def opened(run_dir, *track, name="sft", notices=None):
    state = str(run_dir / ".state" / "tracking.json")
    told = notices if notices is not None else []
    return tracking.opened(track, str(run_dir), name, state, {"seed": 7, "train": {"epochs": 3}}, told.append)


def scalars(directory) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(directory)).Reload()
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


# -- TensorBoard


def test_tensorboard_shows_a_step_while_training_runs(tmp_path):
    with opened(tmp_path, "tensorboard") as tracked:
        tracked.line(line(1))
        assert scalars(tmp_path / "tensorboard" / "sft")["loss"] == [(1, 1.0)]
        tracked.line(line(2))
    assert scalars(tmp_path / "tensorboard" / "sft") == {
        "loss": [(1, 1.0), (2, 0.5)],
        "rewards/margins": [(1, 0.5), (2, 0.5)],
    }


def test_a_resumed_training_goes_on_in_its_file(tmp_path):
    """The first attempt died after step 3, and its last checkpoint was of step 2."""
    with opened(tmp_path, "tensorboard") as tracked:
        for step in (1, 2, 3):
            tracked.line(line(step, loss=float(step)))
    time.sleep(1.1)  # TensorBoard orders files by the second in their names
    with opened(tmp_path, "tensorboard") as tracked:
        for step in (3, 4):
            tracked.line(line(step, loss=10.0 * step))
    assert scalars(tmp_path / "tensorboard" / "sft")["loss"] == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]


def test_a_step_that_a_restarted_worker_logs_again_is_sent_once(tmp_path):
    with opened(tmp_path, "tensorboard") as tracked:
        for step in (1, 2, 3, 2, 3, 4):
            tracked.line(line(step))
    assert [step for step, _ in scalars(tmp_path / "tensorboard" / "sft")["loss"]] == [1, 2, 3, 4]


def test_tensorboard_needs_a_directory():
    with pytest.raises(UserError, match="track: tensorboard writes its files while training runs"):
        tracking.check(["tensorboard"], "s3://bucket/run")


# -- nothing unasked


class Forbidden:
    """In the place of a library that must not be touched."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was used")


def test_a_key_alone_sends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, Forbidden())
    config = scripted.config(tmp_path / "run")
    assert config.track == []
    tracking.check(config.track, config.run_dir)
    tracking.check_reach(config.track)
    with opened(tmp_path, *config.track) as tracked:
        tracked.line(line(1))
        tracked.conclude({"harmless": 0.5}, ["report.html"])
    assert not list(tmp_path.iterdir())
    [notice] = tracking.unused(config.track)
    assert notice.startswith("WANDB_API_KEY: not used") and "kkk" not in notice
    assert tracking.unused(["wandb"]) == []


def test_workers_import_no_tracker():
    text = Path(tracking.__file__).with_name("training")
    for file in text.glob("*.py"):
        assert "wandb" not in file.read_text() and "mlflow" not in file.read_text(), file


# -- checks


@pytest.mark.parametrize("kind", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence(monkeypatch, tmp_path, kind):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=rf"track: the package {kind} is not installed; run `pip install 'setbacks\[{kind}\]'`",
    ):
        preflight.check(scripted.config(tmp_path / "run", track=[kind]), {"train"})


def present(monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())


def test_a_missing_login_of_wandb_is_one_sentence(monkeypatch, tmp_path):
    present(monkeypatch)
    with pytest.raises(UserError, match="track: wandb has no login; run `wandb login`"):
        tracking.check(["wandb"], str(tmp_path))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "k" * 40)
    tracking.check(["wandb"], str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match="no login"):
        tracking.check(["wandb"], str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracking.check(["wandb"], str(tmp_path))


def test_mlflow_has_to_be_told_where(monkeypatch, tmp_path):
    present(monkeypatch)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        tracking.check(["mlflow"], str(tmp_path))


def test_a_server_of_mlflow_that_is_away_is_one_sentence_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:kkkkk@127.0.0.1:1")

    def away():
        raise ConnectionError("kkkkk")

    monkeypatch.setattr(tracking.MLflow, "_client", staticmethod(away))
    with pytest.raises(UserError, match=r"does not answer at MLFLOW_TRACKING_URI = http://127.0.0.1:1") as e:
        tracking.check_reach(["mlflow"])
    assert "kkk" not in str(e.value)


def test_a_tracker_is_named_once(tmp_path):
    with pytest.raises(ValueError, match="names a tracker twice"):
        scripted.config(tmp_path, track=["wandb", "wandb"])


# -- a tracker that breaks


class Broken(tracking.Tracker):
    package = "json"
    at = "log"

    def __init__(self, run_dir, name, id, settings):
        self.id = "1"
        self._maybe("open")

    def _maybe(self, what):
        if self.at == what:
            raise ConnectionError("key " + "k" * 40)

    def log(self, numbers, step, at):
        self._maybe("log")

    def conclude(self, numbers):
        self._maybe("conclude")

    def attach(self, path):
        self._maybe("attach")

    def close(self, failed):
        self._maybe("close")


@pytest.mark.parametrize("at", ["open", "log", "conclude", "attach", "close"])
def test_a_tracker_that_breaks_is_told_once_and_others_go_on(tmp_path, monkeypatch, at):
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Broken)
    monkeypatch.setattr(Broken, "at", at)
    notices: list[str] = []
    with opened(tmp_path, "wandb", "tensorboard", notices=notices) as tracked:
        tracked.line(line(1))
        tracked.line(line(2))
        tracked.conclude({"final": 1.0}, ["x"])
    assert notices == ["track: wandb does not work (ConnectionError), so what follows is not reported there"]
    assert len(scalars(tmp_path / "tensorboard" / "sft")["loss"]) == 2


def test_a_run_that_fails_closes_its_trackers_as_failed(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Broken, "at", "never")
    monkeypatch.setattr(Broken, "close", lambda self, failed: closed.append(failed))
    monkeypatch.setitem(tracking.TRACKERS, "wandb", Broken)
    with pytest.raises(KeyboardInterrupt), opened(tmp_path, "wandb"):
        raise KeyboardInterrupt
    assert closed == [True]


# -- Weights & Biases, offline


def records_of(directory: Path) -> list:
    """What W&B keeps on disk, and would send."""
    proto = importlib.import_module("wandb.proto.wandb_internal_pb2")
    found = []
    for file in sorted(directory.rglob("*.wandb")):
        for data in log_entries(file.read_bytes()):
            record = proto.Record()
            record.ParseFromString(data)
            found.append(record)
    return found


def written(directory: Path, attempts: int) -> list:
    """The same, when W&B's own process has written it to the end."""
    end = time.monotonic() + 30
    while True:
        found = records_of(directory)
        if sum(record.WhichOneof("record_type") == "exit" for record in found) == attempts:
            return found
        assert time.monotonic() < end, "W&B has not written its files"
        time.sleep(0.1)


def log_entries(content: bytes):
    """The entries of a log in LevelDB's format: blocks of 32 KiB, and a header of 7 bytes before each part."""
    at, entry = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        entry += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield entry
            entry = b""


def history(records) -> list[dict]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]


@has_wandb
def test_wandb_gets_every_step_settings_results_and_the_report(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    page = tmp_path / "report.html"
    page.write_text("<p>masked</p>")
    notices: list[str] = []
    for steps in ((1, 2), (3,)):  # the second attempt resumes
        with opened(tmp_path, "wandb", notices=notices) as tracked:
            for step in steps:
                tracked.line(line(step))
            if steps == (3,):
                tracked.conclude({"final_loss": 0.25, "kinds": {"safe": 3}}, [str(page)])
    assert notices == []
    found = written(tmp_path / "wandb", attempts=2)
    assert [(one["_step"], one["loss"]) for one in history(found)] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    runs = [record.run for record in found if record.WhichOneof("record_type") == "run"]
    ids = {run.run_id for run in runs}
    assert len(ids) == 1 and {run.project for run in runs} == {"setbacks"}
    assert {run.display_name for run in runs} == {"sft"} and {run.run_group for run in runs} == {
        tmp_path.name
    }
    assert [r.artifact.type for r in found if r.WhichOneof("record_type") == "artifact"] == ["report"]
