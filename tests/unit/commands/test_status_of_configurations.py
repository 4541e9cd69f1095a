"""`setbacks status CONFIG key=value`: overrides as of the other commands."""

import sys

import pytest
import yaml

from pipeline import cli
from pipeline.data.store import Store
from pipeline.methods.mistake_analysis.schema import MISTAKES
from tests import scripted


@pytest.fixture
def status(tmp_path, monkeypatch, capsys):
    """Run `setbacks status …` beside a configuration whose run is `a`, and a run `b` with an output."""
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(scripted.tree(tmp_path / "a")))
    store = Store(str(tmp_path / "b"), "mistakes", MISTAKES)
    store.open({"seed": 0})
    store.write_rows([{"id": "1", "status": "ok"}])

    def run(*arguments: str) -> tuple[int, str, str]:
        given = [one.format(dir=tmp_path) for one in arguments]
        monkeypatch.setattr(sys, "argv", ["setbacks", "status", *given])
        with pytest.raises(SystemExit) as e:
            cli.main()
        return e.value.code or 0, *capsys.readouterr()

    return run


def test_an_override_names_another_run(status):
    assert status("{dir}/mine.yaml")[0] == 2, "the run of the file does not exist"
    code, out, _ = status("{dir}/mine.yaml", "run_dir={dir}/b")
    assert code == 0 and "mistakes" in out
    code, out, _ = status("{dir}/mine.yaml", "run_dir={dir}/b", "--json")
    assert code == 0 and '"mistakes"' in out


@pytest.mark.parametrize(
    ("target", "override", "words"),
    [
        ("{dir}/b", "seed=1", "is no configuration file, and seed=1 changes one; name the configuration"),
        ("{dir}/mine.yaml", "sead=1", "sead is not a known key; did you mean seed?"),
        ("{dir}/mine.yaml", "seed", "write it as key.sub=value"),
    ],
)
def test_an_override_that_cannot_be_is_one_sentence(status, target, override, words):
    code, _, err = status(target, override)
    assert code == 2 and words in err and err.count("\n") == 1
