"""A stage that is resumed has its rows: the sources are not read again, with however many engines."""

from contextlib import nullcontext

import pytest

from pipeline import experiment
from pipeline.errors import RunFailed
from pipeline.methods.mistake_analysis import MistakeAnalysis
from pipeline.run import Machinery
from tests import scripted


@pytest.mark.parametrize("actors", [1, 4, [1, 8]])
def test_a_resumed_stage_reads_no_source(calls, monkeypatch, tmp_path, actors):
    read, rows = [], MistakeAnalysis.rows

    def counted(self, counts):
        for row in rows(self, counts):
            read.append(row["id"])
            yield row

    def stopped(jobs, spec, *, seed, label):
        raise RunFailed("killed")
        yield

    monkeypatch.setattr(MistakeAnalysis, "rows", counted)
    source = {"path": "toy:harmful-train", "limit": 60}
    config = scripted.config(tmp_path / "run", instructions=source, engine={"actors": actors})
    killed = Machinery(lambda _run_dir: nullcontext(), lambda *_arguments: None, stopped)
    with pytest.raises(RunFailed, match="killed"):
        experiment.run(config, ["generate"], machinery=killed, log=lambda line: None)
    first, told = list(read), []
    assert first
    experiment.run(config, ["generate"], machinery=calls.machinery, log=told.append)
    assert read == first
    assert any(line.startswith(f"generate: {len(first)} rows") for line in told)
