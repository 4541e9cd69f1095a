"""A real MLflow server, from its package in an environment of its own, gets what a run reports.

It needs the package `mlflow-skinny` here, and the server: `MLFLOW_SERVER=DIR/bin/mlflow`, or `mlflow` with all of
its package. Neither is in requirements.lock: together they take 650 MB.
"""

import importlib
import importlib.util
import os
import socket
import subprocess
import time
import urllib.request

import pytest

from pipeline import tracking
from pipeline.errors import OutOfReach

SERVER = os.environ.get("MLFLOW_SERVER")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        SERVER is None or importlib.util.find_spec("mlflow") is None,
        reason="MLFLOW IS NOT TESTED: pip install mlflow-skinny, and set MLFLOW_SERVER to a whole mlflow",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    place = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--backend-store-uri", f"sqlite:///{place}/m.db", "--artifacts-destination", str(place / "art")]
    command = [str(SERVER), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", *where]
    with open(place / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=place)
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + 300
    while True:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5)
            break
        except OSError:
            assert process.poll() is None and time.monotonic() < end, (place / "log").read_text()[-2000:]
            time.sleep(0.5)
    yield address
    process.terminate()
    process.wait()


def line(step: int) -> dict:
    return {"step": step, "steps": 9, "loss": 1 / step, "rewards/margins": 0.5, "time": 1e9 + step}


def opened(run_dir, notices):
    settings = {"seed": 7, "train": {"epochs": 3.0}}
    state = str(run_dir / "tracking.json")
    return tracking.opened(["mlflow"], str(run_dir), "sft", state, settings, notices.append)


def test_a_training_that_resumes_arrives_whole_with_settings_results_and_report(
    tmp_path, server, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of a test")
    tracking.check(["mlflow"], str(tmp_path))
    tracking.check_reach(["mlflow"])
    page, notices = tmp_path / "report.html", []
    page.write_text("<p>numbers</p>")
    with pytest.raises(KeyboardInterrupt), opened(tmp_path, notices) as tracked:
        for step in (1, 2, 3):
            tracked.line(line(step))
        raise KeyboardInterrupt
    with opened(tmp_path, notices) as tracked:
        for step in (3, 4):  # the last checkpoint was of step 2
            tracked.line(line(step))
        many = {f"safety/plain/{i}": i / 1000 for i in range(1200)}
        tracked.conclude({"final_loss": 0.25} | many, [str(page)])
    assert notices == []

    client = importlib.import_module("mlflow").MlflowClient()
    experiment = client.get_experiment_by_name("of a test")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == f"{tmp_path.name}/sft"
    assert run.data.params == {"seed": "7", "train.epochs": "3.0"}
    found = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in found] == [(step, 1 / step) for step in (1, 2, 3, 4)]
    assert found[0].timestamp == (10**9 + 1) * 1000
    assert run.data.metrics["final_loss"] == 0.25 and run.data.metrics["safety/plain/1199"] == 1.199
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["report.html"]
    kept = client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))
    with open(kept) as f:
        assert f.read() == "<p>numbers</p>"


def test_a_server_that_is_away_is_found_before_anything_starts(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(OutOfReach, match="mlflow does not answer at MLFLOW_TRACKING_URI"):
        tracking.check_reach(["mlflow"])
